"""Boxes of detectors: anchors, targets, and the choice among predictions.

Everywhere boxes are (y1, x1, y2, x2) in pixels of the image, in continuous coordinates: pixel i
extends from i to i + 1. Of a batch, they are `[B, N, 4]`; images with fewer boxes are padded with
zeros, labels with -1. The label of the background is the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras.utils import bounding_boxes  # of Keras 3, which TensorFlow brings, for both Kerases

__all__ = [
    "anchor_boxes",
    "assign",
    "assign_levels",
    "decode",
    "encode",
    "iou",
    "sample",
    "select",
]

# Of the differences between boxes and their anchors, about; predictions are in units of it.
VARIANCE = (0.1, 0.1, 0.2, 0.2)
_MAX_LOG_SCALE = math.log(1000 / 16)  # larger predictions of untrained networks would overflow


def anchor_boxes(
    feature_size: Any,
    stride: float,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float] = (1.0,),
) -> tf.Tensor:
    """Returns the anchors of a feature map, `[h * w * len(sizes) * len(aspect_ratios), 4]`.

    They are centred on the cells of the map, row by row; per cell, sizes vary slower than ratios.

    Args:
        feature_size: (h, w) of the feature map, ints or a tensor.
        stride: pixels of the image per cell.
        sizes: square roots of the anchors' areas, in pixels.
        aspect_ratios: heights divided by widths.
    """
    size = tf.convert_to_tensor(feature_size)
    shapes = tf.constant(
        [(s * math.sqrt(ratio), s / math.sqrt(ratio)) for s in sizes for ratio in aspect_ratios],
        tf.float32,
    )
    y, x = (stride * (tf.cast(tf.range(size[axis]), tf.float32) + 0.5) for axis in (0, 1))
    centers = tf.reshape(tf.stack(tf.meshgrid(y, x, indexing="ij"), axis=-1), [-1, 1, 2])
    return tf.reshape(tf.concat([centers - shapes / 2, centers + shapes / 2], axis=-1), [-1, 4])


def encode(anchors: Any, boxes: Any) -> tf.Tensor:
    """Returns what a network is to predict at anchors for boxes, both `[..., 4]`.

    (dy, dx) of the centres in units of the anchor's size, and the logarithms of the ratios of
    heights and widths, divided by `VARIANCE`.
    """
    anchors, boxes = _as_rows(anchors, boxes)
    deltas = bounding_boxes.encode_box_to_deltas(
        tf.reshape(anchors, [-1, 4]), tf.reshape(boxes, [-1, 4]), "yxyx", "yxyx", variance=VARIANCE
    )
    return tf.reshape(deltas, tf.shape(boxes))


def decode(anchors: Any, deltas: Any) -> tf.Tensor:
    """Returns the boxes that a network predicts at anchors, the inverse of `encode`."""
    anchors, deltas = _as_rows(anchors, deltas)
    limit = [math.inf, math.inf, *(_MAX_LOG_SCALE / v for v in VARIANCE[2:])]
    boxes = bounding_boxes.decode_deltas_to_boxes(
        tf.reshape(anchors, [-1, 4]),
        tf.reshape(tf.minimum(deltas, limit), [-1, 4]),
        "yxyx",
        "yxyx",
        variance=VARIANCE,
    )
    return tf.reshape(boxes, tf.shape(deltas))


def iou(first: Any, second: Any) -> tf.Tensor:
    """Returns intersection over union of boxes, `[B, N, 4]` and `[B, M, 4]` to `[B, N, M]`."""
    first, second = (tf.cast(boxes, tf.float32) for boxes in (first, second))
    return tf.math.divide_no_nan(bounding_boxes.compute_iou(first, second, "yxyx"), 1.0)


def assign(
    anchors: Any,
    boxes: Any,
    labels: Any,
    classes: int,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.5,
    keep_best: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Says what anchors (or proposals) are to be classified as, and where their objects are.

    Args:
        anchors: `[B, N, 4]`.
        boxes: `[B, M, 4]`, of the objects; rows of zeros fill up to M.
        labels: `[B, M]`, their classes; -1 fills up to M.
        classes: int, number of classes.
        positive_iou: an anchor that overlaps an object by that much is the object's.
        negative_iou: one that overlaps none by that much is background; between, it is ignored.
        keep_best: bool, whether the anchors that overlap an object most are its own, too, so that
            every object has one.

    Returns:
        labels: `[B, N]`, int32: a class, `classes` for background, -1 to be ignored.
        deltas: `[B, N, 4]`, what `encode` returns for the object that overlaps most.

    Sources:
        Ren et al., Faster R-CNN, NIPS 2015, section 3.1.2.
    """
    anchors, boxes = (tf.cast(b, tf.float32) for b in (anchors, boxes))
    # One row of padding more: there is a nearest one, even where no image has an object.
    boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    labels = tf.pad(tf.cast(labels, tf.int32), [[0, 0], [0, 1]], constant_values=-1)
    overlaps = tf.where(labels[:, tf.newaxis] >= 0, iou(anchors, boxes), 0.0)
    best = tf.reduce_max(overlaps, axis=-1)
    nearest = tf.argmax(overlaps, axis=-1)
    is_positive = best >= positive_iou
    if keep_best:
        most = tf.reduce_max(overlaps, axis=1, keepdims=True)
        is_best = (overlaps >= most - 1e-4) & (most > 0)
        claimed = tf.argmax(tf.where(is_best, overlaps, -1.0), axis=-1)
        is_claimed = tf.reduce_any(is_best, axis=-1)
        nearest = tf.where(is_claimed & ~is_positive, claimed, nearest)
        is_positive |= is_claimed
    own = tf.gather(labels, nearest, batch_dims=1)
    others = tf.where(best < negative_iou, classes, -1)
    deltas = encode(anchors, tf.gather(boxes, nearest, batch_dims=1))
    return tf.where(is_positive, own, others), deltas


