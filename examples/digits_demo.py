"""Trains a plain and a deformable network on handwritten digits of any size, and serves the latter.

    python examples/digits_demo.py [--quick] [--seed 0] [--output build/demo]

Two networks that differ in their last two convolutions (`Conv2D`, `DeformableConv2D`) are trained
on the same images, from the same seed, in the same way. Then the deformable one is exported, a new
process serves it, and a picture shows where its filters look.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from digits import CANVAS, SCAN, SIZES, ZOOM_EDGES, Digits, Splits, load
from digits_picture import draw_sampling, reach
from scipy.stats import binomtest

import tf_deformable

BATCH = 64
LEARNING_RATE = 4e-3
DRAWN = (3, 4, 8)  # digits in the picture
DEFORMABLE_LAYERS = ("deformable_1", "deformable_2")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much data and training a run takes."""

    copies: int  # training images per scan and size class
    epochs: int
    max_scans: int | None = None


FULL = Budget(copies=3, epochs=5)
QUICK = Budget(copies=1, epochs=1, max_scans=400)


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained network and what it does on the test images."""

    model: tf.keras.Model
    seconds: float  # of training
    correct: np.ndarray  # [test images], bool


def main() -> None:
    """Runs the demo."""
    started = time.perf_counter()
    arguments = parse_arguments()
    budget = QUICK if arguments.quick else FULL
    data = load(seed=arguments.seed, copies=budget.copies, max_scans=budget.max_scans)
    describe(data)

    results = []
    for build in (build_plain, build_deformable):
        tf.keras.utils.set_random_seed(arguments.seed)
        results.append(train(build(), data, budget.epochs))
    plain, deformable = results
    report(plain, deformable, data.test)

    arguments.output.mkdir(parents=True, exist_ok=True)
    serve(deformable.model, data.test, arguments.output)
    look(deformable.model, data.test, arguments.output / "sampling.png")
    print(f"The demo took {time.perf_counter() - started:.0f} s.")


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(description="Deformable convolution on handwritten digits.")
    parser.add_argument("--quick", action="store_true", help="few digits, one epoch: a smoke test")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), help="directory for model and picture"
    )
    return parser.parse_args()


def describe(data: Splits) -> None:
    """Prints what the data is."""
    low, high = SCAN * ZOOM_EDGES[[0, -1]]
    print(
        f"Handwritten digits, {low:.0f} to {high:.0f} pixels high, rotated and slanted, on "
        f"{CANVAS}x{CANVAS} pixels:"
    )
    for name, part in vars(data).items():
        print(f"  {name:<11}{len(part):>6,} images of {len(np.unique(part.scans)):>5,} scans")
    print(
        f"tf_deformable {tf_deformable.__version__}, {tf_deformable.config.get_backend()} backend"
    )


def build_plain() -> tf.keras.Model:
    """Returns the plain network. It is wider, to have as many weights as the deformable one."""
    layers = tf.keras.layers
    return build_network(
        "plain",
        layers.Conv2D(44, 3, padding="same", use_bias=False, name="plain_1"),
        layers.Conv2D(44, 3, padding="same", use_bias=False, name="plain_2"),
    )


def build_deformable() -> tf.keras.Model:
    """Returns the deformable network."""
    first, second = DEFORMABLE_LAYERS
    return build_network(
        "deformable",
        tf_deformable.DeformableConv2D(32, 3, padding="same", use_bias=False, name=first),
        tf_deformable.DeformableConv2D(32, 3, padding="same", use_bias=False, name=second),
    )


def build_network(
    name: str, first: tf.keras.layers.Layer, second: tf.keras.layers.Layer
) -> tf.keras.Model:
    """Returns a small network that ends in the two layers given, an average and a classifier."""
    layers = tf.keras.layers
    network = tf.keras.Sequential([tf.keras.Input((CANVAS, CANVAS, 1))], name=name)
    for convolution in (
        layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
        first,
        second,
    ):
        network.add(convolution)
        network.add(layers.BatchNormalization(momentum=0.9))
        network.add(layers.ReLU())
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(10))
    return network


def train(model: tf.keras.Model, data: Splits, epochs: int) -> Result:
    """Trains a network and lets it classify the test images."""
    steps = epochs * -(-len(data.training) // BATCH)
    warmup = steps // 5  # at once, the full rate would throw the offsets far away
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=LEARNING_RATE, warmup_steps=warmup
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(schedule),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(f"\nTraining the {model.name} network, {model.count_params():,} parameters")
    started = time.perf_counter()
    model.fit(
        data.training.images,
        data.training.labels,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(data.validation.images, data.validation.labels),
    )
    seconds = time.perf_counter() - started
    predicted = model.predict(data.test.images, verbose=0).argmax(axis=-1)
    return Result(model, seconds, predicted == data.test.labels)


def report(plain: Result, deformable: Result, test: Digits) -> None:
    """Prints how well both networks do on the test images, and whether they differ."""
    print(f"\nAccuracy on {len(test):,} test images, in %")
    print(
        f"{'':<12}{'parameters':>12}{'training':>11}", *(f"{size:>8}" for size in SIZES), "     all"
    )
    for result in (plain, deformable):
        shares = [result.correct[test.sizes == size].mean() for size in range(len(SIZES))]
        print(
            f"{result.model.name:<12}{result.model.count_params():>12,}{result.seconds:>9.0f} s",
            *(f"{100 * share:>8.1f}" for share in [*shares, result.correct.mean()]),
        )
    # The images of a scan are alike, so scans are compared, not images.
    scans = np.unique(test.scans, return_inverse=True)[1]
    gains = np.bincount(scans, deformable.correct) - np.bincount(scans, plain.correct)
    won, lost = int(np.sum(gains > 0)), int(np.sum(gains < 0))
    chance = binomtest(won, won + lost).pvalue if won + lost else 1.0
    print(
        f"The deformable one does better on {won} of the scans, the plain one on {lost} "
        f"(sign test: p = {chance:.1g})."
    )


def serve(model: tf.keras.Model, test: Digits, output: Path) -> None:
    """Exports a network, lets a new process run it, and compares the predictions."""
    exported, inputs, outputs = output / "model", output / "inputs.npy", output / "outputs.npy"
    print("\nExporting the deformable network")
    with contextlib.redirect_stdout(io.StringIO()):  # a line per weight
        model.export(str(exported))
    np.save(inputs, test.images)
    script = Path(__file__).with_name("serve.py")
    command = [sys.executable, str(script), str(exported), str(inputs), str(outputs)]
    if tf_deformable.config.get_backend() == "native":
        command += ["--library", tf_deformable.get_library_path()]
    print("Serving it from a new process:", flush=True)
    subprocess.run(command, check=True)

    here, there = model.predict(test.images, verbose=0), np.load(outputs)
    same = np.sum(here.argmax(axis=-1) == there.argmax(axis=-1))
    print(
        f"{same:,} of {len(test):,} classes are those of this process; "
        f"the outputs differ by at most {np.abs(here - there).max():.1g}."
    )


def look(model: tf.keras.Model, test: Digits, picture: Path) -> None:
    """Says and draws where the deformable layers sample."""
    distances, regular = reach(model, DEFORMABLE_LAYERS[-1], test)
    reached = ", ".join(f"{size} {d:.1f}" for size, d in zip(SIZES, distances, strict=True))
    print("\nMean distance, in pixels, from a unit in the middle of a digit to its samples:")
    print(f"{reached}; on the regular grid {regular:.1f}. Picture: {picture}")
    scans = [int(test.scans[test.labels == label][0]) for label in DRAWN]
    draw_sampling(model, DEFORMABLE_LAYERS, scans, picture)


if __name__ == "__main__":
    main()
