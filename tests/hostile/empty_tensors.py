"""Calls the compiled operators with tensors that have no elements, and sizes beyond all memory.

A script: it makes each call and prints its number before, so that the last line of a process that
died, or did not come to an end, names it; then how they ended. All of these calls are right. What
they compute has at most a few numbers, so that they take no time.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable import _native

LARGEST = 2**31 - 1
DTYPES = [tf.float16, tf.float32, tf.float64]  # sums are wider than half precision

Call = Callable[[], Any]


def _operator(name: str, **arguments: Any) -> Call:
    return lambda: getattr(_native.load(), f"tf_deformable_{name}")(**arguments)


def _convolutions(dtype: tf.DType) -> Iterator[Call]:
    # Of the first, 2**64 bytes would be the sums of a block of 4 channels.
    for inputs, strides, output in (
        ([0, 2**30, 2**30, 4], 2**30, [0, 1, 1]),
        ([0, LARGEST, LARGEST, 4], LARGEST, [0, 1, 1]),
        ([2**40, 0, LARGEST, 4], LARGEST, [2**40, 0, 1]),
        ([2**28, LARGEST, 0, 4], LARGEST, [2**28, 1, 0]),
    ):
        window = {"strides": [strides] * 2, "dilations": [1, 1], "padding": "SAME"}
        for filters in ([1, 1, 4, 4], [1, 1, 2, 4], [1, 1, 1, 4]):
            given = {
                "inputs": tf.zeros(inputs, dtype),
                "filters": tf.ones(filters, dtype),
                "offsets": tf.zeros([*output, 2], dtype),
                "mask": [tf.zeros([*output, 1], dtype)],
                **window,
            }
            yield _operator("conv2d", bias=[], **given)
            yield _operator("conv2d_grad", grad_output=tf.zeros([*output, 4], dtype), **given)
        wide = tf.float64 if dtype == tf.float64 else tf.float32
        given = {"inputs": tf.zeros(inputs, dtype), "filters": tf.ones([1, 1, 4, 3], wide)}
        mask, offsets = tf.zeros([*output, 1], wide), tf.zeros([*output, 2], wide)
        yield _operator("conv2d_branch", bias=tf.ones([3], wide), num_masks=1, **given, **window)
        yield _operator(
            "conv2d_branch_grad", mask=[mask], grad_offsets=offsets, grad_mask=[mask],
            **given, **window,
        )  # fmt: skip


def _roi_pools(dtype: tf.DType) -> Iterator[Call]:
    # Maps of a group of 2**23, of which a box reads one.
    for inputs, group_size in (
        ([2**62, 0, 5, 4], 1),
        ([2**60, 1, 0, 4], 2),
        ([0, 1, 1, 2**46], 2**23),
        ([0, 1, 1, LARGEST**2], LARGEST),
        ([0, 2**62, 2**62, 1], 1),
        ([1, 0, 2**63 - 1, 1], 1),
    ):
        depth = inputs[3] // group_size**2
        for boxes in (0, 1):
            given = {
                "inputs": tf.zeros(inputs, dtype),
                "boxes": tf.ones([boxes, 4]),
                "box_indices": tf.fill([boxes], 0 if inputs[0] else -1),
                "offsets": [tf.zeros([boxes, 1, 1, 1, 2], dtype)],
                "mask": [tf.ones([boxes, 1, 1], dtype)],
                "output_size": [1, 1],
                "group_size": group_size,
                "samples_per_bin": 0,
                "aligned": True,
            }
            yield _operator("roi_pool", **given)
            upstream = tf.ones([boxes, 1, 1, depth], dtype)
            yield _operator("roi_pool_grad", grad_output=upstream, **given)


def _attentions(dtype: tf.DType) -> Iterator[Call]:
    for batch, queries, heads, depth, points in (
        (2**46, 0, 1, 4, 2),
        (2**46, 3, 0, 4, 2),
        (2**30, 2**18, 0, 4, 2),
        (0, 2**20, 2**20, 4, 2),
        (1, 2**47, 0, 1, 2**16),
        (1, 0, 2**40, 8, 2**20),
        (2**40, 0, 2, 4, 2**60),
    ):
        for pixels in (0, 6):
            if pixels and batch * heads:
                continue  # a value with elements
            samples = [batch, queries, heads, 1, points]
            given = {
                "value": tf.zeros([batch, pixels, heads, depth], dtype),
                "spatial_shapes": tf.constant([[2, 3]] if pixels else [[0, LARGEST]]),
                "sampling_locations": tf.zeros([*samples, 2], dtype),
                "attention_weights": tf.zeros(samples, dtype),
            }
            yield _operator("multi_scale_deformable_attention", **given)
            upstream = tf.zeros([batch, queries, heads * depth], dtype)
            yield _operator("multi_scale_deformable_attention_grad", grad_output=upstream, **given)


def main() -> None:
    """Makes the calls."""
    ends: collections.Counter[str] = collections.Counter()
    for of_operator in (_convolutions, _roi_pools, _attentions):
        for dtype in DTYPES:
            for number, call in enumerate(of_operator(dtype)):
                print(of_operator.__name__, dtype.name, number, flush=True)
                for tensor in tf.nest.flatten(call()):
                    if 0 not in tensor.shape:  # NumPy has no empty arrays of such sizes.
                        np.testing.assert_array_equal(tensor, tf.zeros_like(tensor))
                ends["no error"] += 1
    print(dict(ends))


if __name__ == "__main__":
    main()
