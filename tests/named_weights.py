"""Weights that follow from their names, so that networks need not lie in files.

`RandomState` promises the same numbers for ever. The recorder of tests/golden uses this module in
an environment without TensorFlow.
"""

from __future__ import annotations

import zlib

import numpy as np


def named_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 numbers for a weight of a ResNet, such that features stay near 1."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(1, np.int64)
    values = random.standard_normal(shape)
    if name.endswith("running_var"):
        return (0.8 + 0.4 * random.random_sample(shape)).astype(np.float32)
    if len(shape) == 4:  # of a convolution
        scale = np.sqrt((1 if "offset" in name else 2) / np.prod(shape[1:]))
    else:
        scale = 0.1
    values = values * scale
    if len(shape) == 1 and name.endswith("weight"):
        # What is added to the shortcut is smaller, or features grow from block to block.
        values += 0.3 if ".bn3" in name or ".conv3.norm" in name else 1.0
    return values.astype(np.float32)


def named_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """A state dict."""
    return {name: named_weight(name, tuple(shape)) for name, shape in shapes.items()}
