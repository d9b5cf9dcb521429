"""Keras layer: DCNv4, the operator of FlashInternImage with its projections."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.layers._dcn_base import DCNLayer
from tf_deformable.ops.dcnv3 import dcnv4


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DCNv4(DCNLayer):
    """The operator of FlashInternImage: DCNv3 without what its weights are bounded by.

    Every output pixel is, in each of `groups` groups of channels, a weighted sum of samples of the
    projected input: `kernel_size` taps that move by offsets. Offsets and weights are linear
    functions of the input, or of a depthwise convolution of it; no softmax follows. The sums are
    projected once more.

    The weights of an untrained layer are zero, and so are its sums: what surrounds it must add its
    output to its input, as FlashInternImage does.

    Example:
        >>> layer = tf_deformable.layers.DCNv4(groups=4)
        >>> layer(tf.random.normal([2, 14, 14, 64])).shape
        TensorShape([2, 14, 14, 64])

    Args:
        groups: int, groups of channels G, which share offsets and weights; must divide the
            channels.
        kernel_size: int or (height, width), the taps.
        strides: int or (y, x). Offsets and weights are functions of every stride-th pixel.
        padding: "valid", "same", or explicit: a non-negative int, (y, x) or ((top, bottom), (left,
            right)).
        data_format: "channels_last", "channels_first" or None for Keras' setting.
        dilation_rate: int or (y, x), between the taps.
        offset_scale: float, factor of the offsets and of the distance of the taps from the center.
        remove_center: bool, whether there is no tap at the center; `kernel_size` must then be odd.
        center_feature_scale: bool, whether a share of each sum, a function of the sums for each
            group, is replaced by the projected pixel itself. Needs strides of 1 and padding "same".
            An untrained layer replaces one half.
        depthwise_kernel_size: int or (height, width) of a depthwise convolution of the input that
            offsets and weights are functions of, or None for none.
        use_projections: bool, whether the input and the sums are projected.
        use_bias: bool, whether the projections have biases.
        use_output_bias: bool, whether the projection of the sums has one, or None for `use_bias`.
            (FlashInternImage has False.)
        kernel_initializer: initializer of the kernels of the two projections.
        bias_initializer: initializer of their biases.
        depthwise_initializer: initializer of the kernel of the depthwise convolution.
        kernel_regularizer: regularizer of the kernels of the two projections.
        bias_regularizer: regularizer of their biases.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Weights:
        In this order, and what FlashInternImage calls them; C channels, K the number of taps:
        input_kernel, input_bias: `[C, C]` and `[C]`, if use_projections; value_proj.
        depthwise_kernel, depthwise_bias: `[height, width, C, 1]` and `[C]`, if
            depthwise_kernel_size; offset_mask_dw.
        offset_kernel, offset_bias: `[C, G*K*2]` and its last axis, ordered (group, tap row, tap
            column, (dy, dx)), in pixels of the input. They start at zero.
        mask_kernel, mask_bias: `[C, G*K]` and its last axis, ordered (group, tap row, tap column).
            They start at zero. With those of the offsets: offset_mask, which
            `tf_deformable.convert.offsets_and_mask_from_dcnv4` takes apart (once transposed: a
            kernel of PyTorch is).
        center_kernel, center_bias: `[C, G]` and `[G]`, if center_feature_scale;
            center_feature_scale_proj_weight and center_feature_scale_proj_bias. They start at zero.
        output_kernel, output_bias: `[C, C]` and `[C]`, if use_projections; output_proj.

    Input shape:
        `[batch, height, width, C]` for channels_last, `[batch, C, height, width]` for
        channels_first. All but C may be unknown. (DCNv4's own takes them as `[batch, height *
        width, C]`.)

    Output shape:
        `[batch, new_height, new_width, C]`, or `[batch, C, new_height, new_width]`; sizes as
        `keras.layers.Conv2D` has them. In the compute dtype; offsets and weights are computed in
        float32 (float64) under every policy.

    Raises:
        ValueError: an argument breaks its rule, `groups` does not divide the channels, or the
            dilated kernel does not fit into the input.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Xiong et al., Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for
        Vision Applications, CVPR 2024, section 3.
    """

    _operator = dcnv4

    def __init__(
        self,
        groups: int = 4,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[Any, Any] = "same",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = 1,
        *,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        center_feature_scale: bool = False,
        depthwise_kernel_size: int | tuple[int, int] | None = None,
        use_projections: bool = True,
        use_bias: bool = True,
        use_output_bias: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            groups=groups,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            offset_scale=offset_scale,
            remove_center=remove_center,
            center_feature_scale=center_feature_scale,
            depthwise_kernel_size=depthwise_kernel_size,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            depthwise_initializer=depthwise_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            **kwargs,
        )
        self.use_projections = self._boolean("use_projections", use_projections)
        if use_output_bias is not None:
            use_output_bias = self._boolean("use_output_bias", use_output_bias)
        self.use_output_bias = use_output_bias

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "use_projections": self.use_projections,
            "use_output_bias": self.use_output_bias,
        }

    def _build(self, channels: int) -> None:
        if self.use_projections:
            self._add_projection("input", channels, channels)
        if self.depthwise_kernel_size is not None:
            self._add_depthwise(self.depthwise_kernel_size, channels)
        self._add_predictions(channels)
        if self.use_projections:
            self._add_projection("output", channels, channels, use_bias=self.use_output_bias)

    def _hidden(self, features: tf.Tensor, training: bool | None) -> tf.Tensor:
        del training
        if self.depthwise_kernel_size is not None:
            return self._depthwise(features)
        return self._cast_sampling(self._centers(features))

    def _mask(self, logits: tf.Tensor) -> tf.Tensor:
        return logits

    def _center_source(self, hidden: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        del hidden
        return self._cast_sampling(sums)

    def _project_input(self, features: tf.Tensor) -> tf.Tensor:
        return super()._project_input(features) if self.use_projections else features

    def _project_output(self, sums: tf.Tensor) -> tf.Tensor:
        return super()._project_output(sums) if self.use_projections else sums
