"""What the branches that predict offsets have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_deformable._geometry.padding import maximum
from tf_deformable._geometry.sizes import Dim, dims, known
from tf_deformable.ops.conv2d_branch import of_widened


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

    return of_widened(compute, inputs, filters)


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


def scale_gradient(tensor: tf.Tensor, factor: float) -> tf.Tensor:
    """Returns the tensor; the gradient that reaches it is multiplied by `factor`."""

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.identity(x), lambda upstream: upstream * tf.cast(factor, upstream.dtype)

    return identity(tensor)
