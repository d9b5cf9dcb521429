"""What the layers of RoI pooling share, plain and deformable ones.

Features and boxes come in with their batch axis, `[B, H, W, C]` and `[B, R, 4]`; the operators take
all boxes in one axis with the index of their image beside them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.data_format import in_format
from tf_deformable._geometry.roi_pool import MOST_SAMPLES_PER_BIN
from tf_deformable.layers._base import OperatorLayer, as_integer, as_output_shape
from tf_deformable.layers._offset_branch import OffsetBranchLayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.sampling import bin_boxes

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Regions:
    """What a layer is called with, as the operators take it."""

    features: tf.Tensor  # [B, H, W, C], in the layer's compute dtype
    boxes: tf.Tensor  # [B*R, 4]
    box_indices: tf.Tensor  # [B*R], -1 for padding
    counts: tf.Tensor  # [2]: B and R
    offset_features: tf.Tensor  # [B, H, W, C'], what offset fields are made of

    def per_image(self, tensor: tf.Tensor) -> tf.Tensor:
        """`[B*R, ...]` to `[B, R, ...]`."""
        return tf.reshape(tensor, tf.concat([self.counts, tf.shape(tensor)[1:]], axis=0))

    def without_padding(self, tensor: tf.Tensor) -> tf.Tensor:
        """`[B*R, ...]` with zeros for the boxes that are padding."""
        is_padding = tf.reshape(self.box_indices < 0, [-1] + [1] * (tensor.shape.rank - 1))
        return tf.where(is_padding, tf.zeros([], tensor.dtype), tensor)


class RoILayer(OperatorLayer):
    """A layer that pools boxes: `[features, boxes]` in, one grid of bins per box out."""

    gamma = 0.0  # Without offsets nothing moves.

    def __init__(
        self,
        output_size: int | tuple[int, int],
        *,
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
        fewest = 0 if self.aligned else 1
        if number is None or not fewest <= number <= MOST_SAMPLES_PER_BIN:
            rule = (
                "must be a positive integer (or 0 with aligned=True: one per pixel), "
                f"at most {MOST_SAMPLES_PER_BIN}"
            )
            raise self._error("samples_per_bin", rule, samples_per_bin)
        self.samples_per_bin = number
        if number == 0:  # The boxes decide how much there is to compute.
            self._reference_supports_jit = False

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
        regions = self.as_regions(inputs)
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
        features, boxes, *_ = self._input_shapes(input_shape)
        batch = boxes[0] if features[0] is None else features[0]
        channels = self._output_channels(features[3])
        if self.data_format == "channels_first":
            return as_output_shape((batch, boxes[1], channels, *self.output_size))
        return as_output_shape((batch, boxes[1], *self.output_size, channels))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {**super().get_config(), **self._geometry(), "data_format": self.data_format}

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        return "features", "boxes"

    def gather_inputs(self, inputs: Any, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns `[features, boxes]`, boxes that are ragged padded with zeros."""
        inputs = super().gather_inputs(inputs, others, kwargs)
        if isinstance(inputs, (tuple, list)) and len(inputs) == len(self.names_of_inputs):
            features, boxes, *rest = inputs
            if hasattr(boxes, "to_tensor"):  # of tf.RaggedTensor, and of what tf-keras traces with
                return [features, boxes.to_tensor(shape=[None, None, 4]), *rest]
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

    def _depth(self, channels: int | None, group_size: int) -> int | None:
        """The number of channels of one score map."""
        maps = group_size**2
        if channels is None:
            return None
        if channels == 0 or channels % maps:
            rule = f"must be a positive multiple of group_size*group_size={maps}"
            raise self._error("features channels", rule, channels)
        return channels // maps

    def _offsets(self, regions: Regions) -> tf.Tensor | None:
        """Offsets as the operator takes them, None if the layer moves nothing."""
        return None

    def as_regions(self, inputs: Any) -> Regions:
        """Checks what the layer is called with and brings it into the operators' form."""
        if not isinstance(inputs, (tuple, list)) or len(inputs) != len(self.names_of_inputs):
            raise self._error("inputs", self._inputs_rule, type(inputs).__name__)
        boxes = tf.convert_to_tensor(inputs[1])
        maps = [self._cast(value) for value in (inputs[0], *inputs[2:])]
        shapes = [tensor.shape for tensor in maps]
        shape, *_ = self._input_shapes([shapes[0], boxes.shape, *shapes[1:]])
        self._output_channels(shape[3])
        maps = [self._channels_last(tensor) for tensor in maps]
        features = maps[0]
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
        return Regions(
            features=features,
            boxes=tf.reshape(boxes, [-1, 4]),
            box_indices=tf.reshape(images, [-1]),
            counts=counts,
            offset_features=maps[-1],
        )

    @property
    def _inputs_rule(self) -> str:
        return f"must be [{', '.join(self.names_of_inputs)}]"

    def _input_shapes(self, input_shape: Any) -> list[Shape]:
        """Checks the shapes of all inputs; returns those of maps with channels last."""
        try:
            shapes = [tuple(tf.TensorShape(shape).as_list()) for shape in input_shape]
            features, boxes, *others = shapes
        except (TypeError, ValueError):
            raise self._error("inputs", self._inputs_rule, input_shape) from None
        if len(shapes) != len(self.names_of_inputs):
            raise self._error("inputs", self._inputs_rule, input_shape)
        layout = "[B,C,H,W]" if self.data_format == "channels_first" else "[B,H,W,C]"
        for name, shape in zip(("features", "offset_features"), (features, *others), strict=False):
            if len(shape) != 4:
                raise self._error(name, f"must have rank 4 {layout}", shape)
        if len(boxes) != 3 or boxes[2] not in (4, None):
            raise self._error("boxes", "must have shape [B,R,4]", boxes)
        if None not in (features[0], boxes[0]) and features[0] != boxes[0]:
            rule = f"must have the batch size of features ({features[0]})"
            raise self._error("boxes", rule, boxes)
        if self.data_format == "channels_first":
            features, *others = ((n, h, w, c) for n, c, h, w in (features, *others))
        for other in others:
            if not tf.TensorShape(other[:3]).is_compatible_with(features[:3]):
                rule = f"must have the batch, height and width of features {features[:3]}"
                raise self._error("offset_features", rule, other[:3])
        return [features, boxes, *others]

    def _per_image(self, pooled: tf.Tensor, regions: Regions) -> tf.Tensor:
        """`[B*R, ph, pw, C]` to what the layer returns."""
        return regions.per_image(self._in_data_format(pooled))


class DeformableRoILayer(OffsetBranchLayer, RoILayer):
    """A pooling layer that owns the branch which moves its bins."""

    def __init__(self, output_size: int | tuple[int, int], *, gamma: float, **kwargs: Any) -> None:
        super().__init__(output_size, **kwargs)
        self.gamma = self._finite_number("gamma", gamma)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {**super().get_config(), "gamma": self.gamma}

    def _known_channels(self, input_shape: Any) -> int:
        """The channels of what the branch reads; the layer is then built for those of all maps."""
        features, _, *others = self._input_shapes(input_shape)
        first = self.data_format == "channels_first"
        names = ("features", "offset_features")
        for name, shape in zip(names, (features, *others), strict=False):
            if shape[3] is None:
                given = in_format(shape, "NCHW") if first else shape
                raise self._error(name, "must have a known number of channels", tuple(given))
        axis = 1 if first else 3
        of_features, *of_others = (
            tf.keras.layers.InputSpec(ndim=4, axes={axis: shape[3]})
            for shape in (features, *others)
        )
        self.input_spec = [of_features, tf.keras.layers.InputSpec(ndim=3), *of_others]
        channels = (features, *others)[-1][3]
        assert channels is not None
        return channels
