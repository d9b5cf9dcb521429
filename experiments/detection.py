"""Detects handwritten digits: deformable convolution and RoI pooling apart and together (Table 3).

    python experiments/detection.py [--quick] [--seeds 3]

Several digits, of 10 to 32 pixels, turned and slanted, lie on a canvas of 96x96 pixels. Class-aware
RPN, Faster R-CNN and R-FCN are trained on the same backbone: plain, plain but wider, with its last
two convolutions deformable, with deformable RoI pooling, and with both. Runs are kept in
build/experiments, and made again only if their files are gone.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import tensorflow as tf
from data import DIGITS, Detections, Scenes, mean_average_precision, scenes_of
from runs import (
    Budget,
    kept,
    mean_and_spread,
    of_networks,
    optimizer,
    options,
    paired,
    plot,
    table,
    write_section,
)

from tf_deformable import models

BATCH = 8
LEARNING_RATE = 3e-3
THRESHOLDS = (0.5, 0.7)
KINDS = {"rpn": "class-aware RPN", "faster_rcnn": "Faster R-CNN", "rfcn": "R-FCN"}
HEADS: dict[str, dict[str, Any]] = {
    "rpn": {},
    "faster_rcnn": {"bins": 5, "units": (64,)},
    "rfcn": {"bins": 5},
}
WIDTH = 48  # channels of the backbone's last two convolutions
# In the wider plain networks, which have as many weights as those where all is deformable.
WIDTHS = {"rpn": 56, "faster_rcnn": 70, "rfcn": 68}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is deformable in a network of the comparison."""

    title: str
    color: str
    convolution: bool = False
    pooling: bool = False
    wider: bool = False


VARIANTS = {
    "plain": Variant("plain", "#2f7ed8"),
    "wide": Variant("plain, wider", "#8a8f98", wider=True),
    "convolution": Variant("convolution", "#e8a33d", convolution=True),
    "pooling": Variant("pooling", "#7b9e3b", pooling=True),
    "both": Variant("both", "#d9480f", convolution=True, pooling=True),
}
# An RPN pools nothing.
NETWORKS = [(k, v) for k in KINDS for v in VARIANTS if k != "rpn" or not VARIANTS[v].pooling]

FULL = Budget(scenes=480, test_scenes=150, epochs=6)
QUICK = Budget(scenes=16, test_scenes=4, epochs=1, max_scans=400)


def main() -> None:
    """Runs what has not been run, and writes the table and the plot."""
    chosen = options("detection", "Plain and deformable detectors.", seeds=3)
    budget = QUICK if chosen.quick else FULL
    results = of_networks(
        chosen,
        NETWORKS,
        lambda network, seed: path_of(*network, seed, chosen.output),
        lambda network, seed: run(*network, seed, budget, chosen.output),
    )
    draw(results, chosen.docs / "detection.png")
    write_section(chosen.docs / "experiments.md", "detection", report(results))


def path_of(kind: str, variant: str, seed: int, output: Path) -> Path:
    """The file of what a run returned."""
    return output / f"{kind}-{variant}-{seed}.json"


def run(kind: str, variant: str, seed: int, budget: Budget, output: Path) -> dict[str, Any]:
    """Trains and tests a detector, or reads what it did."""
    path = path_of(kind, variant, seed, output)
    return kept(path, lambda: train_and_test(kind, variant, seed, budget))


def build(kind: str, variant: str) -> tf.keras.Model:
    """Returns an untrained detector."""
    layers = tf.keras.layers
    chosen = VARIANTS[variant]
    width = WIDTHS[kind] if chosen.wider else WIDTH
    features = images = tf.keras.Input((None, None, 1), name="images")
    for name, filters, strides in (
        ("conv1", 16, 2),
        ("conv2", 32, 2),
        ("conv5_1", width, 1),
        ("conv5_2", width, 1),
    ):
        features = layers.Conv2D(
            filters, 3, strides=strides, padding="same", use_bias=False, name=name
        )(features)
        features = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(features)
        features = layers.ReLU(name=f"{name}_relu")(features)
    return models.detector(
        tf.keras.Model(images, features, name="backbone"),
        DIGITS,
        kind,
        deformable=chosen.convolution,
        deformable_pooling=chosen.pooling,
        anchor_sizes=(11, 17, 26),
        aspect_ratios=(1.0,),
        rpn_units=48,
        head_arguments=HEADS[kind],
        proposals=32,
        detections=20,
        sampled_anchors=64,
        name=f"{kind}_{variant}",
    )


def train_and_test(kind: str, variant: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Trains a detector and returns its mean average precision on the test scenes, in %."""
    training, test = scenes_of(seed, budget)
    tf.keras.utils.set_random_seed(seed)
    model = build(kind, variant)
    model.compile(optimizer(budget.epochs * -(-budget.scenes // BATCH), LEARNING_RATE))
    started = time.perf_counter()
    history = model.fit(
        training.images,
        {"boxes": training.boxes, "labels": training.labels},
        batch_size=BATCH,
        epochs=budget.epochs,
        verbose=0,
    )
    seconds = time.perf_counter() - started
    result = {
        "parameters": model.count_params(),
        "seconds": seconds,
        "loss": float(history.history["loss"][-1]),
        "precision": precision(model, test),
    }
    print(f"{kind} {variant} seed {seed}: mAP {result['precision']}, {seconds:.0f} s", flush=True)
    return result


def precision(model: tf.keras.Model, test: Scenes) -> list[float]:
    """Returns mean average precision, in %, at each of the thresholds."""
    found = Detections.of(model.predict(test.images, batch_size=BATCH, verbose=0))
    return [100 * mean_average_precision(found, test, iou) for iou in THRESHOLDS]


def report(results: dict[tuple[str, str], dict[int, dict[str, Any]]]) -> str:
    """Returns the table."""
    rows = []
    for (kind, variant), runs in results.items():
        count = next(iter(runs.values()))["parameters"]
        row = [KINDS[kind], VARIANTS[variant].title, f"{count:,}", str(len(runs))]
        for index in range(len(THRESHOLDS)):
            values, baseline = (
                {seed: run["precision"][index] for seed, run in each.items()}
                for each in (runs, results.get((kind, "plain"), {}))
            )
            row.append(mean_and_spread(values.values()))
            row.append("" if variant == "plain" else paired(values, baseline))
        rows.append(row)
    head = ["detector", "deformable", "weights", "seeds"]
    for threshold in THRESHOLDS:
        head += [f"mAP at {threshold}", "against plain"]
    return table(head, rows)


def draw(results: dict[tuple[str, str], dict[int, dict[str, Any]]], path: Path) -> None:
    """Draws mAP at the higher threshold."""
    rows = []
    for (kind, variant), runs in results.items():
        title = f"{KINDS[kind]}, {VARIANTS[variant].title}"
        values = [run["precision"][-1] for run in runs.values()]
        rows.append((title, values, VARIANTS[variant].color))
    plot(rows, f"mAP at {THRESHOLDS[-1]}, %", path)


if __name__ == "__main__":
    main()
