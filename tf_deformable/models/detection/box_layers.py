"""Layers of boxes: what is between a detector's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.models import boxes as box_ops


class BoxLayer(tf.keras.layers.Layer):
    """A layer of boxes: they are float32, whatever the policy and the features are."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **{**kwargs, "dtype": "float32"})


@tf.keras.utils.register_keras_serializable(package="tf_deformable", name="_Regions")
class Regions(BoxLayer):
    """The boxes that deltas make of the anchors of maps: `[B, anchors of all of them, 4]`.

    The anchors of one map come after those of another, in the order of the maps.
    """

    def __init__(
        self,
        strides: Sequence[float],
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._arguments: dict[str, Any] = {
            "strides": [float(stride) for stride in strides],
            "anchor_sizes": [[float(size) for size in sizes] for sizes in anchor_sizes],
            "aspect_ratios": [float(ratio) for ratio in aspect_ratios],
        }

    def anchors(self, maps: Sequence[Any]) -> tf.Tensor:
        """Returns the anchors of maps: `[anchors of all of them, 4]`."""
        strides, anchor_sizes, ratios = self._arguments.values()
        each = [
            box_ops.anchor_boxes(tf.shape(features)[1:3], stride, sizes, ratios)
            for features, stride, sizes in zip(maps, strides, anchor_sizes, strict=True)
        ]
        return tf.concat(each, axis=0)

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the boxes of `[*maps, deltas]`."""
        *maps, deltas = inputs
        return box_ops.decode(self.anchors(maps), deltas)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self._arguments}


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class Joined(BoxLayer):
    """Makes one pair of logits and deltas of those of several maps, `[B, anchors, ...]`."""

    def call(self, inputs: Any) -> list[tf.Tensor]:
        """Returns logits and deltas of a list of such pairs."""
        if len(inputs) == 1:
            return list(inputs[0])
        return [tf.concat(each, axis=1) for each in zip(*inputs, strict=True)]


@tf.keras.utils.register_keras_serializable(package="tf_deformable", name="_Decode")
class Decode(BoxLayer):
    """The boxes that deltas make of boxes."""

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the boxes of `[boxes, deltas]`."""
        return box_ops.decode(*inputs)


@tf.keras.utils.register_keras_serializable(package="tf_deformable", name="_Best")
class Best(BoxLayer):
    """What `boxes.select` returns for boxes and the logits of their classes, background's last.

    They are cut to the images; no gradient comes through.
    """

    def __init__(
        self, count: int, iou_threshold: float, score_threshold: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._arguments: dict[str, Any] = {
            "count": int(count),
            "iou_threshold": float(iou_threshold),
            "score_threshold": float(score_threshold),
        }
        self.supports_jit = False  # XLA has no CombinedNonMaxSuppression.

    def call(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Returns the detections among `[boxes, logits, images]`."""
        boxes, logits, images = inputs
        return box_ops.select(
            tf.stop_gradient(boxes),
            tf.nn.softmax(tf.stop_gradient(logits))[..., :-1],
            image_size=tf.shape(images)[1:3],
            **self._arguments,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self._arguments}


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class BoxesByLevel(BoxLayer):
    """Tells boxes apart by the map that they are pooled from, as `boxes.assign_levels` does.

    Of boxes `[B, R, 4]` it makes a list of as many, one for each map; in each, zeros are in the
    place of what another map has. RoI pooling makes zeros of these, and no gradient.
    """

    def __init__(self, strides: Sequence[float], canonical_size: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._arguments: dict[str, Any] = {
            "strides": [float(stride) for stride in strides],
            "canonical_size": float(canonical_size),
        }

    def call(self, boxes: Any) -> list[tf.Tensor]:
        """Returns the boxes of each map."""
        levels = box_ops.assign_levels(boxes, **self._arguments)[..., tf.newaxis]
        return [
            tf.where(tf.equal(levels, number), boxes, tf.zeros([], boxes.dtype))
            for number in range(len(self._arguments["strides"]))
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self._arguments}
