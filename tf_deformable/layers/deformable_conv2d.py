"""Keras layer: deformable convolution with the branch that predicts its offsets."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_deformable._geometry import rules
from tf_deformable._geometry.padding import explicit_padding
from tf_deformable.layers._base import as_output_shape
from tf_deformable.layers._convolution import ConvolutionLayer
from tf_deformable.layers._offset_branch import OffsetBranchLayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.conv2d_branch import conv2d_branch
from tf_deformable.ops.deformable_conv2d import deformable_conv2d
from tf_deformable.ops.sampling import sampling_positions

Shape = tuple[int | None, ...]


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DeformableConv2D(OffsetBranchLayer, ConvolutionLayer):
    """2D convolution that learns where to sample its input.

    A convolution over the input (the offset branch, owned by the layer) predicts, for every
    output pixel and kernel tap, by how many pixels the tap moves; the kernel is then applied to
    bilinear samples of the input at the moved positions. With `modulated=True` the branch also
    predicts a factor for every sample. An untrained layer samples the regular grid: it equals
    `keras.layers.Conv2D` with the same kernel and bias (times `mask_initial_value`, before the
    bias, if modulated).

    It takes every argument of `keras.layers.Conv2D`, with the same meaning and in the same order,
    and can stand where a `Conv2D` stood; here `strides` and `dilation_rate` may both exceed 1. What
    `Conv2D` does not have is given by keyword.

    Example:
        >>> model = tf.keras.Sequential([
        ...     tf.keras.Input((None, None, 3)),
        ...     tf.keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        ...     tf_deformable.DeformableConv2D(32, 3, padding="same", modulated=True),
        ...     tf.keras.layers.GlobalAveragePooling2D(),
        ...     tf.keras.layers.Dense(10),
        ... ])
        >>> model(tf.zeros([4, 64, 48, 3])).shape
        TensorShape([4, 10])

        Where the layer samples, in pixels of the features that it reads:

        >>> layer = model.layers[1]
        >>> features = model.layers[0](tf.zeros([4, 64, 48, 3]))
        >>> layer.sampling_positions(features).shape  # N, Ho, Wo, G, kh, kw, (y, x)
        TensorShape([4, 31, 23, 1, 3, 3, 2])

        Networks for video align frames: they sample the features of one image where another one
        says. The branch reads both (`offset_source="features"`), and what it predicts corrects a
        flow that is given (`adds_flow`), by at most 10 pixels (`max_offset`):

        >>> neighbor, both = tf.zeros([1, 32, 32, 16]), tf.zeros([1, 32, 32, 48])
        >>> flow = tf.zeros([1, 32, 32, 2])  # (dy, dx) to where the neighbor shows the same
        >>> align = tf_deformable.DeformableConv2D(
        ...     16, 3, padding="same", offset_groups=4, modulated=True,
        ...     offset_source="features", adds_flow=True, max_offset=10)
        >>> align([neighbor, both, flow]).shape
        TensorShape([1, 32, 32, 16])

    Args:
        filters: int, number of output channels.
        kernel_size: int or two ints (y, x), size of the kernel.
        strides: int or two ints (y, x).
        padding: `"valid"` or `"same"` (case-insensitive), as TensorFlow pads; or the zeros around
            the map, which `Conv2D` does not take: an int for all sides, two ints (above and below,
            left and right), or `((top, bottom), (left, right))`. 1 is PyTorch's `padding=1`; with
            strides above 1 `"same"` is something else.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' own setting. The
            operator works on channels_last, a channels_first input is transposed on the way.
        dilation_rate: int or two ints (y, x), distance between the taps of the kernel at rest.
        groups: int, number of groups the input channels are split into, each convolved with
            `filters // groups` filters. Must divide the input channels and `filters`.
        activation: activation function, applied after the bias.
        use_bias: bool, whether a bias is added to the output. The offset branch always has one.
        kernel_initializer: initializer of the kernel.
        bias_initializer: initializer of the bias.
        kernel_regularizer: regularizer of the kernel.
        bias_regularizer: regularizer of the bias.
        activity_regularizer: regularizer of the output.
        kernel_constraint: constraint of the kernel.
        bias_constraint: constraint of the bias.
        offset_groups: int, number of groups of input channels that move independently: the
            channels of one group share their offsets (and mask). Must divide the input channels.
        modulated: bool, whether every sample is also multiplied with a predicted mask
            (Deformable ConvNets v2).
        mask_initial_value: mask of an untrained modulated layer, `0.5` or `1.0`. With 0.5, as in
            the paper, the mask is `sigmoid(logits)`, in (0, 1); with 1.0 it is
            `2 * sigmoid(logits)`, in (0, 2), and the layer starts as a plain convolution.
        offset_kernel_initializer: initializer of the offset branch's kernel.
        offset_bias_initializer: initializer of the offset branch's bias.
        offset_kernel_regularizer: regularizer of the offset branch's kernel.
        offset_bias_regularizer: regularizer of the offset branch's bias.
        offset_source: what the offsets come from. `"inputs"`: the branch reads the layer's inputs.
            `"features"`: the layer is called with `[inputs, offset_features]`, and the branch reads
            the latter, a map of the same height and width and any number of channels. `"given"`:
            there is no branch, the layer is called with `[inputs, offsets]`, or `[inputs, offsets,
            mask]` if modulated, and uses both as they are.
        adds_flow: bool, whether the layer is also called with a flow, last in the list: a
            displacement `[N, Ho, Wo, 2]`, (dy, dx) in pixels of the inputs, that is added to the
            offsets of all taps of an output pixel.
        max_offset: positive float or None. The branch's offsets are limited to it, in pixels:
            they are `max_offset * tanh(outputs of the branch)`, before a flow is added.
        offset_learning_rate_multiplier: non-negative float; the gradient that reaches the output
            of the offset branch is multiplied by it, hence also what flows on to the branch's
            weights and, through the branch, to the input. Optimizers that normalise gradients
            (Adam and its kin) undo such a factor; there it matters for clipping alone.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`. (`autocast` changes
            nothing: features are cast to the compute dtype, offsets, mask and flow are not.)

    Weights:
        In this order; kh, kw are the kernel size, C input channels, G `offset_groups`:
        kernel: `[kh, kw, C // groups, filters]`.
        bias: `[filters]`, if `use_bias`.
        offset_kernel: `[kh, kw, C, D]`, D = G*kh*kw*2, or G*kh*kw*3 if modulated; C are the
            channels of what the branch reads. Missing if offsets are given. The first
            G*kh*kw*2 channels are the offsets in pixels, ordered (offset group, tap row, tap
            column, (dy, dx)) with the last fastest; the others are the logits of the mask,
            ordered (offset group, tap row, tap column).
        offset_bias: `[D]`, likewise.

    In half precision the branch computes in float32: 16 bits would round offsets, those between 32
    and 64 pixels to 1/32 (float16) or 1/4 (bfloat16) of a pixel.

    Input shape:
        `[batch, height, width, C]` for channels_last, `[batch, C, height, width]` for
        channels_first. All but C may be unknown. Any real dtype; it is cast to the layer's
        compute dtype (float16, bfloat16, float32 or float64).

        With other inputs, a list of them in the order above, all in the same data format; or
        `layer(inputs, offset_features)`, or a dictionary by these names: `inputs`,
        `offset_features`, `offsets`, `mask`, `flow`.

    Output shape:
        `[batch, new_height, new_width, filters]` for channels_last, `[batch, filters, new_height,
        new_width]` for channels_first, sizes as `keras.layers.Conv2D` has them. It is
        `activation(deformable_conv2d(inputs, ...) + bias)`, in the compute dtype.

    Raises:
        ValueError: an argument breaks its rule, `groups` or `offset_groups` does not divide the
            channels, or the dilated kernel does not fit into the input.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.1 (operator, offset
        branch, zero initialisation); Zhu et al., Deformable ConvNets v2, CVPR 2019, equation 1
        (mask and its initial value 0.5).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[Any, Any] = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        offset_groups: int = 1,
        modulated: bool = False,
        mask_initial_value: float = 0.5,
        offset_kernel_initializer: Any = "zeros",
        offset_bias_initializer: Any = "zeros",
        offset_kernel_regularizer: Any = None,
        offset_bias_regularizer: Any = None,
        offset_source: str = "inputs",
        adds_flow: bool = False,
        max_offset: float | None = None,
        offset_learning_rate_multiplier: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activity_regularizer=activity_regularizer,
            offset_kernel_initializer=offset_kernel_initializer,
            offset_bias_initializer=offset_bias_initializer,
            offset_kernel_regularizer=offset_kernel_regularizer,
            offset_bias_regularizer=offset_bias_regularizer,
            offset_learning_rate_multiplier=offset_learning_rate_multiplier,
            **kwargs,
        )
        self.filters = self._positive_integer("filters", filters)
        self.groups = self._positive_integer("groups", groups)
        if self.filters % self.groups:
            raise self._error("filters", f"must be a multiple of groups={self.groups}", filters)
        self.offset_groups = self._positive_integer("offset_groups", offset_groups)
        self.modulated = self._boolean("modulated", modulated)
        self.activation = tf.keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
        self.bias_initializer = tf.keras.initializers.get(bias_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = tf.keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = tf.keras.constraints.get(kernel_constraint)
        self.bias_constraint = tf.keras.constraints.get(bias_constraint)
        self.mask_initial_value = self._mask_start(mask_initial_value)
        self.offset_source = self._choice(
            "offset_source", offset_source, ("inputs", "features", "given")
        )
        self.adds_flow = self._boolean("adds_flow", adds_flow)
        self.max_offset = None
        if max_offset is not None:
            if self.offset_source == "given":
                raise self._error(
                    "max_offset", 'must be None with offset_source="given"', max_offset
                )
            self.max_offset = self._finite_number("max_offset", max_offset, above=0)
        specs = [tf.keras.layers.InputSpec(ndim=4) for _ in self.names_of_inputs]
        self.input_spec = specs if len(specs) > 1 else specs[0]

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs of this shape, whose channels must be known."""
        if self.built:
            return
        shapes = dict(zip(self.names_of_inputs, self._input_shapes(input_shape), strict=True))
        channel_axis = 1 if self.data_format == "channels_first" else 3
        channels = self._known_channels("inputs", shapes)
        if channels % self.groups:
            rule = f"must be a multiple of groups={self.groups}"
            raise self._error("inputs channels", rule, channels)
        if channels % self.offset_groups:
            rule = rules.offset_groups_do_not_divide(channels, self.offset_groups)
            raise ValueError(f"{type(self).__name__}: {rule}")
        self.compute_output_shape(input_shape)  # Refuses what does not fit.

        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.offset_kernel = self.offset_bias = None
        if self.offset_source != "given":
            branch_outputs = (3 if self.modulated else 2) * self._taps
            branch_channels = self._known_channels(
                "inputs" if self.offset_source == "inputs" else "offset_features", shapes
            )
            self._add_offset_weights((*self.kernel_size, branch_channels, branch_outputs))
        specs = [
            tf.keras.layers.InputSpec(ndim=4, axes={channel_axis: shape[channel_axis]})
            for shape in shapes.values()
        ]
        self.input_spec = specs if len(specs) > 1 else specs[0]
        self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the activated convolution of the inputs at the predicted positions."""
        features, offsets, mask = self.sampled(inputs)
        outputs = deformable_conv2d(
            features,
            self._cast(self.kernel),
            offsets,
            mask,
            bias=self._cast(self.bias) if self.use_bias else None,
            strides=self.strides,
            padding=explicit_padding(self.padding_of_both_axes),
            dilations=self.dilation_rate,
        )
        return self.activation(self._in_data_format(outputs))

    @accepts_keras_tensors
    def compute_offsets(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Predicts the offsets and the mask that the layer uses for these inputs.

        They are what `tf_deformable.deformable_conv2d` takes with `data_format` "NHWC" for
        channels_last and "NCHW" for channels_first.

        Args:
            inputs: what the layer is called with: a tensor, or a list of them. In a model, the
                input of this layer: `tf.keras.Model(model.input, layer.input)(images)`; or
                `tf.keras.Model(model.input, layer.compute_offsets(layer.input))`.

        Returns:
            offsets: `[N, Ho, Wo, G*kh*kw*2]`, in pixels of the input, last axis ordered (offset
                group, tap row, tap column, (dy, dx)), float32, or float64 if the layer computes in
                float64.
            mask: `[N, Ho, Wo, G*kh*kw]`, None if the layer is not modulated.
            Both have their channels second for channels_first.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        _, offsets, mask = self.sampled(inputs)
        return self._in_data_format(offsets), None if mask is None else self._in_data_format(mask)

    @accepts_keras_tensors
    def sampling_positions(self, inputs: Any) -> tf.Tensor:
        """Returns where the layer samples these inputs.

        Args:
            inputs: what the layer is called with, see `compute_offsets`.

        Returns:
            `[N, Ho, Wo, G, kh, kw, 2]`, for every output pixel, offset group and tap the position
            (y, x) in pixels of the input, (0, 0) the centre of its first pixel, for both data
            formats; float32, or float64 if the layer computes in float64. Positions outside
            the input are what the padding, or an offset, makes them: samples there are zero.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        features, offsets, _ = self.sampled(inputs)
        return sampling_positions(
            offsets,
            kernel_size=self.kernel_size,
            input_size=tf.shape(features)[1:3],
            strides=self.strides,
            padding=explicit_padding(self.padding_of_both_axes),
            dilations=self.dilation_rate,
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the output for inputs of this shape, None where it is unknown."""
        shapes = dict(zip(self.names_of_inputs, self._input_shapes(input_shape), strict=True))
        shape = shapes["inputs"]
        spatial = shape[2:] if self.data_format == "channels_first" else shape[1:3]
        new_spatial = self._output_size(spatial)

        def with_channels(size: list[int | None], channels: int | None) -> Shape:
            if self.data_format == "channels_first":
                return (shape[0], channels, *size)
            return (shape[0], *size, channels)

        expected = {
            "offset_features": with_channels(list(spatial), None),
            "offsets": with_channels(new_spatial, 2 * self._taps),
            "mask": with_channels(new_spatial, self._taps),
            "flow": with_channels(new_spatial, 2),
        }
        for name, got in shapes.items():
            if name in expected and not tf.TensorShape(got).is_compatible_with(expected[name]):
                rule = f"must have shape {expected[name]} beside inputs of shape {shape}"
                raise self._error(name, rule, got)
        return as_output_shape(with_channels(new_spatial, self.filters))

    def get_prunable_weights(self) -> list[Any]:
        """Returns what TensorFlow's Model Optimization Toolkit may prune: the kernel.

        The branch's kernel starts at zero, and to prune it would freeze it there.
        """
        return [self.kernel]

    def get_clusterable_weights(self) -> list[tuple[str, Any]]:
        """Returns what TensorFlow's Model Optimization Toolkit may cluster: the kernel, by name."""
        return [("kernel", self.kernel)]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "groups": self.groups,
            "offset_groups": self.offset_groups,
            "modulated": self.modulated,
            "activation": tf.keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "mask_initial_value": self.mask_initial_value,
            "offset_source": self.offset_source,
            "adds_flow": self.adds_flow,
            "max_offset": self.max_offset,
            **{
                name: tf.keras.initializers.serialize(getattr(self, name))
                for name in ("kernel_initializer", "bias_initializer")
            },
            **{
                name: tf.keras.regularizers.serialize(getattr(self, name))
                for name in ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
            },
            **{
                name: tf.keras.constraints.serialize(getattr(self, name))
                for name in ("kernel_constraint", "bias_constraint")
            },
        }

    @property
    def _taps(self) -> int:
        """Samples of an output pixel."""
        return self.offset_groups * math.prod(self.kernel_size)

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        names = ["inputs"]
        if self.offset_source == "features":
            names.append("offset_features")
        if self.offset_source == "given":
            names += ["offsets", "mask"] if self.modulated else ["offsets"]
        return (*names, "flow") if self.adds_flow else tuple(names)

    def sampled(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns features, offsets and mask (or None), all NHWC, of what the layer is called with.

        Features are in the compute dtype, the others in the dtype of positions.
        """
        self._check_is_built()
        names = self.names_of_inputs
        values = inputs if len(names) > 1 else [inputs]
        if not isinstance(values, (list, tuple)) or len(values) != len(names):
            raise self._error("inputs", f"must be [{', '.join(names)}]", type(inputs).__name__)
        tensors = [tf.convert_to_tensor(value) for value in values]
        shapes = [tensor.shape for tensor in tensors]
        if len(names) > 1 and all(shape.rank is not None for shape in shapes):
            self.compute_output_shape(shapes)  # Refuses what does not fit, in the layer's terms.
        given = {name: self._channels_last(t) for name, t in zip(names, tensors, strict=True)}
        features = self._cast(given["inputs"])
        if self.offset_source == "given":
            offsets = self._cast_sampling(given["offsets"])
            mask = self._cast_sampling(given["mask"]) if self.modulated else None
        else:
            source = "inputs" if self.offset_source == "inputs" else "offset_features"
            offsets, mask = self._offset_branch(self._cast(given[source]))
        if self.adds_flow:
            offsets += tf.tile(self._cast_sampling(given["flow"]), [1, 1, 1, self._taps])
        return features, offsets, mask

    def _offset_branch(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the branch's offsets and mask (or None) for NHWC features, both NHWC."""
        offsets, mask = conv2d_branch(
            features,
            self._cast_sampling(self.offset_kernel),
            self._cast_sampling(self.offset_bias),
            has_mask=self.modulated,
            largest_mask=2 * self.mask_initial_value,
            strides=self.strides,
            padding=self.padding_of_both_axes,
            dilations=self.dilation_rate,
        )
        offsets = self._scaled_gradient(offsets)
        mask = None if mask is None else self._scaled_gradient(mask)
        if self.max_offset is not None:
            offsets = self.max_offset * tf.tanh(offsets)
        return offsets, mask

    def _input_shapes(self, input_shape: Any) -> list[Shape]:
        """Checks the shapes of what the layer is called with, in the order of `names_of_inputs`."""
        names = self.names_of_inputs
        try:
            of_inputs = list(input_shape) if len(names) > 1 else [input_shape]
            shapes = [tuple(tf.TensorShape(shape).as_list()) for shape in of_inputs]
        except (TypeError, ValueError):
            shapes = []
        if len(shapes) != len(names):
            raise self._error("inputs", f"must be [{', '.join(names)}]", input_shape)
        for name, shape in zip(names, shapes, strict=True):
            if len(shape) != 4:
                raise self._error(name, "must have rank 4", shape)
        return shapes

    def _known_channels(self, name: str, shapes: dict[str, Shape]) -> int:
        channels = shapes[name][1 if self.data_format == "channels_first" else 3]
        if channels is None:
            raise self._error(name, "must have a known number of channels", shapes[name])
        return channels
