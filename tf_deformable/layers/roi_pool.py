"""Keras layers: RoI pooling, plain, and with the branch that predicts its offsets."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import fresh
from tf_deformable.layers._roi_base import DeformableRoILayer, Regions, RoILayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.roi_pool import deformable_roi_pool
from tf_deformable.reference.conv2d_branch import mask_from_logits


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class RoIPool(RoILayer):
    """RoI pooling: averages the features in a grid of bins over each box.

    The layer of `tf_deformable.deformable_roi_pool` without offsets: what the deformable layer is
    compared with. It has no weights.

    Example:
        >>> features = tf.random.normal([2, 38, 63, 256])  # of images 16 times as large
        >>> boxes = tf.constant([
        ...     [[32.0, 48.0, 300.0, 500.0], [0.0, 0.0, 95.0, 63.0]],
        ...     [[10.0, 10.0, 200.0, 90.0], [0.0, 0.0, 0.0, 0.0]]])  # the last is padding
        >>> tf_deformable.layers.RoIPool(7, spatial_scale=1 / 16)([features, boxes]).shape
        TensorShape([2, 2, 7, 7, 256])

    Args:
        output_size: int or two ints (ph, pw), number of bins.
        spatial_scale: float, pixels of the features per pixel of the image: 1/16 for features of
            stride 16.
        samples_per_bin: int, number of bilinear samples of a bin along each axis, 1 to 1024. With
            `aligned=True` 0 means one per pixel; such a layer does not run under XLA.
        aligned: bool, where a box lies on the features. True: as in RoIAlign, box coordinates are
            continuous, pixel i extends from i to i+1, and nothing is rounded. False: as in the
            operator of the authors of Deformable ConvNets, they are indices of pixels and are
            rounded, and y2 and x2 are the last pixels inside. See
            `tf_deformable.deformable_roi_pool`.
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
        `[B, R, ph, pw, C]`, for channels_first `[B, R, C, ph, pw]`, in the compute dtype.

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

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the pooled features of the boxes."""
        regions = self.as_regions(inputs)
        pooled = deformable_roi_pool(
            regions.features, regions.boxes, regions.box_indices, **self._geometry()
        )
        return self._per_image(pooled, regions)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class DeformableRoIPool(DeformableRoILayer):
    """RoI pooling that learns where to move its bins.

    The features of each box are pooled twice. From the first, plain pooling, a fully connected
    branch (owned by the layer) predicts an offset for every bin, in units of the box's size; the
    second pools at the moved bins. With `modulated=True` the branch also predicts a factor for
    every bin. An untrained layer does not move its bins: it equals `RoIPool` (times
    `mask_initial_value` if modulated).

    Example:
        >>> features = tf.keras.Input((None, None, 256))
        >>> boxes = tf.keras.Input((None, 4))
        >>> layer = tf_deformable.layers.DeformableRoIPool(7, spatial_scale=1 / 16)
        >>> pooled = layer([features, boxes])
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

    Weights:
        In this order:
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
        `[B, R, ph, pw, C]`, in the compute dtype.

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
        *,
        spatial_scale: float = 1.0,
        samples_per_bin: int = 4,
        gamma: float = 0.1,
        aligned: bool = True,
        offset_units: tuple[int, ...] = (),
        modulated: bool = False,
        mask_initial_value: float = 0.5,
        offset_hidden_kernel_initializer: Any = "glorot_uniform",
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
            **kwargs,
        )
        if not isinstance(offset_units, (tuple, list)):
            raise self._error("offset_units", "must be a tuple of positive integers", offset_units)
        self.offset_units = tuple(
            self._positive_integer("each of offset_units", units) for units in offset_units
        )
        self.modulated = self._boolean("modulated", modulated)
        self.mask_initial_value = self._mask_start(mask_initial_value)
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
                initializer=fresh(self.offset_hidden_kernel_initializer),
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
        self._add_offset_weights((size, branch_outputs))
        self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the features of the boxes, pooled at the predicted bins."""
        regions = self.as_regions(inputs)
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
        regions = self.as_regions(inputs)
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

    def _offsets(self, regions: Regions) -> tf.Tensor:
        return self._offset_branch(regions)[0]

    def _offset_branch(self, regions: Regions) -> tuple[tf.Tensor, tf.Tensor | None]:
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
        mask = mask_from_logits(logits, 2 * self.mask_initial_value)
        return offsets, tf.reshape(mask, [-1, *self.output_size])

    def _dense(self, inputs: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
        kernel, bias = self._cast_sampling(kernel), self._cast_sampling(bias)
        return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)
