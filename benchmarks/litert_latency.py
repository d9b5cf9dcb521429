"""Measures exported models in LiteRT beside TensorFlow with native operators.

    python benchmarks/litert_latency.py [--rounds 20]

Both have one thread, take turns, and are measured by the processor time of the process, which other
processes lengthen less than the time on the wall. The least of all rounds is printed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import tf_deformable  # noqa: E402

Call = Callable[[], object]


def convolution() -> tf.keras.Model:
    """Returns one modulated layer of 64 channels, with what predicts its offsets."""
    inputs = tf.keras.Input((40, 40, 64), batch_size=1)
    layer = tf_deformable.DeformableConv2D(
        64, 3, padding="same", modulated=True, offset_kernel_initializer="he_normal"
    )
    return tf.keras.Model(inputs, layer(inputs))


def pooling() -> tf.keras.Model:
    """Returns deformable pooling of 100 boxes."""
    inputs = [tf.keras.Input((40, 40, 64), batch_size=1), tf.keras.Input((100, 4), batch_size=1)]
    layer = tf_deformable.DeformableRoIPool(
        7, offset_units=(64,), offset_kernel_initializer="he_normal"
    )
    return tf.keras.Model(inputs, layer(inputs))


def attention() -> tf.keras.Model:
    """Returns attention of 300 queries, 8 heads of 32 channels, to two maps."""
    shapes = [(300, 256), (300, 1, 2), (40, 40, 256), (20, 20, 256)]
    inputs = [tf.keras.Input(shape, batch_size=1) for shape in shapes]
    layer = tf_deformable.MultiScaleDeformableAttention(num_levels=2)
    return tf.keras.Model(inputs, layer(inputs))


def arguments_of(model: tf.keras.Model) -> list[np.ndarray]:
    """Returns random inputs; boxes are in the map."""
    random = np.random.default_rng(0)
    arrays = []
    for tensor in model.inputs:
        array = random.uniform(size=tensor.shape).astype(np.float32)
        if tensor.shape[-1] == 4:
            array = np.concatenate([array[..., :2] * 20, array[..., 2:] * 20 + 19], axis=-1)
        arrays.append(array)
    return arrays


def calls(model: tf.keras.Model, folder: Path) -> dict[str, Call]:
    """Returns what is measured: calls of the same inputs."""
    arrays = arguments_of(model)
    function = tf.function(lambda *tensors: model(list(tensors) if len(tensors) > 1 else tensors))
    tensors = [tf.constant(array) for array in arrays]

    def native() -> Any:
        return function(*tensors).numpy()

    result: dict[str, Call] = {"TensorFlow, native": native}
    for weights in ("float32", "float16", "int8"):
        content = tf_deformable.export.tflite(model, folder / "model.tflite", weights)
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner()
        # Names of inputs are in the order of a call but for the numbers that Keras gives them.
        details = runner.get_input_details()
        by_shape = {tuple(one["shape"]): name for name, one in details.items()}
        named = {by_shape[array.shape]: array for array in arrays}

        def lite(runner: Any = runner, named: Any = named) -> Any:
            return next(iter(runner(**named).values()))

        difference = np.abs(lite() - native()).max()
        assert difference < (1e-3 if weights == "float32" else 1), (weights, difference)
        result[f"LiteRT, {weights} weights"] = lite
    return result


def measure(named: dict[str, Call], rounds: int) -> dict[str, float]:
    """Returns the least processor time of one call of each, in milliseconds."""
    least = dict.fromkeys(named, float("inf"))
    for number in range(1 + rounds):
        for name, call in named.items():
            start = time.process_time()
            call()
            if number > 0:  # The first one also compiles.
                least[name] = min(least[name], 1000 * (time.process_time() - start))
    return least


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="Measure LiteRT beside TensorFlow.")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print("| model | runtime | ms of processor time | times native |\n|---|---|---|---|")
    for make in (convolution, pooling, attention):
        with tempfile.TemporaryDirectory() as folder:
            tf.keras.utils.set_random_seed(0)
            least = measure(calls(make(), Path(folder)), rounds)
        first = next(iter(least.values()))
        for name, milliseconds in least.items():
            ratio = milliseconds / first
            print(f"| {make.__name__} | {name} | {milliseconds:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
