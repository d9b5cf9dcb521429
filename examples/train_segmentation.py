r"""Trains a network that segments on a folder of images and one of masks, and runs it on others.

    python examples/train_segmentation.py train --images train/ --masks train_masks/ --classes 21 \
        --val-images val/ --val-masks val_masks/ --output run
    python examples/train_segmentation.py predict --run run --images photos/ --output drawn

A mask is a PNG of one channel with the name of its image: the value of a pixel is its class, 255 is
none. docs/training.md says what is skipped, and what is refused.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from PIL import Image
from recipes import runs
from recipes.backbones import build_backbone
from recipes.detection_input import Size, fitted_size, image_batches
from recipes.image_files import decode, readable_images
from recipes.pictures import draw_classes
from recipes.problems import DataError
from recipes.segmentation_data import MaskedImage, read_mask, read_masks, segmentation_batches
from recipes.summaries import Summaries

from tf_deformable.analysis import OffsetHealth
from tf_deformable.models import deeplab


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
    count = runs.positive_option(int)

    train_parser = commands.add_parser(
        "train",
        help="train a network, evaluate it after every epoch, export it",
        description="Trains a network. Interrupted, it goes on with --resume.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train_parser.set_defaults(function=train)
    group = train_parser.add_argument_group("data")
    group.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="JPEG and PNG files"
    )
    group.add_argument(
        "--masks", type=Path, required=True, metavar="FOLDER", help="PNG files of the same names"
    )
    group.add_argument("--classes", type=count, required=True, metavar="N", help="background too")
    group.add_argument(
        "--ignored", type=int, default=255, metavar="VALUE", help="of pixels of no class"
    )
    group.add_argument(
        "--val-images", type=Path, metavar="FOLDER",
        help="to evaluate on (default: those of the training, which tells little)",
    )  # fmt: skip
    group.add_argument("--val-masks", type=Path, metavar="FOLDER", help="their masks")
    runs.add_common(train_parser)
    runs.add_training_options(train_parser, size="512")
    train_parser.add_argument(
        "--channels", type=count, metavar="N", help="of a 1x1 convolution after the backbone"
    )

    predict_parser = commands.add_parser(
        "predict",
        help="draw what a trained network finds",
        description="Writes a mask of each image, in its size, and a picture with it drawn.",
    )
    predict_parser.set_defaults(function=predict)
    predict_parser.add_argument(
        "--run", type=Path, required=True, metavar="FOLDER", help="--output of the training"
    )
    predict_parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="PATH", help="files, or folders"
    )
    predict_parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    predict_parser.add_argument(
        "--batch", type=count, default=8, metavar="N", help="images at a time (default: 8)"
    )
    arguments = parser.parse_args()
    if arguments.function is train and (arguments.val_images is None) != (
        arguments.val_masks is None
    ):
        parser.error("--val-images and --val-masks need each other")
    return arguments


def train(options: argparse.Namespace) -> None:
    """Trains a network, or goes on."""
    run = runs.Run(options.output)
    tf.keras.utils.set_random_seed(options.seed)
    tf.keras.mixed_precision.set_global_policy(options.precision)
    if not options.classes <= options.ignored <= 255:
        raise DataError(
            f"--ignored must be from {options.classes} to 255, as no class is, got "
            f"{options.ignored}"
        )
    data = validation = read_masks(options.images, options.masks, options.classes, options.ignored)
    print(data, flush=True)
    if options.val_images is not None:
        validation = read_masks(
            options.val_images, options.val_masks, options.classes, options.ignored
        )
        print(validation, flush=True)
    config = {
        "size": list(options.size),
        "classes": options.classes,
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    state = run.begin(config, options.resume)
    for name, each in (("train", data), ("val", validation)):
        (run.folder / f"skipped-{name}.txt").write_text("\n".join(each.problems.lines()))

    batches, val_batches = (
        segmentation_batches(
            each.images,
            options.size,
            options.batch,
            options.ignored,
            training=training,
            mirror=not options.no_mirror,
            seed=options.seed,
        )
        for each, training in ((data, True), (validation, False))
    )
    callbacks: list[Any] = []
    if not options.plain:
        probe = batches.unbatch().batch(min(4, len(data.images)))
        callbacks.append(OffsetHealth(probe.map(lambda images, _: images), run.logs / "offsets"))
    shown = validation.images[:4]
    callbacks.append(Summaries(run.logs, lambda model: draw(model, shown, options.size)))

    model = runs.fit(
        run,
        state,
        options,
        build=lambda: build_network(options),
        compile_model=lambda model, optimizer: compile_network(model, optimizer, options),
        data=batches,
        callbacks=callbacks,
        metric="val_mean_iou",
        validation=val_batches,
    )
    numbers = model.evaluate(val_batches, verbose=0, return_dict=True)
    print(f"\n{run.best}, on {len(validation.images)} images: mean IoU {numbers['mean_iou']:.3f}")
    if not options.no_export:
        runs.export(model, run.folder / "exported")


def build_network(options: argparse.Namespace) -> Any:
    """Returns an untrained network."""
    backbone = build_backbone(
        options.backbone, None if options.weights == "none" else options.weights
    )
    deformable = not options.plain
    return deeplab(
        backbone,
        options.classes,
        deformable=deformable,
        dilate_last_stage=options.dilate,
        level=options.level,
        channels=options.channels,
        deformify_arguments={"modulated": options.modulated} if deformable else None,
    )


def compile_network(model: Any, optimizer: Any, options: argparse.Namespace) -> None:
    """Compiles a network: pixels of no class count neither in the loss nor in the measure."""
    model.compile(
        optimizer,
        tf.keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=options.ignored
        ),
        metrics=[
            tf.keras.metrics.MeanIoU(
                options.classes, ignore_class=options.ignored, sparse_y_pred=False, name="mean_iou"
            )
        ],
    )


def segment(model: Any, paths: Any, sizes: Any, target: Size, batch: int) -> list[np.ndarray]:
    """Returns the class of every pixel of image files, `[H, W]` in the file's own size, uint8."""
    found = []
    for first in range(0, len(paths), batch):
        part = slice(first, first + batch)
        images = image_batches(paths[part], sizes[part], target, batch)
        for logits, size in zip(model.predict(images, verbose=0), sizes[part], strict=True):
            height, width = fitted_size(size, target)
            # Interpolated before it is decided: edges are not those of the scaled image.
            logits = tf.image.resize(logits[:height, :width], size)
            found.append(tf.argmax(logits, axis=-1).numpy().astype(np.uint8))
    return found