def assign_levels(boxes: Any, strides: Sequence[float], canonical_size: float = 224.0) -> tf.Tensor:
    """Says from which map of a feature pyramid each box is to be pooled.

    A box as large as the canonical one goes to the map of stride 16, one of half its height and
    width to that of stride 8, and so on: the coarsest of the maps whose stride is no more than
    `16 * sqrt(height * width) / canonical_size`, or the finest, if there is none. Where strides
    are 2^k, that is k = floor(4 + log2(sqrt(height * width) / canonical_size)).

    Args:
        boxes: `[..., 4]`.
        strides: pixels of the image per cell of each map, the finest first.
        canonical_size: in pixels. The default is the paper's, of images of 800 pixels or so.

    Returns:
        `[...]`, int32: places in the list of strides. Those of padding say nothing.

    Sources:
        Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, equation 1.
    """
    y1, x1, y2, x2 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    size = tf.sqrt(tf.maximum(y2 - y1, 0.0) * tf.maximum(x2 - x1, 0.0))
    wanted = 16 * size / canonical_size
    is_enough = wanted[..., tf.newaxis] >= tf.constant(strides[1:], tf.float32)
    return tf.reduce_sum(tf.cast(is_enough, tf.int32), axis=-1)


def sample(
    labels: Any, classes: int, count: int, positive_share: float = 0.5, seed: Any = None
) -> tf.Tensor:
    """Returns which anchors a loss is taken over, at random: `[B, N]`, 1.0 or 0.0.

    Args:
        labels: `[B, N]`, as `assign` returns them.
        classes: int, number of classes.
        count: how many per image, at most.
        positive_share: share of objects among them, at most; background fills up.
        seed: two ints, with which the same are drawn each time; None: others.
    """
    if seed is None:
        lots = tf.random.uniform(tf.shape(labels))
    else:
        lots = tf.random.stateless_uniform(tf.shape(labels), seed)
    is_positive = (labels >= 0) & (labels < classes)
    positives = _lowest(lots, is_positive, tf.cast(count * positive_share, tf.int32))
    room = count - tf.reduce_sum(tf.cast(positives, tf.int32), axis=-1, keepdims=True)
    negatives = _lowest(lots, tf.equal(labels, classes), room)
    return tf.cast(positives | negatives, tf.float32)


def select(
    boxes: Any,
    scores: Any,
    *,
    count: int,
    iou_threshold: float,
    score_threshold: float = 0.0,
    image_size: Any = None,
) -> dict[str, tf.Tensor]:
    """Returns the best boxes of each image that do not overlap one of their class that is better.

    Non-maximum suppression is `tf.image.combined_non_max_suppression`.

    Args:
        boxes: `[B, N, 4]`.
        scores: `[B, N, classes]`.
        count: int, number of boxes per image, at most.
        iou_threshold: boxes of a class that overlap by more are one object.
        score_threshold: boxes with lower scores are left out.
        image_size: (height, width) that boxes are cut to, None: they are not.

    Returns:
        A dictionary: `boxes` `[B, count, 4]`, `scores` and `classes` `[B, count]` (float32 and
        int32), best first; `counts` `[B]`, how many of these are boxes, the others are zeros.
    """
    if image_size is not None:
        height, width = (tf.cast(image_size[axis], tf.float32) for axis in (0, 1))
        boxes = tf.clip_by_value(boxes, 0.0, tf.stack([height, width, height, width]))
    found = tf.image.combined_non_max_suppression(
        tf.cast(boxes, tf.float32)[:, :, tf.newaxis],
        tf.cast(scores, tf.float32),
        max_output_size_per_class=count,
        max_total_size=count,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    return {
        "boxes": found.nmsed_boxes,
        "scores": found.nmsed_scores,
        "classes": tf.cast(found.nmsed_classes, tf.int32),
        "counts": found.valid_detections,
    }


def _as_rows(first: Any, second: Any) -> tuple[tf.Tensor, tf.Tensor]:
    first, second = (tf.cast(boxes, tf.float32) for boxes in (first, second))
    return tf.broadcast_to(first, tf.shape(second)), second


def _lowest(lots: tf.Tensor, among: tf.Tensor, count: Any) -> tf.Tensor:
    """Marks the `count` elements with the lowest lots in each row, of those in `among`."""
    ranks = tf.argsort(tf.argsort(tf.where(among, lots, 2.0), axis=-1), axis=-1)
    return among & (ranks < count)
