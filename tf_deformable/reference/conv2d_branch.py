"""The convolution that predicts offsets and mask, in plain TensorFlow, and what it is made of."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_deformable._geometry.padding import Padding, explicit_padding, same_padding
from tf_deformable._geometry.sizes import Pair


def conv2d_branch(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    bias: tf.Tensor,
    *,
    num_masks: int,
    largest_mask: float,
    strides: Pair,
    padding: Padding,
    dilations: Pair,
) -> list[tf.Tensor]:
    """The branch of `DeformableConv2D` on NHWC tensors of one dtype, without the library.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C, D]`, D = G*kh*kw*2, or G*kh*kw*3 with a mask.
        bias: `[D]`.
        num_masks: 0 or 1.
        largest_mask: the mask is that times a sigmoid.
        strides: y and x.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: y and x.

    Returns:
        The offsets `[N, Ho, Wo, G*kh*kw*2]` and the masks `[N, Ho, Wo, G*kh*kw]`.
    """
    outputs = convolution(inputs, filters, strides=strides, padding=padding, dilations=dilations)
    return split_outputs(tf.nn.bias_add(outputs, bias), num_masks, largest_mask)


def split_outputs(outputs: tf.Tensor, num_masks: int, largest_mask: float) -> list[tf.Tensor]:
    """Returns the offsets and the masks that the outputs of the branch's filters are."""
    if num_masks == 0:
        return [outputs]
    channels = tf.shape(outputs)[3] if outputs.shape[3] is None else outputs.shape[3]
    samples = channels // 3
    offsets, logits = tf.split(outputs, [2 * samples, samples], axis=-1)
    return [offsets, mask_from_logits(logits, largest_mask)]


def convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    *,
    strides: Pair,
    padding: Padding,
    dilations: Pair,
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
    strides: Pair,
    padding: Padding,
    dilations: Pair,
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
    strides: Pair,
    padding: str,
    dilations: Pair,
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


def mask_from_logits(logits: tf.Tensor, largest_mask: float) -> tf.Tensor:
    """Returns the modulation, in (0, largest_mask), of which logits of zero give the half."""
    mask = tf.sigmoid(logits)
    return mask if largest_mask == 1.0 else largest_mask * mask
