"""Segments handwritten digits: plain, atrous and deformable networks (the paper's Table 1).

    python experiments/segmentation.py [--quick] [--seeds 3]

Several digits, of 10 to 32 pixels, turned and slanted, lie on a canvas of 96x96 pixels; every pixel
is to be classified: paper, or the ink of one of ten digits. The networks differ in their last three
3x3 convolutions, "conv5": plain, dilated, or one to three of them deformable. Some are trained
three times as long, too. Runs are kept in build/experiments, with the weights, and made again only
if their files are gone.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from data import CANVAS, Scenes, pixel_labels, scenes_of
from runs import (
    Budget,
    Options,
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

CLASSES = 11  # paper and ten digits
BATCH = 16
LEARNING_RATE = 4e-3
LAST_STAGE = ("conv5_1", "conv5_2", "conv5_3")
SIZE_EDGES = (16, 24)  # pixels, height or width, whichever is larger: small, medium, large


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of the comparison."""

    title: str
    dilation: int = 1  # of the last three convolutions
    deformable: int = 0  # how many of them, from the last one
    width: int = 32  # their channels


VARIANTS = {
    "plain": Variant("plain"),
    "wide": Variant("plain, wider", width=42),  # as many weights as three deformable layers
    "atrous2": Variant("atrous, dilation 2", dilation=2),
    "atrous4": Variant("atrous, dilation 4", dilation=4),
    "deformable1": Variant("deformable, 1 layer", deformable=1),
    "deformable2": Variant("deformable, 2 layers", deformable=2),
    "deformable3": Variant("deformable, 3 layers", deformable=3),
    "atrous2-deformable3": Variant("dilation 2, deformable, 3 layers", dilation=2, deformable=3),
}


FULL = Budget(scenes=800, test_scenes=200, epochs=6)
LONGER = dataclasses.replace(FULL, epochs=18)
LONGER_VARIANTS = ("plain", "wide", "atrous2", "atrous4", "deformable3")
QUICK = Budget(scenes=48, test_scenes=8, epochs=1, max_scans=400)


def main() -> None:
    """Runs what has not been run, and writes the tables and the plot."""
    chosen = options("segmentation", "Plain, atrous and deformable segmentation.", seeds=3)
    results = compare(chosen, VARIANTS, QUICK if chosen.quick else FULL, chosen.output)
    draw(results, chosen.docs / "segmentation.png")
    write_section(chosen.docs / "experiments.md", "segmentation", report(results))
    output = chosen.output.with_name(f"{chosen.output.name}-longer")
    results = compare(chosen, LONGER_VARIANTS, QUICK if chosen.quick else LONGER, output)
    write_section(chosen.docs / "experiments.md", "segmentation, longer", report(results))


def compare(
    chosen: Options, names: Iterable[str], budget: Budget, output: Path
) -> dict[str, dict[int, dict[str, Any]]]:
    """Returns what runs of these networks returned, by network and seed."""
    return of_networks(
        chosen,
        names,
        lambda name, seed: path_of(name, seed, output),
        lambda name, seed: run(name, seed, budget, output),
    )


def path_of(name: str, seed: int, output: Path) -> Path:
    """The file of what a run returned; its weights are beside it, in `weights_of` it."""
    return output / f"{name}-{seed}.json"


def weights_of(path: Path) -> Path:
    """The file of a run's weights, for the run's own file (with or without its suffix)."""
    return path.with_suffix(".weights.h5")


def run(name: str, seed: int, budget: Budget, output: Path) -> dict[str, Any]:
    """Trains and tests a network, or reads what it did."""
    path = path_of(name, seed, output)
    return kept(path, lambda: train_and_test(name, seed, budget, output))


