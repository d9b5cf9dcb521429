"""Keras layers: RoI pooling, plain and deformable, with the branches that predict its offsets.

Features and boxes come in with their batch axis, `[B, H, W, C]` and `[B, R, 4]`; the operators take
all boxes in one axis with the index of their image beside them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import OperatorLayer, as_integer, as_output_shape
from tf_deformable.layers._offset_branch import (
    mask_from_logits,
    scale_gradient,
    wide_convolution,
)
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.roi_pool import deformable_psroi_pool, deformable_roi_pool
from tf_deformable.ops.sampling import bin_boxes

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class _Regions:
    """What a layer is called with, as the operators take it."""

    features: tf.Tensor  # [B, H, W, C], in the layer's compute dtype
    boxes: tf.Tensor  # [B*R, 4]
    box_indices: tf.Tensor  # [B*R], -1 for padding
    counts: tf.Tensor  # [2]: B and R

    def per_image(self, tensor: tf.Tensor) -> tf.Tensor:
        """`[B*R, ...]` to `[B, R, ...]`."""
        return tf.reshape(tensor, tf.concat([self.counts, tf.shape(tensor)[1:]], axis=0))

    def without_padding(self, tensor: tf.Tensor) -> tf.Tensor:
        """`[B*R, ...]` with zeros for the boxes that are padding."""
        is_padding = tf.reshape(self.box_indices < 0, [-1] + [1] * (tensor.shape.rank - 1))
        return tf.where(is_padding, tf.zeros([], tensor.dtype), tensor)


class _RoILayer(OperatorLayer):
    """A layer that pools boxes: `[features, boxes]` in, one grid of bins per box out."""

    gamma = 0.0  # Without offsets nothing moves.

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        samples_per_bin: int,
        aligned: bool,
        data_format: str | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_format = self._data_format(data_format)
        self.output_size = self._positive_pair("output_size", output_size)
        self.spatial_scale = self._finite_number("spatial_scale", spatial_scale, above=0)
        self.aligned = self._boolean("aligned", aligned)
        number = as_integer(samples_per_bin)
        if number is None or number < (0 if self.aligned else 1):
            rule = "must be a positive integer (or 0 with aligned=True: one per pixel)"
            raise self._error("samples_per_bin", rule, samples_per_bin)
        self.samples_per_bin = number
        if number == 0:
            self.supports_jit = False  # The boxes decide how much there is to compute.

    @accepts_keras_tensors
    def bin_boxes(self, inputs: Any) -> tf.Tensor:
        """Returns the bins that the layer averages, as boxes in the image, for pictures.

        Args:
            inputs: `[features, boxes]`, as the layer is called with.

        Returns:
            `[B, R, ph, pw, 4]`, (y1, x1, y2, x2) in the continuous coordinates of the image, in
            which pixel i extends from i to i+1 (for Matplotlib's `imshow` subtract 0.5); zeros for
            padding. In the dtype of boxes. Bins that offsets move per class are
            `[B, R, ph, pw, classes, 4]`.

        Raises:
            ValueError: the layer has weights and has not been built (called) yet.
        """
        regions = self._regions(inputs)
        bins = bin_boxes(
            regions.boxes,
            self._offsets(regions),
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            gamma=self.gamma,
            aligned=self.aligned,
        )
        return regions.per_image(regions.without_padding(bins))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns `(B, R, ph, pw, channels)` for `[features, boxes]` of these two shapes."""
        features, boxes = self._input_shapes(input_shape)
        batch = boxes[0] if features[0] is None else features[0]
        channels = self._output_channels(features[3])
        if self.data_format == "channels_first":
            return as_output_shape((batch, boxes[1], channels, *self.output_size))
        return as_output_shape((batch, boxes[1], *self.output_size, channels))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {**super().get_config(), **self._geometry(), "data_format": self.data_format}

    @property
    def _input_names(self) -> tuple[str, ...]:
        return "features", "boxes"

    def gather_inputs(self, inputs: Any, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns `[features, boxes]`, boxes that are ragged padded with zeros."""
        inputs = super().gather_inputs(inputs, others, kwargs)
        if isinstance(inputs, (tuple, list)) and len(inputs) == 2:
            features, boxes = inputs
            if hasattr(boxes, "to_tensor"):  # of tf.RaggedTensor, and of what tf-keras traces with
                return [features, boxes.to_tensor(shape=[None, None, 4])]
        return inputs

    def _geometry(self) -> dict[str, Any]:
        """The arguments of the operators that all these layers have."""
        return {
            "output_size": self.output_size,
            "spatial_scale": self.spatial_scale,
            "samples_per_bin": self.samples_per_bin,
            "aligned": self.aligned,
        }

    def _output_channels(self, channels: int | None) -> int | None:
        """The number of output channels for that of the features, which it checks."""
        return channels

    def _offsets(self, regions: _Regions) -> tf.Tensor | None:
        """Offsets as the operator takes them, None if the layer moves nothing."""
        return None

    def _regions(self, inputs: Any) -> _Regions:
        """Checks what the layer is called with and brings it into the operators' form."""
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise self._error("inputs", "must be [features, boxes]", type(inputs).__name__)
        features, boxes = self._cast(inputs[0]), tf.convert_to_tensor(inputs[1])
        shape, _ = self._input_shapes([features.shape, boxes.shape])
        self._output_channels(shape[3])
        if self.data_format == "channels_first":
            features = tf.transpose(features, [0, 2, 3, 1])
        if boxes.dtype in (tf.float16, tf.bfloat16):
            raise self._error(
                "boxes",
                "must be float32 or float64, half precision moves them by whole pixels (layers "
                "and subclassed models under a mixed precision policy cast what they are called "
                "with: make those that boxes pass through with autocast=False)",
                boxes.dtype.name,
            )

        counts = tf.shape(boxes)[:2]
        if None in (features.shape[0], boxes.shape[0]):
            tf.debugging.assert_equal(
                counts[0],
                tf.shape(features)[0],
                message=f"{type(self).__name__}: boxes must have the batch size of features",
            )
        # Not by ==, which programs of TensorFlow 1 may have set to compare identities.
        padding = [
            tf.reduce_all(tf.equal(boxes, tf.cast(value, boxes.dtype)), axis=-1)
            for value in (0, -1)
        ]
        is_padding = padding[0] | padding[1]
        images = tf.where(is_padding, -1, tf.range(counts[0])[:, None])
        return _Regions(
            features=features,
            boxes=tf.reshape(boxes, [-1, 4]),
            box_indices=tf.reshape(images, [-1]),
            counts=counts,
        )

    def _input_shapes(self, input_shape: Any) -> tuple[Shape, Shape]:
        """Checks the shapes of features and boxes; returns features' with channels last."""
        try:
            features, boxes = (tuple(tf.TensorShape(shape).as_list()) for shape in input_shape)
        except (TypeError, ValueError):
            raise self._error("inputs", "must be [features, boxes]", input_shape) from None
        if len(features) != 4:
            layout = "[B,C,H,W]" if self.data_format == "channels_first" else "[B,H,W,C]"
            raise self._error("features", f"must have rank 4 {layout}", features)
        if len(boxes) != 3 or boxes[2] not in (4, None):
            raise self._error("boxes", "must have shape [B,R,4]", boxes)
        if None not in (features[0], boxes[0]) and features[0] != boxes[0]:
            rule = f"must have the batch size of features ({features[0]})"
            raise self._error("boxes", rule, boxes)
        if self.data_format == "channels_first":
            features = (features[0], *features[2:], features[1])
        return features, boxes

    def _per_image(self, pooled: tf.Tensor, regions: _Regions) -> tf.Tensor:
        """`[B*R, ph, pw, C]` to what the layer returns."""
        if self.data_format == "channels_first":
            pooled = tf.transpose(pooled, [0, 3, 1, 2])
        return regions.per_image(pooled)


class _DeformableRoILayer(_RoILayer):
    """A pooling layer that owns the branch which moves its bins."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        samples_per_bin: int,
        aligned: bool,
        gamma: float,
        offset_kernel_initializer: Any,
        offset_bias_initializer: Any,
        offset_kernel_regularizer: Any,
        offset_bias_regularizer: Any,
        offset_learning_rate_multiplier: float,
        data_format: str | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size, spatial_scale, samples_per_bin, aligned, data_format, **kwargs
        )
        self.gamma = self._finite_number("gamma", gamma)
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
            "gamma": self.gamma,
            "offset_learning_rate_multiplier": self.offset_learning_rate_multiplier,
            **{
                name: tf.keras.initializers.serialize(getattr(self, name))
                for name in ("offset_kernel_initializer", "offset_bias_initializer")
            },
            **{
                name: tf.keras.regularizers.serialize(getattr(self, name))
                for name in ("offset_kernel_regularizer", "offset_bias_regularizer")
            },
        }

    def _known_channels(self, input_shape: Any) -> int:
        """The features' channels, which the layer is then built for."""
        features, _ = self._input_shapes(input_shape)
        channels = features[3]
        if channels is None:
            raise self._error("features", "must have a known number of channels", features)
        self.input_spec = [
            tf.keras.layers.InputSpec(
                ndim=4, axes={1 if self.data_format == "channels_first" else 3: channels}
            ),
            tf.keras.layers.InputSpec(ndim=3),
        ]
        return channels

    def _scaled_gradient(self, branch_outputs: tf.Tensor) -> tf.Tensor:
        if self.offset_learning_rate_multiplier == 1.0:
            return branch_outputs
        return scale_gradient(branch_outputs, self.offset_learning_rate_multiplier)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class RoIPool(_RoILayer):
    """RoI pooling: averages the features in a grid of bins over each box.

    The layer of `tf_deformable.deformable_roi_pool` without offsets: what the deformable layer is
    compared with. It has no weights.

    Example:
    >>> features = tf.random.normal([2, 38, 63, 256])  # of images 16 times as large
    >>> boxes = tf.constant([[[32.0, 48.0, 300.0, 500.0], [0.0, 0.0, 95.0, 63.0]],
    ...                      [[10.0, 10.0, 200.0, 90.0], [0.0, 0.0, 0.0, 0.0]]])  # one is padding
    >>> tf_deformable.layers.RoIPool(7, spatial_scale=1 / 16)([features, boxes]).shape
    TensorShape([2, 2, 7, 7, 256])

    Args:
        output_size: int or two ints (ph, pw), number of bins.
        spatial_scale: float, pixels of the features per pixel of the image: 1/16 for features of
            stride 16.
        samples_per_bin: int, number of bilinear samples of a bin along each axis, at least 1. With
            `aligned=True` 0 means one per pixel; such a layer does not run under XLA.
        aligned: bool, where a box lies on the features. False: as in the operator of the authors
            of Deformable ConvNets, box coordinates are indices of pixels and are rounded, y2 and x2
            are the last pixels inside. True: as in RoIAlign, they are continuous, pixel i extends
            from i to i+1, and nothing is rounded. See `tf_deformable.deformable_roi_pool`.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' own setting. The
            operator works on channels_last, channels_first is transposed before and after.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`. (`autocast` changes
            nothing: features are cast to the compute dtype, boxes are not.)

    Input shape:
        A list `[features, boxes]`:
        features: `[B, H, W, C]`, for channels_first `[B, C, H, W]`. All but the rank may be
            unknown. Any real dtype; it is cast to the layer's compute dtype (float16, bfloat16,
            float32 or float64).
        boxes: `[B, R, 4]`, (y1, x1, y2, x2) in pixels of the image. R, the boxes per image, may be
            unknown; a `tf.RaggedTensor` is padded to the largest R. float32, float64 or integers,
            in every dtype policy: half precision would move boxes by whole pixels and is refused.
            Boxes are not differentiated.

        Images with fewer than R boxes are padded: a box of four zeros, or of four times -1, is
        padding. Its output is 0, and no gradient comes from it, whatever is in its place upstream.
        (Zeros are what `tf.pad`, `RaggedTensor.to_tensor` and
        `tf.image.combined_non_max_suppression` fill up with, -1 is KerasCV's choice.)

        `layer(features, boxes)` and `layer({"features": features, "boxes": boxes})` do the same.

    Output shape:
        `[B, R, ph, pw, C]`, for channels_first `[B, R, C, ph, pw]`.

    Returns:
        A tensor in the compute dtype.

    Raises:
        ValueError: an argument breaks its rule, shapes do not fit, or boxes are in half precision.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2 (RoI pooling by
        averages); He et al., Mask R-CNN, ICCV 2017, section 3 (`aligned=True`).
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        aligned: bool = False,
        *,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size, spatial_scale, samples_per_bin, aligned, data_format, **kwargs
        )

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the pooled features of the boxes."""
        regions = self._regions(inputs)
        pooled = deformable_roi_pool(
            regions.features, regions.boxes, regions.box_indices, **self._geometry()
        )
        return self._per_image(pooled, regions)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class PSRoIPool(_RoILayer):
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
        `[B, R, ph, pw, D]`, for channels_first `[B, R, D, ph, pw]`.

    Returns:
        A tensor in the compute dtype.

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
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        aligned: bool = False,
        *,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size, spatial_scale, samples_per_bin, aligned, data_format, **kwargs
        )
        self.group_size = self._positive_integer("group_size", group_size)

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the pooled score maps of the boxes."""
        regions = self._regions(inputs)
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
        maps = self.group_size**2
        if channels is None:
            return None
        if channels == 0 or channels % maps:
            rule = f"must be a positive multiple of group_size*group_size={maps}"
            raise self._error("features channels", rule, channels)
        return channels // maps


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DeformableRoIPool(_DeformableRoILayer):
    """RoI pooling that learns where to move its bins.

    The features of each box are pooled twice. From the first, plain pooling, a fully connected
    branch (owned by the layer) predicts an offset for every bin, in units of the box's size; the
    second pools at the moved bins. With `modulated=True` the branch also predicts a factor for
    every bin. An untrained layer does not move its bins: it equals `RoIPool` (times
    `mask_initial_value` if modulated).

    Example:
    >>> features = tf.keras.Input((None, None, 256))
    >>> boxes = tf.keras.Input((None, 4))
    >>> pooled = tf_deformable.layers.DeformableRoIPool(7, spatial_scale=1 / 16)([features, boxes])
    >>> scores = tf.keras.layers.Dense(21)(tf.keras.layers.Reshape((-1, 7 * 7 * 256))(pooled))
    >>> head = tf.keras.Model([features, boxes], scores)
    >>> head([tf.zeros([2, 38, 63, 256]), tf.zeros([2, 300, 4])]).shape
    TensorShape([2, 300, 21])

    Deformable ConvNets v2 has two hidden layers and a mask:

    >>> layer = tf_deformable.layers.DeformableRoIPool(
    ...     7, spatial_scale=1 / 16, offset_units=(1024, 1024), modulated=True)

    Args:
        output_size: int or two ints (ph, pw), number of bins.
        spatial_scale: float, pixels of the features per pixel of the image: 1/16 for features of
            stride 16.
        samples_per_bin: int, samples of a bin along each axis, as in `RoIPool`.
        gamma: float, scale of the offsets: a predicted 1 moves a bin by `gamma` times the height
            (width) of its box.
        aligned: bool, where a box lies on the features, as in `RoIPool`.
        offset_units: tuple of ints, sizes of the branch's hidden layers, each followed by a ReLU.
        modulated: bool, whether every bin is also multiplied with a predicted mask (Deformable
            ConvNets v2).
        mask_initial_value: mask of an untrained modulated layer, `0.5` or `1.0`. With 0.5, as in
            the paper, the mask is `sigmoid(logits)`, in (0, 1); with 1.0 it is
            `2 * sigmoid(logits)`, in (0, 2), and the layer starts as the plain pooling.
        offset_hidden_kernel_initializer: initializer of the kernels of the branch's hidden layers,
            whose biases start at zero.
        offset_kernel_initializer: initializer of the kernel of the branch's output layer.
        offset_bias_initializer: initializer of the bias of the branch's output layer.
        offset_kernel_regularizer: regularizer of all kernels of the branch.
        offset_bias_regularizer: regularizer of all biases of the branch.
        offset_learning_rate_multiplier: non-negative float; the gradient that reaches the output
            of the offset branch is multiplied by it, hence also what flows on to the branch's
            weights and, through the branch, to the features. (The authors' Faster R-CNN has 0.01
            for the weights.) Optimizers that normalise gradients (Adam and its kin) undo such a
            factor; there it matters for clipping alone.
        data_format: `"channels_last"` or `"channels_first"`, as in `RoIPool`.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Weights, in this order:
        offset_hidden_kernel_n, offset_hidden_bias_n: `[inputs, units]` and `[units]`, for each
            hidden layer n = 0, 1, ... The branch reads the ph*pw*C numbers of plain pooling,
            ordered (bin row, bin column, C).
        offset_kernel: `[inputs, D]`, D = 2*ph*pw, or 3*ph*pw if modulated. The first 2*ph*pw
            outputs are the offsets, ordered (bin row, bin column, (dy, dx)); the others are the
            logits of the mask, ordered (bin row, bin column).
        offset_bias: `[D]`.

    Input shape:
        A list `[features, boxes]`:
        features: `[B, H, W, C]`. All but C may be unknown.
        boxes: `[B, R, 4]`, (y1, x1, y2, x2) in pixels of the image, padded as in `RoIPool`: a box
            that is padding trains nothing, the branch included.

        Dtypes, and what else may be unknown, as in `RoIPool`.

    Output shape:
        `[B, R, ph, pw, C]`.

    Returns:
        A tensor in the compute dtype.

    Raises:
        ValueError: an argument breaks its rule, shapes do not fit, or boxes are in half precision.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2, equation 6 and
        Figure 3 (fully connected branch, gamma 0.1, zero initialisation); Zhu et al., Deformable
        ConvNets v2, CVPR 2019, equation 2 (mask, hidden layers of the branch).
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        gamma: float = 0.1,
        aligned: bool = False,
        offset_units: tuple[int, ...] = (),
        modulated: bool = False,
        mask_initial_value: float = 0.5,
        offset_hidden_kernel_initializer: Any = "glorot_uniform",
        offset_kernel_initializer: Any = "zeros",
        offset_bias_initializer: Any = "zeros",
        offset_kernel_regularizer: Any = None,
        offset_bias_regularizer: Any = None,
        offset_learning_rate_multiplier: float = 1.0,
        *,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            output_size,
            spatial_scale,
            samples_per_bin,
            aligned,
            gamma,
            offset_kernel_initializer,
            offset_bias_initializer,
            offset_kernel_regularizer,
            offset_bias_regularizer,
            offset_learning_rate_multiplier,
            data_format,
            **kwargs,
        )
        if not isinstance(offset_units, (tuple, list)):
            raise self._error("offset_units", "must be a tuple of positive integers", offset_units)
        self.offset_units = tuple(
            self._positive_integer("each of offset_units", units) for units in offset_units
        )
        self.modulated = self._boolean("modulated", modulated)
        if mask_initial_value not in (0.5, 1.0):
            raise self._error("mask_initial_value", "must be 0.5 or 1.0", mask_initial_value)
        self.mask_initial_value = float(mask_initial_value)
        self.offset_hidden_kernel_initializer = tf.keras.initializers.get(
            offset_hidden_kernel_initializer
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights for features of this shape, whose channels must be known."""
        if self.built:
            return
        bins = math.prod(self.output_size)
        size = bins * self._known_channels(input_shape)
        for layer, units in enumerate(self.offset_units):
            kernel = self._add_branch_weight(
                name=f"offset_hidden_kernel_{layer}",
                shape=(size, units),
                initializer=_fresh(self.offset_hidden_kernel_initializer),
                regularizer=self.offset_kernel_regularizer,
            )
            bias = self._add_branch_weight(
                name=f"offset_hidden_bias_{layer}",
                shape=(units,),
                initializer="zeros",
                regularizer=self.offset_bias_regularizer,
            )
            # Attributes, not a list: checkpoints of Keras 3 do not look into lists.
            setattr(self, f"offset_hidden_kernel_{layer}", kernel)
            setattr(self, f"offset_hidden_bias_{layer}", bias)
            size = units
        branch_outputs = (3 if self.modulated else 2) * bins
        self.offset_kernel = self._add_branch_weight(
            name="offset_kernel",
            shape=(size, branch_outputs),
            initializer=self.offset_kernel_initializer,
            regularizer=self.offset_kernel_regularizer,
        )
        self.offset_bias = self._add_branch_weight(
            name="offset_bias",
            shape=(branch_outputs,),
            initializer=self.offset_bias_initializer,
            regularizer=self.offset_bias_regularizer,
        )
        self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the features of the boxes, pooled at the predicted bins."""
        regions = self._regions(inputs)
        offsets, mask = self._offset_branch(regions)
        pooled = deformable_roi_pool(
            regions.features,
            regions.boxes,
            regions.box_indices,
            offsets,
            mask,
            gamma=self.gamma,
            **self._geometry(),
        )
        return self._per_image(pooled, regions)

    @accepts_keras_tensors
    def compute_offsets(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Predicts the offsets and the mask that the layer uses for these inputs.

        Args:
            inputs: `[features, boxes]`, as the layer is called with. In a model, the inputs of this
                layer: `tf.keras.Model(model.input, layer.input)([images, boxes])`.

        Returns:
            offsets: `[B, R, ph, pw, 2]`, (dy, dx) in units of the box's height and width and of
                1/gamma, float32 (float64 if the layer computes in float64). Padding has offsets
                too; they are not used.
            mask: `[B, R, ph, pw]`, None if the layer is not modulated.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        regions = self._regions(inputs)
        offsets, mask = self._offset_branch(regions)
        return regions.per_image(offsets), None if mask is None else regions.per_image(mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "offset_units": self.offset_units,
            "modulated": self.modulated,
            "mask_initial_value": self.mask_initial_value,
            "offset_hidden_kernel_initializer": tf.keras.initializers.serialize(
                self.offset_hidden_kernel_initializer
            ),
        }

    def _offsets(self, regions: _Regions) -> tf.Tensor:
        return self._offset_branch(regions)[0]

    def _offset_branch(self, regions: _Regions) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns offsets `[B*R, ph, pw, 2]` and mask `[B*R, ph, pw]` (or None)."""
        self._check_is_built()
        pooled = deformable_roi_pool(
            regions.features, regions.boxes, regions.box_indices, **self._geometry()
        )
        outputs = tf.reshape(self._cast_sampling(pooled), [-1, math.prod(pooled.shape[1:])])
        for layer in range(len(self.offset_units)):
            kernel = getattr(self, f"offset_hidden_kernel_{layer}")
            bias = getattr(self, f"offset_hidden_bias_{layer}")
            outputs = tf.nn.relu(self._dense(outputs, kernel, bias))
        outputs = self._dense(outputs, self.offset_kernel, self.offset_bias)
        outputs = self._scaled_gradient(outputs)
        logits = None
        if self.modulated:
            bins = math.prod(self.output_size)
            outputs, logits = tf.split(outputs, [2 * bins, bins], axis=-1)
        offsets = tf.reshape(outputs, [-1, *self.output_size, 2])
        if logits is None:
            return offsets, None
        mask = mask_from_logits(logits, self.mask_initial_value)
        return offsets, tf.reshape(mask, [-1, *self.output_size])

    def _dense(self, inputs: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
        kernel, bias = self._cast_sampling(kernel), self._cast_sampling(bias)
        return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)


def _fresh(initializer: Any) -> Any:
    """A copy that draws numbers of its own: Keras' initializers repeat theirs when called again."""
    if hasattr(initializer, "get_config"):
        return type(initializer).from_config(initializer.get_config())
    return initializer


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DeformablePSRoIPool(_DeformableRoILayer):
    """Position-sensitive RoI pooling that learns where to move its bins: a deformable R-FCN head.

    Two sibling 1x1 convolutions (owned by the layer) read the features: one makes the k*k score
    maps of `filters` channels, the other the offset fields. Plain position-sensitive pooling of the
    offset fields gives each bin its offset, in units of the box's size, for every one of the
    `filters` outputs by itself; deformable position-sensitive pooling of the score maps gives the
    result. An untrained layer does not move its bins: it equals a 1x1 `Conv2D` and `PSRoIPool`.

    Example:
    >>> features = tf.random.normal([2, 38, 63, 512])  # of images 16 times as large
    >>> boxes = tf.constant([[[32.0, 48.0, 300.0, 500.0]], [[10.0, 10.0, 200.0, 90.0]]])
    >>> layer = tf_deformable.layers.DeformablePSRoIPool(21, 7, spatial_scale=1 / 16)
    >>> scores = tf.reduce_mean(layer([features, boxes]), axis=[2, 3])
    >>> scores.shape
    TensorShape([2, 1, 21])

    The corrections of the boxes, for all classes alike:

    >>> layer = tf_deformable.layers.DeformablePSRoIPool(
    ...     4, 7, spatial_scale=1 / 16, class_agnostic=True)
    >>> tf.reduce_mean(layer([features, boxes]), axis=[2, 3]).shape
    TensorShape([2, 1, 4])

    Args:
        filters: int, D, number of output channels: 1 + the number of classes for scores, 4 for the
            corrections of class-agnostic boxes.
        group_size: int, k. Bin (i, j) reads map `(i*k // ph, j*k // pw)`.
        output_size: int or two ints (ph, pw), number of bins, or None: `group_size`.
        spatial_scale: float, pixels of the features per pixel of the image: 1/16 for features of
            stride 16.
        samples_per_bin: int, samples of a bin along each axis, as in `RoIPool`.
        gamma: float, scale of the offsets: a predicted 1 moves a bin by `gamma` times the height
            (width) of its box.
        aligned: bool, where a box lies on the features, as in `RoIPool`.
        class_agnostic: bool. False: every output channel has offsets of its own. True: they share
            one, as in the box branch of the authors.
        use_bias: bool, whether the score maps have a bias. The offset fields always have one.
        kernel_initializer: initializer of the kernel of the score maps.
        bias_initializer: initializer of their bias.
        kernel_regularizer: regularizer of that kernel.
        bias_regularizer: regularizer of that bias.
        activity_regularizer: regularizer of the output.
        kernel_constraint: constraint of that kernel.
        bias_constraint: constraint of that bias.
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

    Weights (C the features' channels), in this order:
        kernel: `[1, 1, C, k*k*D]`, outputs ordered (map row, map column, D).
        bias: `[k*k*D]`, if `use_bias`.
        offset_kernel: `[1, 1, C, k*k*classes*2]`, classes = 1 if `class_agnostic`, else D; outputs
            ordered (map row, map column, class, (dy, dx)), the last fastest.
        offset_bias: `[k*k*classes*2]`.

    Input shape:
        A list `[features, boxes]`:
        features: `[B, H, W, C]`. All but C may be unknown.
        boxes: `[B, R, 4]`, (y1, x1, y2, x2) in pixels of the image, padded as in `RoIPool`: a box
            that is padding trains nothing.

        Dtypes, and what else may be unknown, as in `RoIPool`.

    Output shape:
        `[B, R, ph, pw, D]`. R-FCN takes the mean over ph and pw, and of scores then the softmax.

    Returns:
        A tensor in the compute dtype.

    Raises:
        ValueError: an argument breaks its rule, shapes do not fit, or boxes are in half precision.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2 and Figure 4; Dai, Li,
        He and Sun, R-FCN, NIPS 2016.
    """

    def __init__(
        self,
        filters: int,
        group_size: int,
        output_size: int | tuple[int, int] | None = None,
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        gamma: float = 0.1,
        aligned: bool = False,
        class_agnostic: bool = False,
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
        *,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            group_size if output_size is None else output_size,
            spatial_scale,
            samples_per_bin,
            aligned,
            gamma,
            offset_kernel_initializer,
            offset_bias_initializer,
            offset_kernel_regularizer,
            offset_bias_regularizer,
            offset_learning_rate_multiplier,
            data_format,
            activity_regularizer=activity_regularizer,
            **kwargs,
        )
        self.filters = self._positive_integer("filters", filters)
        self.group_size = self._positive_integer("group_size", group_size)
        self.class_agnostic = self._boolean("class_agnostic", class_agnostic)
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
        channels = self._known_channels(input_shape)
        score_maps = self.group_size**2 * self.filters
        offset_fields = self.group_size**2 * self._classes * 2
        self.kernel = self.add_weight(
            name="kernel",
            shape=(1, 1, channels, score_maps),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(score_maps,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.offset_kernel = self._add_branch_weight(
            name="offset_kernel",
            shape=(1, 1, channels, offset_fields),
            initializer=self.offset_kernel_initializer,
            regularizer=self.offset_kernel_regularizer,
        )
        self.offset_bias = self._add_branch_weight(
            name="offset_bias",
            shape=(offset_fields,),
            initializer=self.offset_bias_initializer,
            regularizer=self.offset_bias_regularizer,
        )
        self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the score maps of the boxes, pooled at the predicted bins."""
        regions = self._regions(inputs)
        offsets = self._offsets(regions)
        bias = self._cast(self.bias) if self.use_bias else None
        scores = self._convolution(regions.features, self._cast(self.kernel), bias)
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
            `class_agnostic`, else `filters`. Padding has offsets of zero.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        regions = self._regions(inputs)
        return regions.per_image(self._offsets(regions))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "group_size": self.group_size,
            "class_agnostic": self.class_agnostic,
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

    @property
    def _classes(self) -> int:
        return 1 if self.class_agnostic else self.filters

    def _output_channels(self, channels: int | None) -> int | None:
        return self.filters

    def _offsets(self, regions: _Regions) -> tf.Tensor:
        """Returns offsets `[B*R, ph, pw, classes, 2]`."""
        self._check_is_built()
        kernel, bias = map(self._cast_sampling, (self.offset_kernel, self.offset_bias))
        fields = self._convolution(regions.features, kernel, bias)
        offsets = self._scaled_gradient(self._pool(fields, regions))
        return tf.reshape(offsets, [-1, *self.output_size, self._classes, 2])

    def _convolution(
        self, features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None
    ) -> tf.Tensor:
        maps = wide_convolution(features, kernel)
        return maps if bias is None else tf.nn.bias_add(maps, bias)

    def _pool(
        self, maps: tf.Tensor, regions: _Regions, offsets: tf.Tensor | None = None
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
