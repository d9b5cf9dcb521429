"""Deformable convolution in plain TensorFlow: gather four corners, interpolate, multiply.

    y[n, p, f] = sum_{k, c} filters[k, c, f] * mask[n, p, g, k] * x(n, q[n, p, g, k])[c]
    q[n, p, g, k] = p * stride - pad + k * dilation + offsets[n, p, g, k]
    x(q) = sum_r max(0, 1 - |r_y - q_y|) * max(0, 1 - |r_x - q_x|) * x[r]

Input channel c belongs to offset group g = c // (C / G). Gradients are TensorFlow's own: floor is
held constant, so that the derivative at an integer coordinate is the one of the cell
`[floor(q), floor(q) + 1]`.
"""

from __future__ import annotations

import tensorflow as tf

from tf_deformable.reference._deformable_conv2d_geometry import (
    DeformableConv2DGeometry,
    Padding,
    deformable_conv2d_geometry,
)
from tf_deformable.reference._sizes import Dim, Pair


def deformable_conv2d(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    offsets: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    bias: tf.Tensor | None = None,
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    dilations: Pair = (1, 1),
) -> tf.Tensor:
    """Deformable convolution (DCNv1, with a mask DCNv2) on NHWC tensors, without the library.

    The user's entry point is `tf_deformable.deformable_conv2d`, which also normalises arguments;
    this function takes them normalised. It works with unknown static shapes, under
    `jit_compile=True`, and is differentiable any number of times.

    Args:
        inputs: `[N, H, W, C]`, float16, bfloat16, float32 or float64.
        filters: `[kh, kw, C/groups, F]`, the dtype of inputs, as all that follow.
        offsets: `[N, Ho, Wo, G*kh*kw*2]` in pixels of the inputs, last axis = (offset group, tap
            row, tap column, (dy, dx)), the last fastest.
        mask: `[N, Ho, Wo, G*kh*kw]`, last axis = (offset group, tap row, tap column), or None.
        bias: `[F]` or None.
        strides: (y, x).
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: (y, x).

    Returns:
        `[N, Ho, Wo, F]` in the dtype of inputs. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: static shapes or attributes break a rule of the operator.
    """
    geometry = deformable_conv2d_geometry(
        inputs,
        filters,
        offsets,
        mask,
        bias,
        strides=strides,
        padding=padding,
        dilations=dilations,
    )
    dtype = inputs.dtype
    compute_dtype = tf.float64 if dtype == tf.float64 else tf.float32

    y, x = _sampling_positions(tf.cast(offsets, compute_dtype), geometry)
    columns = _bilinear_samples(tf.cast(inputs, compute_dtype), y, x, geometry)
    if mask is not None:
        columns *= _taps_before_groups(tf.cast(mask, compute_dtype), geometry)[..., None]
    outputs = _contract(columns, tf.cast(filters, compute_dtype), geometry)
    if bias is not None:
        outputs = tf.nn.bias_add(outputs, tf.cast(bias, compute_dtype))  # unlike +, no broadcast
    return tf.cast(outputs, dtype)


def _sampling_positions(
    offsets: tf.Tensor, g: DeformableConv2DGeometry
) -> tuple[tf.Tensor, tf.Tensor]:
    """Coordinates y and x of every sample, each `[N, Ho, Wo, kh*kw, G]`, in pixels."""
    dtype = offsets.dtype

    def undeformed(output: Dim, kernel: Dim, stride: int, dilation: int, pad: Dim) -> tf.Tensor:
        starts = tf.range(output, dtype=tf.int64) * stride - pad
        return tf.cast(starts[:, None] + tf.range(kernel, dtype=tf.int64) * dilation, dtype)

    base_y = undeformed(
        g.output_height, g.kernel_height, g.strides[0], g.dilations[0], g.pad_top
    )  # [Ho, kh]
    base_x = undeformed(
        g.output_width, g.kernel_width, g.strides[1], g.dilations[1], g.pad_left
    )  # [Wo, kw]
    rows = tf.repeat(base_y, g.kernel_width, axis=1)  # [Ho, kh*kw], tap columns fastest
    columns = tf.tile(base_x, [1, g.kernel_height])  # [Wo, kh*kw]

    offsets = _taps_before_groups(offsets, g, 2)  # [N, Ho, Wo, kh*kw, G, 2]
    y = offsets[..., 0] + rows[:, None, :, None]
    x = offsets[..., 1] + columns[:, :, None]
    return y, x