def build(name: str) -> tf.keras.Model:
    """Returns an untrained network: images `[N, H, W, 1]` to logits `[N, H, W, CLASSES]`."""
    variant = VARIANTS[name]
    layers = tf.keras.layers
    features = images = tf.keras.Input((None, None, 1), name="images")
    stages = [("conv1", 16, 2, 1), ("conv2", 32, 2, 1)]
    stages += [(layer, variant.width, 1, variant.dilation) for layer in LAST_STAGE]
    for layer, filters, strides, dilation in stages:
        features = layers.Conv2D(
            filters,
            3,
            strides=strides,
            dilation_rate=dilation,
            padding="same",
            use_bias=False,
            name=layer,
        )(features)
        features = layers.BatchNormalization(momentum=0.9, name=f"{layer}_norm")(features)
        features = layers.ReLU(name=f"{layer}_relu")(features)
    backbone = tf.keras.Model(images, features)
    if not variant.deformable:
        return models.deeplab(backbone, CLASSES, name=name)
    chosen = LAST_STAGE[-variant.deformable :]
    return models.deeplab(backbone, CLASSES, deformable=True, layers=chosen, name=name)


def train_and_test(name: str, seed: int, budget: Budget, output: Path) -> dict[str, Any]:
    """Trains a network, keeps its weights, and returns how well it segments the test scenes."""
    training, test = scenes_of(seed, budget)
    tf.keras.utils.set_random_seed(seed)
    model = build(name)
    model.compile(
        optimizer(budget.epochs * -(-budget.scenes // BATCH), LEARNING_RATE),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    started = time.perf_counter()
    history = model.fit(
        training.images, pixel_labels(training), batch_size=BATCH, epochs=budget.epochs, verbose=0
    )
    seconds = time.perf_counter() - started
    output.mkdir(parents=True, exist_ok=True)
    model.save_weights(weights_of(path_of(name, seed, output)))
    result = {
        "parameters": model.count_params(),
        "seconds": seconds,
        "loss": history.history["loss"][-1],
        **measure(model, test),
    }
    print(f"{name} seed {seed}: mIoU {result['iou']:.1%} in {seconds:.0f} s", flush=True)
    return result


def measure(model: tf.keras.Model, test: Scenes) -> dict[str, Any]:
    """Returns the mean IoU over the classes, and that share of the ink by the digit's size."""
    truth = pixel_labels(test)
    predicted = model.predict(test.images, batch_size=BATCH, verbose=0).argmax(axis=-1)
    metric = tf.keras.metrics.MeanIoU(CLASSES)
    metric.update_state(truth, predicted)
    right: list[list[float]] = [[] for _ in range(len(SIZE_EDGES) + 1)]
    for scene, boxes in enumerate(test.boxes[..., :].astype(int)):
        for top, left, bottom, right_edge in boxes[test.present[scene]]:
            window = (scene, slice(top, bottom), slice(left, right_edge))
            ink = truth[window] > 0
            size = np.digitize(max(bottom - top, right_edge - left), SIZE_EDGES)
            right[size].append(float(np.mean(predicted[window][ink] == truth[window][ink])))
    return {
        "iou": float(metric.result()),
        "right": [float(np.mean(shares)) for shares in right],
    }


def report(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Returns the table."""
    rows = []
    for name, runs in results.items():
        values = {seed: 100 * run["iou"] for seed, run in runs.items()}
        plain = {seed: 100 * run["iou"] for seed, run in results.get("plain", {}).items()}
        shares = np.array([run["right"] for run in runs.values()])
        rows.append(
            [
                VARIANTS[name].title,
                f"{next(iter(runs.values()))['parameters']:,}",
                str(len(runs)),
                mean_and_spread(values.values()),
                "" if name == "plain" else paired(values, plain),
                *(mean_and_spread(100 * shares[:, size]) for size in range(shares.shape[1])),
            ]
        )
    head = ["last three layers", "weights", "seeds", "mIoU, %", "against plain"]
    head += ["small", "medium", "large"]
    return table(head, rows)


def draw(results: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Draws mean IoU."""
    rows = []
    for name, runs in results.items():
        color = "#d9480f" if VARIANTS[name].deformable else "#2f7ed8"
        rows.append((VARIANTS[name].title, [100 * run["iou"] for run in runs.values()], color))
    plot(rows, f"mean IoU, %, on {CANVAS}x{CANVAS} scenes", path)


if __name__ == "__main__":
    main()
