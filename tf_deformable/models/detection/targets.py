"""What `fit` and `evaluate` are given, as a detector's steps take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """Images and their targets, padded: what a step of `fit` or `evaluate` calls a detector with.

    With it, the targets come along where Keras' own steps call the model with the images.
    """

    images: Any
    boxes: tf.Tensor
    labels: tf.Tensor


def with_targets(data: Any) -> tuple[Batch, dict[str, Any]]:
    """Returns what Keras' steps are to work on, of what `fit` and `evaluate` were given."""
    images, targets, weights = tf.keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError("Detector: the losses take no sample_weight (nor class_weight), got one")
    return as_batch(images, targets), targets


def as_batch(images: Any, targets: Any) -> Batch:
    """Returns images and targets, the latter as tensors in which all padding is alike."""
    names = ("boxes", "labels")
    if not isinstance(targets, Mapping) or any(name not in targets for name in names):
        got = sorted(targets) if isinstance(targets, Mapping) else type(targets).__name__
        raise ValueError(f"Detector: targets must be a dictionary of {names}, got {got}")
    boxes = _dense("boxes", targets["boxes"], tf.float32, 0.0, [None, None, 4])
    labels = _dense("labels", targets["labels"], tf.int32, -1, [None, None])
    if not boxes.shape[:2].is_compatible_with(labels.shape):
        raise ValueError(
            "Detector: targets must have as many boxes as labels, got "
            f"{boxes.shape} and {labels.shape}"
        )
    images = tf.nest.flatten(images)
    if len(images) != 1:
        raise ValueError(f"Detector: images must be one tensor, got {len(images)}")
    is_empty = tf.reduce_any(boxes[..., 2:] <= boxes[..., :2], axis=-1)  # False of NaN, an error
    is_object = (labels >= 0) & ~is_empty
    return Batch(
        images[0],
        tf.where(is_object[..., tf.newaxis], boxes, 0.0),
        tf.where(is_object, labels, -1),
    )


def _dense(name: str, value: Any, dtype: tf.DType, padding: float, shape: list[Any]) -> tf.Tensor:
    """Returns one of the targets as a tensor, padded if it is ragged."""
    if value is None or isinstance(value, tf.SparseTensor):
        raise ValueError(
            f"Detector: {name} must be a tensor or a RaggedTensor, got {type(value).__name__}"
        )
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor(padding, shape=shape)
    tensor = tf.cast(value, dtype)
    if not tensor.shape.is_compatible_with(shape):
        letters = "[B, M, 4]" if name == "boxes" else "[B, M]"
        raise ValueError(f"Detector: {name} must be {letters}, got {tensor.shape}")
    return tf.ensure_shape(tensor, shape)  # Generators tell Keras no shapes.
