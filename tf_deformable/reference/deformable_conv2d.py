"""Deformable convolution in plain TensorFlow: gather four corners, interpolate, multiply.

    y[n, p, f] = sum_{k, c} filters[k, c, f] * mask[n, p, g, k] * x(n, q[n, p, g, k])[c]
    q[n, p, g, k] = p * stride - pad + k * dilation + offsets[n, p, g, k]

Input channel c belongs to offset group g = c // (C / G). x(q) and its gradients are those of
`tf_deformable.reference._bilinear`.
"""

from __future__ import annotations

import tensorflow as tf

from tf_deformable._geometry.deformable_conv2d import (
    DeformableConv2DGeometry,
    deformable_conv2d_geometry,
)
from tf_deformable._geometry.padding import Padding, window_starts
from tf_deformable._geometry.sizes import Dim, Pair, known, shape_of
from tf_deformable.reference._bilinear import cells_of, interpolated


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
        columns *= _taps_before_groups(tf.cast(mask, compute_dtype), geometry)
    outputs = _contract(columns, tf.cast(filters, compute_dtype), geometry)
    if bias is not None:
        outputs = tf.nn.bias_add(outputs, tf.cast(bias, compute_dtype))  # unlike +, no broadcast
    return tf.cast(outputs, dtype)


def _sampling_positions(
    offsets: tf.Tensor, g: DeformableConv2DGeometry
) -> tuple[tf.Tensor, tf.Tensor]:
    """Coordinates y and x of every sample, each `[N, Ho, Wo, kh*kw*G]`, in pixels."""
    dtype = offsets.dtype

    def starts(output: Dim, stride: int, pad: Dim) -> tf.Tensor:
        return tf.expand_dims(window_starts(tf.range(output, dtype=tf.int64), stride, pad), 1)

    tap_rows = tf.range(g.kernel_height, dtype=tf.int64) * g.dilations[0]
    tap_rows = tf.repeat(tap_rows, g.kernel_width * g.offset_groups)  # [kh*kw*G]
    tap_columns = tf.range(g.kernel_width, dtype=tf.int64) * g.dilations[1]
    tap_columns = tf.tile(tf.repeat(tap_columns, g.offset_groups), [g.kernel_height])
    rows = starts(g.output_height, g.strides[0], g.pad_top) + tap_rows  # [Ho, kh*kw*G]
    columns = starts(g.output_width, g.strides[1], g.pad_left) + tap_columns  # [Wo, kh*kw*G]

    shape = shape_of(g.batch, g.output_height, g.output_width, g.taps * g.offset_groups)
    y, x = tf.unstack(_taps_before_groups(offsets, g, 2), num=2, axis=-1)
    y = tf.reshape(y, shape) + tf.expand_dims(tf.cast(rows, dtype), 1)
    x = tf.reshape(x, shape) + tf.cast(columns, dtype)
    return y, x


def _taps_before_groups(tensor: tf.Tensor, g: DeformableConv2DGeometry, last: int = 1) -> tf.Tensor:
    """`[N, Ho, Wo, G*kh*kw*last]` to `[N*Ho*Wo, kh*kw*G, last]`."""
    if not (known(g.offset_groups) and g.offset_groups == 1):
        tensor = tf.reshape(tensor, [g.output_pixels, g.offset_groups, g.taps, last])
        tensor = tf.transpose(tensor, [0, 2, 1, 3])
    return tf.reshape(tensor, [g.output_pixels, g.taps * g.offset_groups, last])


def _bilinear_samples(
    inputs: tf.Tensor, y: tf.Tensor, x: tf.Tensor, g: DeformableConv2DGeometry
) -> tf.Tensor:
    """Interpolated inputs at (y, x): `[N*Ho*Wo, kh*kw*G, C/G]`."""
    cells = cells_of(y, x, g.height, g.width)

    # One row per pixel and offset group. The zeros around the map hold all four pixels of a
    # position that is far, and make every gather in range, on an empty map too.
    per_row = (g.width + 3) * g.offset_groups
    per_image = (g.height + 3) * per_row
    rows = tf.pad(inputs, [[0, 0], [2, 1], [2, 1], [0, 0]])
    rows = tf.reshape(rows, [-1, g.channels // g.offset_groups])

    # int64: TensorFlow computes with int32 on the host when all else is on a GPU.
    origins = tf.range(g.batch, dtype=tf.int64) * per_image + 2 * per_row + 2 * g.offset_groups
    offset_groups = tf.tile(tf.range(g.offset_groups, dtype=tf.int64), [g.taps])
    index = cells.rows * per_row + cells.columns * g.offset_groups
    index += tf.reshape(origins, [-1, 1, 1, 1]) + offset_groups

    samples = shape_of(g.output_pixels, g.taps * g.offset_groups, 1)
    index = tf.reshape(index, samples)

    def pixels(down: int, right: int) -> tf.Tensor:
        return tf.gather_nd(rows, index + (down * per_row + right * g.offset_groups))

    return interpolated(cells, samples, pixels)


def _contract(columns: tf.Tensor, filters: tf.Tensor, g: DeformableConv2DGeometry) -> tf.Tensor:
    """Sum over taps and channels of each group: `[N, Ho, Wo, F]`."""
    depth = g.taps * g.group_channels
    if known(g.groups) and g.groups == 1:
        columns = tf.reshape(columns, shape_of(g.output_pixels, depth))
        outputs = tf.matmul(columns, tf.reshape(filters, [depth, g.filters]))
    else:
        columns = tf.reshape(columns, shape_of(g.output_pixels, g.taps, g.groups, g.group_channels))
        columns = tf.transpose(columns, [2, 0, 1, 3])
        columns = tf.reshape(columns, shape_of(g.groups, g.output_pixels, depth))
        filters = tf.reshape(filters, [depth, g.groups, g.filters // g.groups])
        filters = tf.transpose(filters, [1, 0, 2])
        outputs = tf.transpose(tf.matmul(columns, filters), [1, 0, 2])
    return tf.reshape(outputs, shape_of(g.batch, g.output_height, g.output_width, g.filters))
