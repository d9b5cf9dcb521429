"""Keras layers: position-sensitive RoI pooling, plain, and with offset fields of its own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable._geometry.sizes import dims
from tf_deformable.layers._roi_base import DeformableRoILayer, Regions, RoILayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.conv2d_branch import of_widened
from tf_deformable.ops.roi_pool import deformable_psroi_pool


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class PSRoIPool(RoILayer):
    """Position-sensitive RoI pooling: every bin of a box averages a map of its own.

    The layer of `tf_deformable.deformable_psroi_pool` without offsets. The features are the score
    maps of R-FCN: k*k maps of D channels, one for each part of an object. It has no weights.

    Example:
        >>> scores = tf.keras.layers.Conv2D(7 * 7 * 21, 1)(tf.random.normal([2, 38, 63, 256]))
        >>> boxes = tf.constant([[[32.0, 48.0, 300.0, 500.0]], [[10.0, 10.0, 200.0, 90.0]]])
        >>> votes = tf_deformable.layers.PSRoIPool(7, 7, spatial_scale=1 / 16)([scores, boxes])
        >>> tf.reduce_mean(votes, axis=[2, 3]).shape  # scores of the classes
        TensorShape([2, 1, 21])

    Args:
        output_size: int or two ints (ph, pw), number of bins.
        group_size: int, k. Bin (i, j) reads map `(i*k // ph, j*k // pw)`.
        spatial_scale: float, pixels of the features per pixel of the image.
        samples_per_bin: int, samples of a bin along each axis, as in `RoIPool`.
        aligned: bool, where a box lies on the features, as in `RoIPool`.
        data_format: `"channels_last"` or `"channels_first"`, as in `RoIPool`.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Input shape:
        A list `[features, boxes]`:
        features: `[B, H, W, k*k*D]`, channels ordered (map row, map column, D), D varying fastest.
        boxes: `[B, R, 4]`, (y1, x1, y2, x2) in pixels of the image, padded as in `RoIPool`.

        Dtypes, and what may be unknown, as in `RoIPool`.

    Output shape:
        `[B, R, ph, pw, D]`, for channels_first `[B, R, D, ph, pw]`, in the compute dtype.

    Raises:
        ValueError: an argument breaks its rule, shapes do not fit, the channels are not a multiple
            of k*k, or boxes are in half precision.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai, Li, He and Sun, R-FCN, NIPS 2016, equation 1.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        group_size: int,
        *,
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        aligned: bool = True,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size,
            spatial_scale=spatial_scale,
            samples_per_bin=samples_per_bin,
            aligned=aligned,
            data_format=data_format,
            **kwargs,
        )
        self.group_size = self._positive_integer("group_size", group_size)

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the pooled score maps of the boxes."""
        regions = self.as_regions(inputs)
        pooled = deformable_psroi_pool(
            regions.features,
            regions.boxes,
            regions.box_indices,
            group_size=self.group_size,
            **self._geometry(),
        )
        return self._per_image(pooled, regions)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {**super().get_config(), "group_size": self.group_size}

    def _output_channels(self, channels: int | None) -> int | None:
        return self._depth(channels, self.group_size)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DeformablePSRoIPool(DeformableRoILayer):
    """Position-sensitive RoI pooling that learns where to move its bins.

    It can stand where a `PSRoIPool` stood: score maps come in, k*k maps of D channels. A 1x1
    convolution (owned by the layer) makes offset fields. Plain position-sensitive pooling of these
    gives each bin its offset, in units of the box's size, for every one of the D output channels
    by itself; deformable position-sensitive pooling of the score maps gives the result. An
    untrained layer does not move its bins: it equals `PSRoIPool`.

    The offset fields are made of the score maps, or of other features that the layer is called
    with. In the paper they are made of the features that the score maps are made of: so it is with
    `score_filters`, for which the layer also owns the 1x1 convolution that makes the score maps.

    Example:
        >>> features = tf.random.normal([2, 38, 63, 512])  # of images 16 times as large
        >>> boxes = tf.constant([[[32.0, 48.0, 300.0, 500.0]], [[10.0, 10.0, 200.0, 90.0]]])
        >>> scores = tf.keras.layers.Conv2D(7 * 7 * 21, 1)(features)
        >>> layer = tf_deformable.layers.DeformablePSRoIPool(7, 7, spatial_scale=1 / 16)
        >>> tf.reduce_mean(layer([scores, boxes]), axis=[2, 3]).shape
        TensorShape([2, 1, 21])

        The head of the paper, which reads the features:

        >>> layer = tf_deformable.layers.DeformablePSRoIPool(
        ...     7, 7, spatial_scale=1 / 16, score_filters=21)
        >>> tf.reduce_mean(layer([features, boxes]), axis=[2, 3]).shape
        TensorShape([2, 1, 21])

        The corrections of the boxes, for all classes alike:

        >>> layer = tf_deformable.layers.DeformablePSRoIPool(
        ...     7, 7, spatial_scale=1 / 16, score_filters=4, class_agnostic=True)
        >>> tf.reduce_mean(layer([features, boxes]), axis=[2, 3]).shape
        TensorShape([2, 1, 4])

    Args:
        output_size: int or two ints (ph, pw), number of bins.
        group_size: int, k. Bin (i, j) reads map `(i*k // ph, j*k // pw)`.
        spatial_scale: float, pixels of the features per pixel of the image: 1/16 for features of
            stride 16.
        samples_per_bin: int, samples of a bin along each axis, as in `RoIPool`.
        gamma: float, scale of the offsets: a predicted 1 moves a bin by `gamma` times the height
            (width) of its box.
        aligned: bool, where a box lies on the features, as in `RoIPool`.
        class_agnostic: bool. False: every output channel has offsets of its own. True: they share
            one, as in the box branch of the authors.
        offset_source: what the offset fields are made of. `"inputs"`: the first input, which are
            the score maps, or the features with `score_filters`. `"features"`: the layer is called
            with `[features, boxes, offset_features]`, and they are made of the last, a map of the
            same height and width and any number of channels.
        score_filters: int or None. None: score maps come in. An int D: features come in, and a
            convolution of the layer's own makes score maps of D channels: 1 + the number of classes
            for scores, 4 for the corrections of class-agnostic boxes.
        use_bias: bool, whether that convolution has a bias. The offset fields always have one.
        kernel_initializer: initializer of the kernel of that convolution.
        bias_initializer: initializer of its bias.
        kernel_regularizer: regularizer of its kernel.
        bias_regularizer: regularizer of its bias.
        activity_regularizer: regularizer of the output.
        kernel_constraint: constraint of its kernel.
        bias_constraint: constraint of its bias.
        offset_kernel_initializer: initializer of the kernel of the offset fields.
        offset_bias_initializer: initializer of their bias.
        offset_kernel_regularizer: regularizer of the kernel of the offset fields.
        offset_bias_regularizer: regularizer of their bias.
        offset_learning_rate_multiplier: non-negative float; the gradient that reaches the offsets
            is multiplied by it, hence also what flows on to the weights of the offset fields and,
            through them, to the features. Optimizers that normalise gradients (Adam and its kin)
            undo such a factor; there it matters for clipping alone.
        data_format: `"channels_last"` or `"channels_first"`, as in `RoIPool`.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Weights:
        In this order; C are the channels of what a convolution reads:
        kernel: `[1, 1, C, k*k*D]`, outputs ordered (map row, map column, D); with `score_filters`.
        bias: `[k*k*D]`, with `score_filters`, if `use_bias`.
        offset_kernel: `[1, 1, C, k*k*classes*2]`, classes = 1 if `class_agnostic`, else D; outputs
            ordered (map row, map column, class, (dy, dx)), the last fastest.
        offset_bias: `[k*k*classes*2]`.

    Input shape:
        A list `[features, boxes]` or `[features, boxes, offset_features]`:
        features: `[B, H, W, k*k*D]`, the score maps, channels ordered as in `PSRoIPool`; with
            `score_filters` `[B, H, W, C]`. All but the channels may be unknown.
        boxes: `[B, R, 4]`, (y1, x1, y2, x2) in pixels of the image, padded as in `RoIPool`: a box
            that is padding trains nothing.
        offset_features: `[B, H, W, C]`.

        Dtypes, and what else may be unknown, as in `RoIPool`.

    Output shape:
        `[B, R, ph, pw, D]`, in the compute dtype. R-FCN takes the mean over ph and pw, and of
        scores then the softmax.

    Raises:
        ValueError: an argument breaks its rule, shapes do not fit, or boxes are in half precision.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2 and Figure 4; Dai, Li,
        He and Sun, R-FCN, NIPS 2016.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        group_size: int,
        *,
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        gamma: float = 0.1,
        aligned: bool = True,
        class_agnostic: bool = False,
        offset_source: str = "inputs",
        score_filters: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        offset_kernel_initializer: Any = "zeros",
        offset_bias_initializer: Any = "zeros",
        offset_kernel_regularizer: Any = None,
        offset_bias_regularizer: Any = None,
        offset_learning_rate_multiplier: float = 1.0,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size,
            spatial_scale=spatial_scale,
            samples_per_bin=samples_per_bin,
            aligned=aligned,
            gamma=gamma,
            offset_kernel_initializer=offset_kernel_initializer,
            offset_bias_initializer=offset_bias_initializer,
            offset_kernel_regularizer=offset_kernel_regularizer,
            offset_bias_regularizer=offset_bias_regularizer,
            offset_learning_rate_multiplier=offset_learning_rate_multiplier,
            data_format=data_format,
            activity_regularizer=activity_regularizer,
            **kwargs,
        )
        self.group_size = self._positive_integer("group_size", group_size)
        self.class_agnostic = self._boolean("class_agnostic", class_agnostic)
        self.offset_source = self._choice("offset_source", offset_source, ("inputs", "features"))
        self.score_filters = None
        if score_filters is not None:
            self.score_filters = self._positive_integer("score_filters", score_filters)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
        self.bias_initializer = tf.keras.initializers.get(bias_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = tf.keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = tf.keras.constraints.get(kernel_constraint)
        self.bias_constraint = tf.keras.constraints.get(bias_constraint)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for features of this shape, whose channels must be known."""
        if self.built:
            return
        branch_channels = self._known_channels(input_shape)
        channels = self._input_shapes(input_shape)[0][3]
        depth = self._output_channels(channels)
        assert depth is not None
        self._classes = 1 if self.class_agnostic else depth
        offset_fields = self.group_size**2 * self._classes * 2
        self.kernel = self.bias = None
        if self.score_filters is not None:
            score_maps = self.group_size**2 * self.score_filters
            self.kernel = self.add_weight(
                name="kernel",
                shape=(1, 1, channels, score_maps),
                initializer=self.kernel_initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
            if self.use_bias:
                self.bias = self.add_weight(
                    name="bias",
                    shape=(score_maps,),
                    initializer=self.bias_initializer,
                    regularizer=self.bias_regularizer,
                    constraint=self.bias_constraint,
                )
        self._add_offset_weights((1, 1, branch_channels, offset_fields))
        self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the score maps of the boxes, pooled at the predicted bins."""
        regions = self.as_regions(inputs)
        offsets = self._offsets(regions)
        scores = regions.features
        if self.kernel is not None:
            bias = None if self.bias is None else self._cast(self.bias)
            scores = self._convolution(scores, self._cast(self.kernel), bias)
        return self._per_image(self._pool(scores, regions, offsets), regions)

    @accepts_keras_tensors
    def compute_offsets(self, inputs: Any) -> tf.Tensor:
        """Predicts the offsets that the layer uses for these inputs.

        Args:
            inputs: `[features, boxes]`, as the layer is called with. In a model, the inputs of this
                layer: `tf.keras.Model(model.input, layer.input)([images, boxes])`.

        Returns:
            `[B, R, ph, pw, classes, 2]`, (dy, dx) in units of the box's height and width and of
            1/gamma, float32 (float64 if the layer computes in float64); classes is 1 if
            `class_agnostic`, else D. Padding has offsets of zero.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        regions = self.as_regions(inputs)
        return regions.per_image(self._offsets(regions))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "group_size": self.group_size,
            "class_agnostic": self.class_agnostic,
            "offset_source": self.offset_source,
            "score_filters": self.score_filters,
            "use_bias": self.use_bias,
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

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns a layer with this configuration, which version 0.1 may have written."""
        config = dict(config)
        if "filters" in config:
            config["score_filters"] = config.pop("filters")
        if config["output_size"] is None:
            config["output_size"] = config["group_size"]
        return super().from_config(config)

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        names = super().names_of_inputs
        return (*names, "offset_features") if self.offset_source == "features" else names

    def _output_channels(self, channels: int | None) -> int | None:
        if self.score_filters is not None:
            return self.score_filters
        return self._depth(channels, self.group_size)

    def _offsets(self, regions: Regions) -> tf.Tensor:
        """Returns offsets `[B*R, ph, pw, classes, 2]`."""
        self._check_is_built()
        kernel, bias = map(self._cast_sampling, (self.offset_kernel, self.offset_bias))
        fields = self._convolution(regions.offset_features, kernel, bias)
        offsets = self._scaled_gradient(self._pool(fields, regions))
        return tf.reshape(offsets, [-1, *self.output_size, self._classes, 2])

    def _convolution(
        self, features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None
    ) -> tf.Tensor:
        maps = of_widened(_product, features, kernel)
        return maps if bias is None else tf.nn.bias_add(maps, bias)

    def _pool(
        self, maps: tf.Tensor, regions: Regions, offsets: tf.Tensor | None = None
    ) -> tf.Tensor:
        return deformable_psroi_pool(
            maps,
            regions.boxes,
            regions.box_indices,
            offsets,
            group_size=self.group_size,
            gamma=self.gamma,
            **self._geometry(),
        )


def _product(features: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution, as a product of matrices: on the CPU TensorFlow is quicker at that.

    The gradients of its convolution take some ten times as long in half precision, and with oneDNN
    a third longer in float32.
    """
    *pixels, channels = dims(features, 4)
    rows = tf.matmul(tf.reshape(features, [-1, channels]), tf.reshape(kernel, kernel.shape[2:]))
    return tf.reshape(rows, [*pixels, kernel.shape[3]])
