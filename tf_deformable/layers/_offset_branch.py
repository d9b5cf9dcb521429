"""What the branches that predict offsets are made of: convolution, mask and gradient scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.padding import Padding, explicit_padding, maximum, same_padding
from tf_deformable._geometry.sizes import Dim, dims, known
from tf_deformable.ops._second_order import vector_jacobian_product


def convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    *,
    strides: tuple[int, int],
    padding: Padding,
    dilations: tuple[int, int],
) -> tf.Tensor:
    """Dense 2D convolution, with gradients where strides and dilations both exceed 1.

    Equals `tf.nn.conv2d`, which has no gradient for dilations above 1 on the CPU;
    `tf.nn.convolution` has it, for strides or dilations, not both. With g = gcd(stride, dilation)
    output p reads `stride*p + dilation*k = g * (stride/g * p + dilation/g * k)`: every g-th pixel
    is enough, and there remains a convolution in which the common cases have only one of the two.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C, F]`.
        strides: y and x.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: y and x.

    Returns:
        `[N, Ho, Wo, F]`.
    """
    inputs, scheme = _padded(inputs, filters, strides, padding, dilations)
    if max(strides) == 1 or max(dilations) == 1:
        return _convolution(inputs, filters, strides, scheme, dilations)
    if scheme == "SAME":
        pads = same_padding(tf.shape(inputs)[1:3], tuple(filters.shape[:2]), strides, dilations)
        inputs = tf.pad(inputs, tf.pad(pads, [[1, 1], [0, 0]]))
        if inputs.shape[3] is None:  # Padding by unknown sizes hides what LiteRT needs to know.
            batch, height, width, _ = tf.unstack(tf.shape(inputs), num=4)
            inputs = tf.reshape(inputs, [batch, height, width, filters.shape[2]])

    step_y, step_x = (math.gcd(*pair) for pair in zip(strides, dilations, strict=True))
    inputs = inputs[:, ::step_y, ::step_x]
    stride_y, stride_x = strides[0] // step_y, strides[1] // step_x
    dilations = (dilations[0] // step_y, dilations[1] // step_x)
    if max(dilations) == 1:
        return _convolution(inputs, filters, (stride_y, stride_x), "VALID", (1, 1))
    # Both remain, as in stride 2 with dilation 3: every position is computed, some are kept.
    outputs = _convolution(inputs, filters, (1, 1), "VALID", dilations)
    return outputs[:, ::stride_y, ::stride_x]


def _padded(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    strides: tuple[int, int],
    padding: Padding,
    dilations: tuple[int, int],
) -> tuple[tf.Tensor, str]:
    """Returns inputs with which "SAME" or "VALID" is what the padding is, and which of the two."""
    if isinstance(padding, str):
        return inputs, padding
    extents = [(size - 1) * rate for size, rate in zip(filters.shape[:2], dilations, strict=True)]
    same = tuple((extent // 2, extent - extent // 2) for extent in extents)
    if padding == same and max(strides) == 1:  # It spares a copy of the inputs.
        return inputs, "SAME"
    if padding == ((0, 0), (0, 0)):
        return inputs, "VALID"
    return tf.pad(inputs, explicit_padding(padding)), "VALID"


def _convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    strides: tuple[int, int],
    padding: str,
    dilations: tuple[int, int],
) -> tf.Tensor:
    # oneDNN gives the convolution of an empty batch the shape of its inputs: there is one image.
    is_empty = inputs.shape[0] == 0
    if is_empty:
        inputs = tf.pad(inputs, [[0, 1], [0, 0], [0, 0], [0, 0]])
    # Without data_format the gradient has no gradient in eager mode.
    outputs = tf.nn.convolution(
        inputs, filters, strides, padding, data_format="NHWC", dilations=dilations
    )
    return outputs[:0] if is_empty else outputs


def wide_convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    dilations: tuple[int, int] = (1, 1),
) -> tf.Tensor:
    """`convolution` in the dtype of the filters, of inputs that may be narrower."""

    def compute(wide: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
        return convolution(wide, filters, strides=strides, padding=padding, dilations=dilations)

    return _of_widened(compute, inputs, filters)


def wide_depthwise_convolution(
    inputs: tf.Tensor, filters: tf.Tensor, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    """Depthwise convolution in the dtype of the filters, of inputs that may be narrower.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C, 1]`.
        strides: y and x. They may differ, which TensorFlow's may not.
        padding: "VALID", or "SAME" if strides are 1.

    Returns:
        `[N, Ho, Wo, C]`.
    """
    step = strides[0] if strides[0] == strides[1] else 1

    def compute(wide: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
        outputs = tf.nn.depthwise_conv2d(wide, filters, [1, step, step, 1], padding)
        if not wide.shape[0]:
            # oneDNN gives the convolution of an empty batch the shape of its inputs.
            batch, height, width, channels = tf.unstack(tf.shape(wide), num=4)
            if padding == "VALID":
                height = (height - filters.shape[0]) // step + 1
                width = (width - filters.shape[1]) // step + 1
            outputs = tf.reshape(outputs, [batch, height, width, channels])
        return outputs[:, :: strides[0] // step, :: strides[1] // step]

    return _of_widened(compute, inputs, filters)


def pad_or_crop(inputs: tf.Tensor, pads: Sequence[tuple[Dim, Dim]]) -> tf.Tensor:
    """Adds zeros around maps `[N, H, W, C]`; takes pixels away where pads are negative.

    Args:
        inputs: the maps.
        pads: before and after, of rows and columns.
    """
    if all(known(pad) and pad == 0 for axis in pads for pad in axis):
        return inputs
    (top, bottom), (left, right) = ([maximum(-pad, 0) for pad in axis] for axis in pads)
    height, width = dims(inputs, 4)[1:3]
    inputs = inputs[:, top : height - bottom, left : width - right]
    return tf.pad(inputs, [[0, 0], *([maximum(pad, 0) for pad in axis] for axis in pads), [0, 0]])


def _of_widened(
    compute: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], inputs: tf.Tensor, filters: tf.Tensor
) -> tf.Tensor:
    """Computes from inputs in the dtype of the filters.

    Widened inputs are as large as twice the inputs: none are kept for the gradient, which widens
    them once more.
    """
    dtype = filters.dtype
    if inputs.dtype == dtype:
        return compute(inputs, filters)

    @tf.custom_gradient
    def of_widened(inputs: tf.Tensor, filters: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # After the upstream gradient, or TensorFlow would keep and use the one from before.
            with tf.control_dependencies([upstream]):
                wide = tf.cast(inputs, dtype)
            of_inputs, of_filters = vector_jacobian_product(compute, [wide, filters], upstream)
            return tf.cast(of_inputs, inputs.dtype), of_filters

        return compute(tf.cast(inputs, dtype), filters), gradient

    return of_widened(inputs, filters)


def mask_from_logits(logits: tf.Tensor, initial_value: float) -> tf.Tensor:
    """Returns the modulation: in (0, 1) if logits of zero are to give 0.5, in (0, 2) for 1.0."""
    mask = tf.sigmoid(logits)
    return mask if initial_value == 0.5 else 2 * mask


def scale_gradient(tensor: tf.Tensor, factor: float) -> tf.Tensor:
    """Returns the tensor; the gradient that reaches it is multiplied by `factor`."""

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.identity(x), lambda upstream: upstream * tf.cast(factor, upstream.dtype)

    return identity(tensor)