def draw(model: Any, images: tuple[MaskedImage, ...], target: Size) -> dict[str, Any]:
    """Returns pictures: the classes that a network finds, and those that are there."""
    found = segment(model, [i.path for i in images], [i.size for i in images], target, len(images))
    pictures = {}
    for number, (image, labels) in enumerate(zip(images, found, strict=True)):
        pixels = decode(image.path.read_bytes())
        truth = read_mask(image.mask)
        pictures[f"segmentation/{number}"] = np.hstack(
            [draw_classes(pixels, labels), draw_classes(pixels, truth)]
        )
    return pictures


def predict(options: argparse.Namespace) -> None:
    """Writes and draws what the best network of a run finds."""
    run = runs.Run(options.run)
    height, width = run.config()["size"]
    readable = readable_images(options.images)
    paths, sizes = zip(*readable, strict=True)
    every = segment(run.load("best.keras"), paths, sizes, (height, width), options.batch)
    options.output.mkdir(parents=True, exist_ok=True)
    for number, (path, labels) in enumerate(zip(paths, every, strict=True)):
        stem = options.output / f"{number:04d}-{path.stem}"
        Image.fromarray(labels).save(f"{stem}-mask.png")
        picture = draw_classes(decode(path.read_bytes()), labels)
        Image.fromarray(picture).save(f"{stem}.png")
        print(f"{path}: classes {', '.join(map(str, np.unique(labels)))}, {stem}.png")


if __name__ == "__main__":
    runs.command(main)
