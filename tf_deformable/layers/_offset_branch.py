"""What the branches that predict offsets have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.padding import maximum
from tf_deformable._geometry.sizes import Dim, dims, known
from tf_deformable.layers._base import OperatorLayer
from tf_deformable.ops.conv2d_branch import of_widened

_INITIALIZERS = ("offset_kernel_initializer", "offset_bias_initializer")
_REGULARIZERS = ("offset_kernel_regularizer", "offset_bias_regularizer")


class OffsetBranchLayer(OperatorLayer):
    """A layer that owns the branch which moves its samples. Arguments are those of the layers."""

    def __init__(
        self,
        *args: Any,
        offset_kernel_initializer: Any,
        offset_bias_initializer: Any,
        offset_kernel_regularizer: Any,
        offset_bias_regularizer: Any,
        offset_learning_rate_multiplier: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.offset_kernel_initializer = tf.keras.initializers.get(offset_kernel_initializer)
        self.offset_bias_initializer = tf.keras.initializers.get(offset_bias_initializer)
        self.offset_kernel_regularizer = tf.keras.regularizers.get(offset_kernel_regularizer)
        self.offset_bias_regularizer = tf.keras.regularizers.get(offset_bias_regularizer)
        self.offset_learning_rate_multiplier = self._finite_number(
            "offset_learning_rate_multiplier", offset_learning_rate_multiplier, at_least=0
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "offset_learning_rate_multiplier": self.offset_learning_rate_multiplier,
            **{
                name: tf.keras.initializers.serialize(getattr(self, name)) for name in _INITIALIZERS
            },
            **{
                name: tf.keras.regularizers.serialize(getattr(self, name)) for name in _REGULARIZERS
            },
        }

    def _add_offset_weights(self, kernel_shape: tuple[int, ...]) -> None:
        """Adds `offset_kernel`, the last axis of which are the outputs, and `offset_bias`."""
        self.offset_kernel = self._add_branch_weight(
            name="offset_kernel",
            shape=kernel_shape,
            initializer=self.offset_kernel_initializer,
            regularizer=self.offset_kernel_regularizer,
        )
        self.offset_bias = self._add_branch_weight(
            name="offset_bias",
            shape=kernel_shape[-1:],
            initializer=self.offset_bias_initializer,
            regularizer=self.offset_bias_regularizer,
        )

    def _scaled_gradient(self, branch_outputs: tf.Tensor) -> tf.Tensor:
        """Returns what the branch predicts; its gradient is multiplied on the way back."""
        if self.offset_learning_rate_multiplier == 1.0:
            return branch_outputs
        return scale_gradient(branch_outputs, self.offset_learning_rate_multiplier)

    def _mask_start(self, mask_initial_value: Any) -> float:
        """Returns the argument `mask_initial_value` of layers that may have a mask."""
        if mask_initial_value not in (0.5, 1.0):
            raise self._error("mask_initial_value", "must be 0.5 or 1.0", mask_initial_value)
        return float(mask_initial_value)


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
