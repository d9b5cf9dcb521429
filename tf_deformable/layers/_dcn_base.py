"""What the layers DCNv3 and DCNv4 share: everything but what predicts offsets and mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from tf_deformable._geometry.padding import explicit_padding, resolve_axes
from tf_deformable._geometry.sizes import dims
from tf_deformable.layers._base import as_output_shape
from tf_deformable.layers._convolution import ConvolutionLayer
from tf_deformable.layers._offset_branch import pad_or_crop, wide_depthwise_convolution
from tf_deformable.layers._projections import ProjectingLayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.dcnv3 import positions_of_taps

Shape = tuple[int | None, ...]


class DCNLayer(ConvolutionLayer, ProjectingLayer):
    """Projection, sums of samples that the input chooses, projection.

    Not public: `DCNv3` and `DCNv4` are.
    """

    _operator: ClassVar[Callable[..., tf.Tensor]]

    def __init__(
        self,
        *,
        groups: int,
        offset_scale: float,
        remove_center: bool,
        center_feature_scale: bool,
        depthwise_kernel_size: int | tuple[int, int] | None,
        depthwise_initializer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.groups = self._positive_integer("groups", groups)
        self.offset_scale = self._finite_number("offset_scale", offset_scale)
        self.remove_center = self._boolean("remove_center", remove_center)
        if self.remove_center and not all(size % 2 for size in self.kernel_size):
            raise self._error("kernel_size", "must be odd with remove_center", self.kernel_size)
        if self.remove_center and self.kernel_size == (1, 1):
            raise self._error("kernel_size", "must be above 1 with remove_center", self.kernel_size)
        self.center_feature_scale = self._boolean("center_feature_scale", center_feature_scale)
        if self.center_feature_scale and (self.strides != (1, 1) or self.padding != "same"):
            rule = "must be False but for strides of 1 and padding 'same'"
            raise self._error("center_feature_scale", rule, center_feature_scale)
        if depthwise_kernel_size is not None:
            depthwise_kernel_size = self._positive_pair(
                "depthwise_kernel_size", depthwise_kernel_size
            )
        self.depthwise_kernel_size = depthwise_kernel_size
        self.depthwise_initializer = tf.keras.initializers.get(depthwise_initializer)
        self.input_spec = tf.keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs of this shape, whose channels must be known."""
        if self.built:
            return
        shape = self._input_shape(input_shape)
        channel_axis = 1 if self.data_format == "channels_first" else 3
        channels = shape[channel_axis]
        if channels is None:
            raise self._error("inputs", "must have a known number of channels", shape)
        if channels % self.groups:
            raise self._error("groups", f"must divide the {channels} channels", self.groups)
        self.compute_output_shape(input_shape)  # Refuses what does not fit.
        self._build(channels)
        self.input_spec = tf.keras.layers.InputSpec(ndim=4, axes={channel_axis: channels})
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Returns the projected sums of samples."""
        features = self._channels_last(self._cast(inputs))
        hidden = self._hidden(features, training)
        offsets, mask = self._offsets_and_mask(hidden)
        projected = self._project_input(features)
        sums = type(self)._operator(
            projected,
            offsets,
            mask,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=explicit_padding(self.padding_of_both_axes),
            dilations=self.dilation_rate,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        if self.center_feature_scale:
            share = tf.sigmoid(self._predict("center", self._center_source(hidden, sums)))
            sums += self._of_groups(share, projected) * (projected - sums)
        return self._in_data_format(self._project_output(sums))

    @accepts_keras_tensors
    def compute_offsets(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicts the offsets and the mask that the layer uses for these inputs.

        Args:
            inputs: what the layer is called with. In a model, the input of this layer:
                `tf.keras.Model(model.input, layer.input)(images)`; or
                `tf.keras.Model(model.input, layer.compute_offsets(layer.input))`.

        Returns:
            offsets: `[N, Ho, Wo, G*K*2]`, last axis ordered (group, tap row, tap column, (dy, dx)),
                before they are multiplied by `offset_scale`.
            mask: `[N, Ho, Wo, G*K]`.
            Both have their channels second for channels_first, and are float32, or float64 if the
            layer computes in float64.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        self._check_is_built()
        hidden = self._hidden(self._channels_last(self._cast(inputs)), training=False)
        offsets, mask = self._offsets_and_mask(hidden)
        return self._in_data_format(offsets), self._in_data_format(mask)

    @accepts_keras_tensors
    def sampling_positions(self, inputs: Any) -> tf.Tensor:
        """Returns where the layer samples these inputs.

        Args:
            inputs: what the layer is called with, see `compute_offsets`.

        Returns:
            `[N, Ho, Wo, G, K, 2]`, for every output pixel, group and tap the position (y, x) in
            pixels of the input, (0, 0) the centre of its first pixel, for both data formats;
            float32, or float64 if the layer computes in float64.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        self._check_is_built()
        features = self._channels_last(self._cast(inputs))
        offsets, _ = self._offsets_and_mask(self._hidden(features, training=False))
        return positions_of_taps(
            offsets,
            input_size=tf.unstack(tf.shape(features, tf.int64)[1:3], num=2),
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=explicit_padding(self.padding_of_both_axes),
            dilations=self.dilation_rate,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the output for inputs of this shape, None where it is unknown."""
        shape = self._input_shape(input_shape)
        if self.data_format == "channels_first":
            return as_output_shape((*shape[:2], *self._output_size(shape[2:])))
        return as_output_shape((shape[0], *self._output_size(shape[1:3]), shape[3]))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "offset_scale": self.offset_scale,
            "remove_center": self.remove_center,
            "center_feature_scale": self.center_feature_scale,
            "depthwise_kernel_size": self.depthwise_kernel_size,
            "depthwise_initializer": tf.keras.initializers.serialize(self.depthwise_initializer),
        }

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        return ("inputs",)

    @property
    def _taps(self) -> int:
        """K, samples of a group of an output pixel."""
        return math.prod(self.kernel_size) - self.remove_center

    def _build(self, channels: int) -> None:
        """Creates the weights, in their order."""
        raise NotImplementedError

    def _hidden(self, features: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Returns what offsets and mask are linear functions of, in the dtype of positions."""
        raise NotImplementedError

    def _mask(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the mask of the taps, the last axis."""
        raise NotImplementedError

    def _center_source(self, hidden: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        """Returns what the share of the center is a function of, in the dtype of positions."""
        raise NotImplementedError

    def _project_input(self, features: tf.Tensor) -> tf.Tensor:
        return self._project("input", features)

    def _project_output(self, sums: tf.Tensor) -> tf.Tensor:
        return self._project("output", sums)

    def _add_predictions(self, channels: int) -> None:
        self._add_prediction("offset", channels, 2 * self.groups * self._taps)
        self._add_prediction("mask", channels, self.groups * self._taps)
        if self.center_feature_scale:
            self._add_prediction("center", channels, self.groups)

    def _add_depthwise(self, kernel_size: tuple[int, int], channels: int) -> None:
        self.depthwise_kernel = self._add_branch_weight(
            name="depthwise_kernel",
            shape=(*kernel_size, channels, 1),
            initializer=self.depthwise_initializer,
        )
        self.depthwise_bias = self._add_branch_weight(
            name="depthwise_bias", shape=(channels,), initializer="zeros"
        )

    def _depthwise(self, features: tf.Tensor) -> tf.Tensor:
        """Returns the depthwise convolution around the center of each output pixel's window."""
        kernel = self._cast_sampling(self.depthwise_kernel)
        features, scheme = self._windows(features, tuple(kernel.shape[:2]))
        outputs = wide_depthwise_convolution(features, kernel, self.strides, scheme)
        return outputs + self._cast_sampling(self.depthwise_bias)

    def _centers(self, features: tf.Tensor) -> tf.Tensor:
        """Returns the pixel at the center of each output pixel's window, 0 in the padding."""
        features, _ = self._windows(features, (1, 1))
        return features[:, :: self.strides[0], :: self.strides[1]]

    def _windows(self, features: tf.Tensor, kernel_size: tuple[int, int]) -> tuple[tf.Tensor, str]:
        """Prepares for a kernel of another size, without dilation, in the layer's place.

        Returns:
            Features whose windows of this size have the centers of the layer's, and their padding.
        """
        if self.padding == "same" and self.strides == (1, 1):
            return features, "SAME"
        axes = resolve_axes(
            dims(features, 4)[1:3],
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            self.padding_of_both_axes,
        )
        pads = []
        for axis, size in zip(axes, kernel_size, strict=True):
            more = size - axis.extent
            pads.append((axis.pad_before + more // 2, axis.pad_after + more - more // 2))
        return pad_or_crop(features, pads), "VALID"

    def _offsets_and_mask(self, hidden: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        offsets, logits = self._predict("offset", hidden), self._predict("mask", hidden)
        # Of few axes: a vectorised map adds one, and TensorFlow's softmax of oneDNN takes five.
        taps = tf.reshape(logits, [-1, self._taps])
        return offsets, tf.reshape(self._mask(taps), tf.shape(logits))

    def _of_groups(self, factors: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """Returns one factor for each channel, in the compute dtype."""
        return tf.repeat(self._cast(factors), features.shape[-1] // self.groups, axis=-1)

    def _input_shape(self, input_shape: Any) -> Shape:
        shape = tuple(tf.TensorShape(input_shape).as_list())
        if len(shape) != 4:
            raise self._error("inputs", "must have rank 4", shape)
        return shape
