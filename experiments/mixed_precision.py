"""What mixed precision costs in accuracy, and saves in memory, under Keras' policies.

    python experiments/mixed_precision.py [--quick] [--seeds 3]
    TF_USE_LEGACY_KERAS=1 python experiments/mixed_precision.py    # in tf-keras

The deformable network of examples/digits_demo.py learns digits under each policy, from the same
seeds, with Keras' own loss scaling. Memory is what TensorFlow allocates at most during a training
step of one layer, above its inputs and weights; the number does not depend on the machine's load.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import digits
import digits_demo
from runs import (
    kept,
    mean_and_spread,
    of_networks,
    optimizer,
    options,
    paired,
    table,
    write_section,
)

from tf_deformable import DeformableConv2D

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
FULL = digits_demo.Budget(copies=1, epochs=5, max_scans=800)
QUICK = digits_demo.Budget(copies=1, epochs=1, max_scans=200)
BATCH, RATE = 32, 4e-3
FEATURES = (4, 64, 64, 256)  # of the layer whose memory is measured
KERAS = "Keras 3" if hasattr(tf.keras, "ops") else "tf-keras"


def main() -> None:
    """Trains what has not been trained, measures memory, and writes the table."""
    chosen = options("mixed_precision", "Accuracy and memory of mixed precision.", seeds=3)
    budget = QUICK if chosen.quick else FULL

    def path(policy: str, seed: int) -> Path:
        return chosen.output / KERAS / f"{policy}-{seed}.json"

    def learn(policy: str, seed: int) -> dict[str, Any]:
        return kept(path(policy, seed), functools.partial(accuracy, policy, seed, budget))

    results = of_networks(chosen, POLICIES, path, learn)
    memory = kept(
        chosen.output / "memory.json",
        lambda: {
            policy: [memory_of(policy, given) for given in (False, True)] for policy in POLICIES
        },
    )
    write_section(chosen.docs / "modes.md", f"mixed precision, {KERAS}", report(results, memory))


def accuracy(policy: str, seed: int, budget: digits_demo.Budget) -> dict[str, Any]:
    """Returns how many of the test images a network trained under a policy gets right, in %."""
    tf.keras.mixed_precision.set_global_policy(policy)
    tf.keras.utils.set_random_seed(seed)
    data = digits.load(seed=seed, copies=budget.copies, max_scans=budget.max_scans)
    model = digits_demo.build_deformable()
    steps = budget.epochs * -(-len(data.training) // BATCH)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(steps, RATE), loss)
    model.fit(
        data.training.images,
        data.training.labels,
        batch_size=BATCH,
        epochs=budget.epochs,
        verbose=0,
    )
    tf.keras.mixed_precision.set_global_policy("float32")
    right = model.predict(data.test.images, verbose=0).argmax(axis=-1) == data.test.labels
    return {"accuracy": 100 * float(np.mean(right)), "images": len(right)}


def memory_of(policy: str, given: bool) -> int:
    """Returns the peak of a training step in a new process, in bytes.

    Args:
        policy: of the layer.
        given: whether offsets and masks are inputs; otherwise the layer predicts them.
    """
    script = f"import mixed_precision; print(mixed_precision.peak_of_a_step({policy!r}, {given}))"
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(process.stdout.splitlines()[-1])


def peak_of_a_step(policy: str, given: bool) -> int:
    """Returns what a training step of a layer adds at most to what TensorFlow holds, in bytes.

    It must be the first thing that this process does with TensorFlow, which counts what it
    allocates on the CPU only if it is told to, by a function that Python does not know.
    """
    library = Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
    ctypes.CDLL(str(library))["_ZN3tsl23EnableCPUAllocatorStatsEv"]()
    layer = DeformableConv2D(
        FEATURES[-1],
        3,
        padding="same",
        modulated=True,
        offset_kernel_initializer="he_normal",
        offset_source="given" if given else "inputs",
        dtype=policy,
    )

    def inputs(*size: int) -> list[tf.Tensor]:
        features = tf.cast(tf.random.normal([*size, FEATURES[-1]]), layer.compute_dtype)
        return [features, tf.random.normal([*size, 18]), tf.ones([*size, 9])][: 3 if given else 1]

    @tf.function
    def step(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = layer(tensors if given else tensors[0])
        return tape.gradient(outputs, [tensors, layer.trainable_variables])

    step(inputs(1, 8, 8))  # makes the weights
    tensors = inputs(*FEATURES[:-1])
    run = step.get_concrete_function(tensors)
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    tf.config.experimental.reset_memory_stats("CPU:0")
    run(*tensors)
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def report(results: dict[str, dict[int, dict[str, Any]]], memory: dict[str, list[int]]) -> str:
    """Returns the table of accuracies and memory."""
    accuracies = {
        policy: {seed: run["accuracy"] for seed, run in runs.items()}
        for policy, runs in results.items()
    }
    rows = [
        [
            policy,
            mean_and_spread(of_seeds.values()),
            "" if policy == "float32" else paired(of_seeds, accuracies["float32"]),
            *(f"{peak / 1e6:.0f}" for peak in memory[policy]),
        ]
        for policy, of_seeds in accuracies.items()
    ]
    head = [f"{KERAS}, policy", "accuracy, %", "against float32"]
    return table([*head, "step, MB", "step with given offsets, MB"], rows)


if __name__ == "__main__":
    main()
