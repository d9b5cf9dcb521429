"""Weights and time of whole networks, plain and deformable (the paper's Table 4).

    python experiments/costs.py [--quick] [--seeds 1]

DeepLab, class-aware RPN, Faster R-CNN and R-FCN on a ResNet-50 whose last stage is dilated, for one
image of 224x320 pixels. Plain and deformable take turns, so that what else the machine does reaches
both; times are medians. Run it while the machine does nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from runs import kept, options, table, write_section

from tf_deformable import models

CLASSES = 20  # PASCAL VOC
# Of the paper's Table 4, on ResNet-101 and a GPU: weights in millions, and seconds of a forward
# pass, network alone; both plain, deformable.
PAPER = {
    "deeplab": ("DeepLab", (46.0, 46.1), (0.084, 0.088)),
    "rpn": ("class-aware RPN", (46.0, 46.1), (0.142, 0.152)),
    "faster_rcnn": ("Faster R-CNN", (58.3, 59.9), (0.147, 0.192)),
    "rfcn": ("R-FCN", (47.1, 49.5), (0.143, 0.169)),
}
CHANNELS = {"deeplab": 1024, "rpn": 1024, "faster_rcnn": 256, "rfcn": 1024}  # section 2.3
HEADS: dict[str, dict[str, Any]] = {"rpn": {}, "faster_rcnn": {"units": (1024, 1024)}, "rfcn": {}}


def main() -> None:
    """Measures what has not been measured, and writes the table."""
    chosen = options("costs", "Weights and time, plain and deformable.", seeds=1)
    size, repeats = ((64, 64), 1) if chosen.quick else ((224, 320), 7)
    results = {
        kind: kept(chosen.output / f"{kind}.json", lambda kind=kind: measure(kind, size, repeats))
        for kind in PAPER
    }
    write_section(chosen.docs / "experiments.md", "costs", report(results))


def build(kind: str, deformable: bool) -> tf.keras.Model:
    """Returns a compiled network, as the paper has them but for the ResNet's depth."""
    backbone = tf.keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    arguments: dict[str, Any] = {
        "deformable": deformable,
        "dilate_last_stage": True,
        "channels": CHANNELS[kind],
    }
    if kind == "deeplab":
        model = models.deeplab(backbone, CLASSES + 1, **arguments)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(1e-4), loss)
        return model
    model = models.detector(
        backbone, CLASSES, kind, head_arguments=HEADS[kind], rpn_units=512, **arguments
    )
    model.compile(tf.keras.optimizers.SGD(1e-4))
    return model


def measure(kind: str, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Returns weights, and medians of the seconds that a forward pass and a step take."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[1, *size, 3]).astype(np.float32)
    targets: Any = rng.integers(0, CLASSES, [1, *size])
    if kind != "deeplab":
        corners = np.array([[[8, 8, 50, 40], [20, 10, 60, 60]]], np.float32)
        targets = {"boxes": corners, "labels": np.array([[3, 7]])}
    networks = [build(kind, deformable) for deformable in (False, True)]
    actions: list[Callable[[], Any]] = []
    for network in networks:
        forward = tf.function(network.call)
        actions.append(lambda forward=forward: forward(tf.constant(images)))
        actions.append(lambda network=network: network.train_on_batch(images, targets))
    times: list[list[float]] = [[] for _ in actions]
    for repeat in range(repeats + 1):  # the first one traces
        for action, seconds in zip(actions, times, strict=True):
            started = time.perf_counter()
            tf.nest.map_structure(np.asarray, action())
            if repeat:
                seconds.append(time.perf_counter() - started)
    forward_plain, step_plain, forward, step = (float(np.median(seconds)) for seconds in times)
    result = {
        "weights": [network.count_params() for network in networks],
        "forward": [forward_plain, forward],
        "step": [step_plain, step],
    }
    print(f"{kind}: {result}", flush=True)
    return result


def report(results: dict[str, dict[str, Any]]) -> str:
    """Returns the table."""
    rows = []
    for kind, result in results.items():
        title, weights, seconds = PAPER[kind]
        one, other = (count / 1e6 for count in result["weights"])
        row = [title, f"{one:.1f} -> {other:.1f} M"]
        for times in (result["forward"], result["step"]):
            row.append(f"{times[0]:.3f} -> {times[1]:.3f} s, x{times[1] / times[0]:.2f}")
        row.append(f"{weights[0]:.1f} -> {weights[1]:.1f} M")
        row.append(f"{seconds[0]:.3f} -> {seconds[1]:.3f} s, x{seconds[1] / seconds[0]:.2f}")
        rows.append(row)
    return table(["network", "weights", "forward", "step", "paper: weights", "forward"], rows)


if __name__ == "__main__":
    main()
