"""Trains a detector on a COCO annotation file and a folder of images, and runs it on others.

    python examples/train_coco.py train --annotations train.json --images train/ --output run
    python examples/train_coco.py evaluate --run run --annotations val.json --images val/
    python examples/train_coco.py predict --run run --images photos/ --output drawn

docs/training.md says what of a file is skipped, and what is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from PIL import Image
from recipes import runs
from recipes.backbones import build_backbone
from recipes.coco_file import Category, CocoData, read_coco
from recipes.detection_evaluation import CocoEvaluation, detect, draw_detections
from recipes.detection_input import scale_to_fit, training_batches
from recipes.evaluation import results_of
from recipes.image_files import readable_images
from recipes.problems import DataError
from recipes.summaries import Summaries

from tf_deformable.analysis import OffsetHealth
from tf_deformable.models import detector

KINDS = ("faster_rcnn", "rfcn", "rpn")
CHANNELS = {"faster_rcnn": 256, "rfcn": 1024, "rpn": 512}  # of the maps that are pooled, at most
PYRAMID_CHANNELS = 256


def main() -> None:
    """Runs the command line."""
    arguments = parse_arguments()
    arguments.function(arguments)


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    count, number = runs.positive_option(int), runs.positive_option(float)

    train_parser = commands.add_parser(
        "train",
        help="train a detector, evaluate it after every epoch, export it",
        description="Trains a detector. Interrupted, it goes on with --resume.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train_parser.set_defaults(function=train)
    group = train_parser.add_argument_group("data")
    _add_data(group, "--annotations", "--images", required=True)
    group.add_argument(
        "--val-annotations", type=Path, metavar="FILE",
        help="COCO file to evaluate on (default: that of the training, which tells little)",
    )  # fmt: skip
    group.add_argument(
        "--val-images", type=Path, metavar="FOLDER", help="its images (default: --images)"
    )
    runs.add_common(train_parser)
    runs.add_training_options(train_parser, size="512")
    group = train_parser.add_argument_group("detector")
    group.add_argument("--kind", choices=KINDS, default="faster_rcnn", help="rpn: no second stage")
    group.add_argument(
        "--channels", type=count, metavar="N",
        help="of the 1x1 convolution after the backbone (default: 256, rfcn 1024, rpn 512, where "
        "the backbone has more)",
    )  # fmt: skip
    group.add_argument(
        "--pyramid", nargs="+", metavar="LEVEL",
        help="a feature pyramid on these maps of the backbone, as P2 P3 P4 P5 (KerasHub), with "
        "--channels of 256; not for rfcn",
    )  # fmt: skip
    group.add_argument(
        "--anchor-sizes", type=number, nargs="+", metavar="PIXELS",
        help="square roots of areas, in the scaled image (default: from the sizes of the objects; "
        "with --pyramid one for each map, 8 times its stride)",
    )  # fmt: skip
    group.add_argument(
        "--aspect-ratios", type=number, nargs="+", default=[0.5, 1.0, 2.0], metavar="RATIO",
        help="of anchors, heights divided by widths",
    )  # fmt: skip
    group.add_argument(
        "--head-units", type=count, nargs="+", default=[1024, 1024], metavar="N",
        help="hidden layers of faster_rcnn's head",
    )  # fmt: skip
    group.add_argument("--proposals", type=count, default=300, metavar="N", help="of an image")
    group.add_argument(
        "--evaluate-every", type=count, default=1, metavar="N", help="epochs; the last one always"
    )

    evaluate_parser = commands.add_parser(
        "evaluate",
        help="COCO's numbers of a trained detector",
        description="Prints COCO's numbers, and the average precision of each category.",
    )
    evaluate_parser.set_defaults(function=evaluate_run)
    _add_run(evaluate_parser, count)
    _add_data(evaluate_parser, "--annotations", "--images", required=True)

    predict_parser = commands.add_parser(
        "predict",
        help="draw what a trained detector finds",
        description="Draws boxes on images, and writes them as COCO's results (detections.json).",
    )
    predict_parser.set_defaults(function=predict)
    _add_run(predict_parser, count)
    predict_parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="PATH", help="files, or folders"
    )
    predict_parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    predict_parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="SCORE",
        help="the least score of a box that is drawn (default: 0.5)",
    )  # fmt: skip
    return parser.parse_args()


def _add_data(parser: Any, annotations: str, images: str, required: bool) -> None:
    parser.add_argument(
        annotations, type=Path, required=required, metavar="FILE", help="COCO file of objects"
    )
    parser.add_argument(
        images, type=Path, required=required, metavar="FOLDER", help="the JPEG and PNG files of it"
    )


def _add_run(parser: Any, count: Any) -> None:
    parser.add_argument(
        "--run", type=Path, required=True, metavar="FOLDER", help="--output of the training"
    )
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="images at a time")


def train(options: argparse.Namespace) -> None:
    """Trains a detector, or goes on."""
    run = runs.Run(options.output)
    tf.keras.utils.set_random_seed(options.seed)
    tf.keras.mixed_precision.set_global_policy(options.precision)
    print(f"Reading {options.annotations}", flush=True)
    data = read_coco(options.annotations, options.images)
    print(data, flush=True)
    validation = data
    if options.val_annotations is not None:
        folder = options.val_images or options.images
        print(f"Reading {options.val_annotations}", flush=True)
        validation = read_coco(options.val_annotations, folder, data.categories)
        print(validation, flush=True)
    config = {
        "size": list(options.size),
        "classes": [dataclasses.asdict(category) for category in data.categories],
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    state = run.begin(config, options.resume)
    for name, each in (("train", data), ("val", validation)):
        (run.folder / f"skipped-{name}.txt").write_text("\n".join(each.problems.lines()))

    batches = training_batches(
        data.pictures,
        options.size,
        options.batch,
        mirror=not options.no_mirror,
        seed=options.seed,
    )
    evaluation = CocoEvaluation(validation, options.size, options.batch, options.evaluate_every)
    callbacks = [evaluation]
    if not options.plain:
        probe = batches.unbatch().batch(min(4, len(data.pictures)))
        callbacks.append(OffsetHealth(probe.map(lambda images, _: images), run.logs / "offsets"))
    callbacks.append(Summaries(run.logs, evaluation.draw))

    model = runs.fit(
        run,
        state,
        options,
        build=lambda: build_detector(options, data),
        compile_model=lambda model, optimizer: model.compile(optimizer),
        data=batches,
        callbacks=callbacks,
        metric="val_AP",
    )
    print(f"\n{run.best}, on {len(validation.pictures)} images:\n{evaluation.report(model)}")
    if not options.no_export:
        runs.export(model, run.folder / "exported")


def build_detector(options: argparse.Namespace, data: CocoData) -> Any:
    """Returns an untrained detector."""
    backbone = build_backbone(
        options.backbone, None if options.weights == "none" else options.weights
    )
    sizes, channels = options.anchor_sizes, options.channels
    if options.pyramid is None:
        sizes = sizes or anchor_sizes(data, options.size)
        depth, most = max(int(o.shape[-1]) for o in backbone.outputs), CHANNELS[options.kind]
        channels = channels or (most if depth > most else None)
    deformable = not options.plain
    is_faster_rcnn = options.kind == "faster_rcnn"
    try:
        model = detector(
            backbone,
            len(data.categories),
            options.kind,
            deformable=deformable,
            dilate_last_stage=options.dilate,
            level=options.level,
            pyramid=options.pyramid,
            channels=channels or (PYRAMID_CHANNELS if options.pyramid else None),
            anchor_sizes=sizes,
            aspect_ratios=options.aspect_ratios,
            head_arguments={"units": options.head_units} if is_faster_rcnn else None,
            deformify_arguments={"modulated": options.modulated} if deformable else None,
            proposals=options.proposals,
            name=options.kind,
        )
    except ValueError as error:  # of a level that is not there, say
        raise DataError(str(error)) from error
    print(f"Anchors of {', '.join(f'{size:.0f}' for size in np.ravel(model.anchor_sizes))} pixels")
    return model


def anchor_sizes(data: CocoData, size: tuple[int, int]) -> list[float]:
    """Returns three sizes that many objects have, in the scaled images."""
    sides = []
    for picture in data.pictures:
        heights, widths = (picture.boxes[:, axis + 2] - picture.boxes[:, axis] for axis in (0, 1))
        sides.append(np.sqrt(heights * widths) * scale_to_fit(picture.size, size))
    return [float(side) for side in np.quantile(np.concatenate(sides), (0.15, 0.5, 0.85))]


def evaluate_run(options: argparse.Namespace) -> None:
    """Evaluates the best detector of a run."""
    run = runs.Run(options.run)
    size, categories = _made_for(run)
    data = read_coco(options.annotations, options.images, categories)
    print(data)
    print(CocoEvaluation(data, size, options.batch).report(run.load("best.keras")))


def predict(options: argparse.Namespace) -> None:
    """Draws what the best detector of a run finds."""
    run = runs.Run(options.run)
    size, categories = _made_for(run)
    readable = readable_images(options.images)
    files, sizes = zip(*readable, strict=True)
    every = detect(run.load("best.keras"), files, sizes, size, options.batch)
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for number, (path, found) in enumerate(zip(files, every, strict=True)):
        picture = draw_detections(path, found, categories, options.threshold)
        # Two folders may have files of one name.
        target = options.output / f"{number:04d}-{path.stem}.png"
        Image.fromarray(picture).save(target)
        detections = results_of(number, found, [category.id for category in categories])
        shown = sum(result["score"] >= options.threshold for result in detections)
        print(f"{path}: {shown} objects, {target}")
        results += [{**result, "file_name": str(path)} for result in detections]
    (options.output / "detections.json").write_text(json.dumps(results, indent=1))


def _made_for(run: runs.Run) -> tuple[tuple[int, int], tuple[Category, ...]]:
    """Returns the size of the images and the categories of a run."""
    config = run.config()
    height, width = config["size"]
    return (height, width), tuple(Category(**record) for record in config["classes"])


if __name__ == "__main__":
    runs.command(main)