def _taps_before_groups(tensor: tf.Tensor, g: DeformableConv2DGeometry, *last: int) -> tf.Tensor:
    """`[N, Ho, Wo, G*kh*kw*last]` to `[N, Ho, Wo, kh*kw, G, last]`."""
    shape = [g.batch, g.output_height, g.output_width, g.offset_groups, g.taps, *last]
    axes = [0, 1, 2, 4, 3, *range(5, 5 + len(last))]
    return tf.transpose(tf.reshape(tensor, shape), axes)


def _bilinear_samples(
    inputs: tf.Tensor, y: tf.Tensor, x: tf.Tensor, g: DeformableConv2DGeometry
) -> tf.Tensor:
    """Interpolated inputs at (y, x): `[N, Ho, Wo, kh*kw, G, C/G]`."""
    dtype = inputs.dtype
    height, width = tf.cast(g.height, dtype), tf.cast(g.width, dtype)

    # A position that touches no pixel, +-inf included, moves to a finite one that touches none
    # either: its value and its gradients are zero. NaN in one coordinate becomes NaN in both.
    is_nan = tf.math.is_nan(y) | tf.math.is_nan(x)
    y_or_far = tf.where((y < -1) | (y >= height), tf.constant(-2, dtype), y)
    x_or_far = tf.where((x < -1) | (x >= width), tf.constant(-2, dtype), x)
    y, x = tf.where(is_nan, y + x, y_or_far), tf.where(is_nan, y + x, x_or_far)

    top, left = tf.stop_gradient(tf.floor(y)), tf.stop_gradient(tf.floor(x))
    down, right = y - top, x - left  # in [0, 1)

    # One row per pixel and offset group. The pixel after the last is zero and stands for all that
    # lies outside, so that every gather is in range, on an empty map too.
    pixels = g.height * g.width
    rows = tf.reshape(inputs, [g.batch, pixels, g.channels])
    rows = tf.pad(rows, [[0, 0], [0, 1], [0, 0]])
    group_size = g.channels // g.offset_groups
    rows = tf.reshape(rows, [g.batch * (pixels + 1) * g.offset_groups, group_size])

    images = tf.reshape(tf.range(g.batch, dtype=tf.int64), [g.batch, 1, 1, 1, 1])
    offset_groups = tf.range(g.offset_groups, dtype=tf.int64)

    def corner(row: tf.Tensor, column: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row = tf.cast(tf.where(inside, row, 0), tf.int64)
        column = tf.cast(tf.where(inside, column, 0), tf.int64)
        pixel = tf.where(inside, row * g.width + column, pixels)
        index = (images * (pixels + 1) + pixel) * g.offset_groups + offset_groups
        return weight[..., None] * tf.gather_nd(rows, index[..., None])

    return (
        corner(top, left, (1 - down) * (1 - right))
        + corner(top, left + 1, (1 - down) * right)
        + corner(top + 1, left, down * (1 - right))
        + corner(top + 1, left + 1, down * right)
    )


def _contract(columns: tf.Tensor, filters: tf.Tensor, g: DeformableConv2DGeometry) -> tf.Tensor:
    """Sum over taps and channels of each group: `[N, Ho, Wo, F]`."""
    depth = g.taps * g.group_channels
    columns = tf.reshape(columns, [g.output_pixels, g.taps, g.groups, g.group_channels])
    columns = tf.transpose(columns, [2, 0, 1, 3])
    columns = tf.reshape(columns, [g.groups, g.output_pixels, depth])
    filters = tf.reshape(filters, [depth, g.groups, g.filters // g.groups])
    filters = tf.transpose(filters, [1, 0, 2])
    outputs = tf.transpose(tf.matmul(columns, filters), [1, 0, 2])
    return tf.reshape(outputs, [g.batch, g.output_height, g.output_width, g.filters])
