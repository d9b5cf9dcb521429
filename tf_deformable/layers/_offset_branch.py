"""What the branches that predict offsets are made of: convolution, mask and gradient scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from tf_deformable.ops.sampling import same_padding


def convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    *,
    strides: tuple[int, int],
    padding: str,
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
        padding: "SAME" or "VALID".
        dilations: y and x.

    Returns:
        `[N, Ho, Wo, F]`.
    """
    if max(strides) == 1 or max(dilations) == 1:
        return tf.nn.convolution(inputs, filters, strides, padding, dilations=dilations)
    if padding == "SAME":
        pads = same_padding(tf.shape(inputs)[1:3], tuple(filters.shape[:2]), strides, dilations)
        inputs = tf.pad(inputs, tf.pad(pads, [[1, 1], [0, 0]]))

    step_y, step_x = (math.gcd(*pair) for pair in zip(strides, dilations, strict=True))
    inputs = inputs[:, ::step_y, ::step_x]
    stride_y, stride_x = strides[0] // step_y, strides[1] // step_x
    dilations = (dilations[0] // step_y, dilations[1] // step_x)
    if max(dilations) == 1:
        return tf.nn.convolution(inputs, filters, (stride_y, stride_x), "VALID")
    # Both remain, as in stride 2 with dilation 3: every position is computed, some are kept.
    outputs = tf.nn.convolution(inputs, filters, 1, "VALID", dilations=dilations)
    return outputs[:, ::stride_y, ::stride_x]


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
