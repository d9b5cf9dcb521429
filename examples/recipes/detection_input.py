"""`tf.data` input of detectors: images of any size in, batches of one size out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.coco_file import Picture
from recipes.image_files import decode

Size = tuple[int, int]


def scale_to_fit(size: Size, target: Size) -> float:
    """Returns the factor by which an image of a size fits into another, whole."""
    return min(target[0] / size[0], target[1] / size[1])


def fitted_size(size: Size, target: Size) -> Size:
    """Returns the size of an image that is scaled to fit into another."""
    scale = scale_to_fit(size, target)
    height, width = (max(1, min(t, round(s * scale))) for s, t in zip(size, target, strict=True))
    return height, width


def load(path: Any, new_size: Any, target: Size) -> tf.Tensor:
    """Returns an image scaled to a size, with black below and right of it, `[H, W, 3]`, 0 to 255.

    Where it is scaled down, it is smoothed first.
    """
    image = tf.image.resize(decode(tf.io.read_file(path)), new_size, antialias=True)
    image = tf.image.pad_to_bounding_box(tf.clip_by_value(image, 0.0, 255.0), 0, 0, *target)
    return tf.ensure_shape(image, [*target, 3])


def training_batches(
    pictures: Sequence[Picture], size: Size, batch: int, *, mirror: bool = True, seed: int = 0
) -> tf.data.Dataset:
    """Returns shuffled batches of images and targets, as `Detector.fit` takes them.

    With `mirror`, half of the images are mirrored, at random. Those with fewer objects than others
    of a batch are filled up, boxes with zeros, labels with -1. All batches are of the same size, if
    there are as many images: what is left over is left out, other images each epoch.
    """
    new_sizes = [fitted_size(p.size, size) for p in pictures]
    # Each axis by itself: sizes are whole numbers.
    factors = [np.divide(n, p.size) for n, p in zip(new_sizes, pictures, strict=True)]
    boxes = [p.boxes * np.tile(f, 2) for f, p in zip(factors, pictures, strict=True)]
    rows = [len(each) for each in boxes]
    columns = (
        tf.constant([str(p.path) for p in pictures]),
        tf.constant(new_sizes, tf.int32),
        tf.RaggedTensor.from_row_lengths(np.concatenate(boxes).astype(np.float32), rows),
        tf.RaggedTensor.from_row_lengths(np.concatenate([p.labels for p in pictures]), rows),
    )

    def example(path: Any, new_size: Any, boxes: Any, labels: Any) -> Any:
        image = load(path, new_size, size)
        boxes = tf.ensure_shape(tf.convert_to_tensor(boxes), [None, 4])
        labels = tf.ensure_shape(tf.convert_to_tensor(labels), [None])
        if mirror and tf.random.uniform([]) < 0.5:
            # Within the padding: it moves to the other side.
            image = image[:, ::-1]
            y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
            boxes = tf.stack([y1, size[1] - x2, y2, size[1] - x1], axis=-1)
        return image, {"boxes": boxes, "labels": labels}

    data = tf.data.Dataset.from_tensor_slices(columns)
    data = data.shuffle(len(pictures), seed=seed, reshuffle_each_iteration=True)
    data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.padded_batch(
        batch,
        padding_values=(
            tf.constant(0.0),
            {"boxes": tf.constant(0.0), "labels": tf.constant(-1, tf.int32)},
        ),
        drop_remainder=len(pictures) >= batch,
    )
    return data.prefetch(tf.data.AUTOTUNE)


def image_batches(
    paths: Sequence[Path], sizes: Sequence[Size], target: Size, batch: int
) -> tf.data.Dataset:
    """Returns batches of images in the order given."""
    new_sizes = tf.constant([fitted_size(size, target) for size in sizes], tf.int32)
    columns = (tf.constant([str(path) for path in paths]), new_sizes)
    data = tf.data.Dataset.from_tensor_slices(columns)
    data = data.map(lambda p, s: load(p, s, target), num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(batch).prefetch(tf.data.AUTOTUNE)


def to_original(boxes: Any, size: Size, target: Size) -> Any:
    """Returns boxes `[N, 4]` that were found in a scaled image, in pixels of the file's image."""
    factors = np.divide(fitted_size(size, target), size)
    limits = np.tile(np.array(size, np.float32), 2)
    return np.clip(np.asarray(boxes) / np.tile(factors, 2), 0.0, limits).astype(np.float32)
