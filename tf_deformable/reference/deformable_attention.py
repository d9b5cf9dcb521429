"""Multi-scale deformable attention in plain TensorFlow: gather four corners, interpolate, add up.

    y[n, q, h] = sum_{l, p} weights[n, q, h, l, p] * x_l(locations[n, q, h, l, p])

x_l(q) and its gradients are those of `tf_deformable.reference._bilinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_deformable._geometry.deformable_attention import (
    DeformableAttentionGeometry,
    deformable_attention_geometry,
)
from tf_deformable._geometry.sizes import shape_of
from tf_deformable.reference._bilinear import cells_of, interpolated


def multi_scale_deformable_attention(
    value: tf.Tensor,
    spatial_shapes: tf.Tensor,
    sampling_locations: tf.Tensor,
    attention_weights: tf.Tensor,
    *,
    coordinates: str = "normalized",
    num_points: Sequence[int] = (),
) -> tf.Tensor:
    """Multi-scale deformable attention without the library.

    The user's entry point is `tf_deformable.multi_scale_deformable_attention`, which also
    normalises arguments; this function takes them normalised. It works with unknown static shapes,
    under `jit_compile=True`, and is differentiable any number of times.

    Args:
        value: `[N, S, heads, D]`, float16, bfloat16, float32 or float64: the pixels of the levels
            one after the other, each row by row.
        spatial_shapes: `[levels, 2]`, height and width of each level, int32.
        sampling_locations: `[N, Q, heads, levels, points, 2]`, or `[N, Q, heads, P, 2]` with
            num_points, (y, x).
        attention_weights: `[N, Q, heads, levels, points]`, or `[N, Q, heads, P]`, the dtype of
            sampling_locations.
        coordinates: "normalized": 0 and 1 are the outer edges of the map; "pixels": 0 is the
            centre of the first pixel.
        num_points: points of each level, P in all, or nothing where all levels have as many.

    Returns:
        `[N, Q, heads*D]` in the dtype of value. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: static shapes or constant sizes of levels break a rule of the operator.
    """
    g = deformable_attention_geometry(
        value, spatial_shapes, sampling_locations, attention_weights, num_points
    )
    dtype = value.dtype
    compute_dtype = tf.float64 if dtype == tf.float64 else tf.float32

    # Tensors have few axes, and sizes are sliced: LiteRT takes no more, and unpacks no integers.
    locations = tf.reshape(
        tf.cast(sampling_locations, compute_dtype), shape_of(g.rows, g.samples, 2)
    )
    y, x = tf.unstack(locations, num=2, axis=-1)
    sizes = tf.cast(spatial_shapes, tf.int64)
    heights, widths = sizes[:, 0], sizes[:, 1]
    first_pixels = tf.cumsum(heights * widths, exclusive=True)
    heights, widths, first_pixels = (
        _of_samples(of_levels, g) for of_levels in (heights, widths, first_pixels)
    )
    if coordinates == "normalized":
        y = y * tf.cast(heights, compute_dtype) - 0.5
        x = x * tf.cast(widths, compute_dtype) - 0.5
    maps = _Maps(heights, widths, first_pixels)
    samples = _bilinear_samples(tf.cast(value, compute_dtype), maps, y, x, g)
    weights = tf.reshape(tf.cast(attention_weights, compute_dtype), shape_of(g.rows, g.samples, 1))
    outputs = tf.reduce_sum(samples * weights, axis=1)
    outputs = tf.reshape(outputs, shape_of(g.batch, g.queries, g.heads * g.depth))
    return tf.cast(outputs, dtype)


def _of_samples(of_levels: tf.Tensor, g: DeformableAttentionGeometry) -> tf.Tensor:
    """What is known of each level, `[levels]`, for each sample of a row: `[samples]`."""
    if isinstance(g.points, tuple):
        return tf.gather(of_levels, np.repeat(np.arange(len(g.points)), g.points))
    return tf.repeat(of_levels, g.points)


class _Maps(NamedTuple):
    """Of the map that each sample of a row reads, `[samples]`, int64."""

    heights: tf.Tensor
    widths: tf.Tensor
    first_pixels: tf.Tensor  # where it begins in value


def _bilinear_samples(
    value: tf.Tensor, maps: _Maps, y: tf.Tensor, x: tf.Tensor, g: DeformableAttentionGeometry
) -> tf.Tensor:
    """Interpolated values at (y, x), `[N*Q*heads, samples]`: `[N*Q*heads, samples, D]`."""
    heights, widths = maps.heights, maps.widths
    cells = cells_of(y, x, heights, widths)

    # One row for each head of each pixel, and one of zeros that pixels off the map read.
    rows = tf.reshape(value, shape_of(g.batch * g.pixels * g.heads, g.depth))
    rows = tf.pad(rows, [[0, 1], [0, 0]])
    zeros = tf.cast(g.batch * g.pixels * g.heads, tf.int64)

    # int64: TensorFlow computes with int32 on the host when all else is on a GPU.
    images = tf.reshape(tf.range(g.batch, dtype=tf.int64) * g.pixels * g.heads, [-1, 1, 1])
    queries = tf.zeros([g.queries, 1], tf.int64)  # They all read the same.
    of_rows = images + queries + tf.range(g.heads, dtype=tf.int64)
    origins = tf.reshape(of_rows, shape_of(g.rows, 1)) + maps.first_pixels * g.heads
    samples = shape_of(g.rows, g.samples, 1)

    def pixels(down: int, right: int) -> tf.Tensor:
        r, c = cells.rows + down, cells.columns + right
        on_map = (r >= 0) & (r < heights) & (c >= 0) & (c < widths)
        index = tf.where(on_map, origins + (r * widths + c) * g.heads, zeros)
        return tf.gather_nd(rows, tf.reshape(index, samples))

    return interpolated(cells, samples, pixels)
