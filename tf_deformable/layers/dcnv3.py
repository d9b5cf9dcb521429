"""Keras layer: DCNv3, the operator of InternImage with its projections."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.layers._dcn_base import DCNLayer
from tf_deformable.ops.dcnv3 import dcnv3


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DCNv3(DCNLayer):
    """The operator of InternImage, where a transformer has its attention.

    Every output pixel is, in each of `groups` groups of channels, a weighted sum of samples of the
    projected input: `kernel_size` taps that move by offsets. Offsets, and weights that a softmax
    over the taps makes add up to 1, are linear functions of a branch over the same input: a
    depthwise convolution, normalisation, activation. The sums are projected once more.

    An untrained layer samples the regular grid, all taps with the same weight.

    Example:
        >>> layer = tf_deformable.layers.DCNv3(groups=4)
        >>> layer(tf.random.normal([2, 14, 14, 64])).shape
        TensorShape([2, 14, 14, 64])

        A block of InternImage-T:

        >>> def block(features, groups):
        ...     norms = [tf.keras.layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        ...     features += tf_deformable.layers.DCNv3(groups)(norms[0](features))
        ...     channels = features.shape[-1]
        ...     hidden = tf.keras.layers.Dense(4 * channels, activation="gelu")(norms[1](features))
        ...     return features + tf.keras.layers.Dense(channels)(hidden)
        >>> images = tf.keras.Input((None, None, 64))
        >>> model = tf.keras.Model(images, block(images, groups=4))
        >>> model(tf.zeros([1, 8, 9, 64])).shape
        TensorShape([1, 8, 9, 64])

    Args:
        groups: int, groups of channels G, which share offsets and weights; must divide the
            channels. (InternImage has 16 channels in each.)
        kernel_size: int or (height, width), the taps.
        strides: int or (y, x). The branch makes the same steps.
        padding: "valid", "same", or explicit: a non-negative int, (y, x) or ((top, bottom), (left,
            right)).
        data_format: "channels_last", "channels_first" or None for Keras' setting.
        dilation_rate: int or (y, x), between the taps. (The branch's convolution has none.)
        offset_scale: float, factor of the offsets and of the distance of the taps from the center.
            (InternImage has 1.0 or 2.0.)
        remove_center: bool, whether there is no tap at the center; `kernel_size` must then be odd.
        center_feature_scale: bool, whether a share of each sum, which the branch predicts for each
            group, is replaced by the projected pixel itself (InternImage-H). Needs strides of 1 and
            padding "same". An untrained layer replaces one half.
        depthwise_kernel_size: int or (height, width) of the branch's convolution, None for
            `kernel_size`. (InternImage-H has 5.)
        normalization: "layer" (epsilon 1e-6), "batch" (epsilon 1e-5, momentum 0.9) or None, what
            follows the branch's convolution.
        activation: what follows the normalisation.
        use_bias: bool, whether the projections of the input and of the output have biases.
        kernel_initializer: initializer of the kernels of the two projections.
        bias_initializer: initializer of their biases.
        depthwise_initializer: initializer of the kernel of the branch's convolution.
        kernel_regularizer: regularizer of the kernels of the two projections.
        bias_regularizer: regularizer of their biases.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Weights:
        In this order, and what InternImage calls them; C channels, K the number of taps:
        input_kernel, input_bias: `[C, C]` and `[C]`; input_proj.
        depthwise_kernel, depthwise_bias: `[height, width, C, 1]` and `[C]`; dw_conv.0.
        offset_kernel, offset_bias: `[C, G*K*2]` and its last axis, ordered (group, tap row, tap
            column, (dy, dx)), in pixels of the input; offset. They start at zero.
        mask_kernel, mask_bias: `[C, G*K]` and its last axis, ordered (group, tap row, tap column),
            before the softmax; mask. They start at zero.
        center_kernel, center_bias: `[C, G]` and `[G]`, if center_feature_scale;
            center_feature_scale_proj_weight and center_feature_scale_proj_bias. They start at zero.
        output_kernel, output_bias: `[C, C]` and `[C]`; output_proj.
        Those of the layer `normalization_layer`: gamma and beta, and the moving mean and variance
            of "batch"; dw_conv.1.

        Their offsets and masks are in another order: `tf_deformable.convert.offsets_from_dcnv3` and
        `mask_from_dcnv3` convert kernels and biases. (PyTorch's kernels are transposed.)

    Input shape:
        `[batch, height, width, C]` for channels_last, `[batch, C, height, width]` for
        channels_first. All but C may be unknown.

    Output shape:
        `[batch, new_height, new_width, C]`, or `[batch, C, new_height, new_width]`; sizes as
        `keras.layers.Conv2D` has them. In the compute dtype; the branch computes in float32
        (float64) under every policy.

    Raises:
        ValueError: an argument breaks its rule, `groups` does not divide the channels, or the
            dilated kernel does not fit into the input.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Wang et al., InternImage, CVPR 2023, equation 2 and section 3.2; section 4 and appendix for
        center_feature_scale. InternImage's own layer has steps of 1 alone.
    """

    _operator = dcnv3

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
        normalization: str | None = "layer",
        activation: Any = "gelu",
        use_bias: bool = True,
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
        self.normalization = normalization
        self.normalization_layer: Any = None
        layers = tf.keras.layers
        if normalization is not None:
            make = {"layer": layers.LayerNormalization, "batch": layers.BatchNormalization}
            self.normalization = self._choice("normalization", normalization, tuple(make))
            settings = {"layer": {"epsilon": 1e-6}, "batch": {"epsilon": 1e-5, "momentum": 0.9}}
            self.normalization_layer = make[self.normalization](
                **settings[self.normalization], dtype=self._sampling_dtype, name="normalization"
            )
        self.activation = tf.keras.activations.get(activation)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "normalization": self.normalization,
            "activation": tf.keras.activations.serialize(self.activation),
        }

    def _build(self, channels: int) -> None:
        self._add_projection("input", channels, channels)
        self._add_depthwise(self.depthwise_kernel_size or self.kernel_size, channels)
        self._add_predictions(channels)
        self._add_projection("output", channels, channels)
        if self.normalization_layer is not None:
            self.normalization_layer.build((None, None, None, channels))

    def _hidden(self, features: tf.Tensor, training: bool | None) -> tf.Tensor:
        hidden = self._depthwise(features)
        if self.normalization == "batch":
            hidden = self.normalization_layer(hidden, training=training)
        elif self.normalization_layer is not None:
            hidden = self.normalization_layer(hidden)
        return self.activation(hidden)

    def _mask(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(logits)

    def _center_source(self, hidden: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        del sums
        return hidden
