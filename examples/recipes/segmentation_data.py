"""Images and their masks: read, checked, and as `tf.data` batches for networks that segment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from recipes.detection_input import Size, fitted_size, load
from recipes.image_files import check_files, find_images, image_size
from recipes.problems import DataError, Problems

_MODES = ("1", "L", "P")  # of Pillow: one channel of at most 8 bits; of a palette, its indices


@dataclasses.dataclass(frozen=True)
class MaskedImage:
    """An image, and the mask that says what each of its pixels is."""

    path: Path
    mask: Path
    size: Size  # height, width


@dataclasses.dataclass(frozen=True)
class SegmentationData:
    """What there is to train on, or to evaluate."""

    images: tuple[MaskedImage, ...]
    problems: Problems

    def __str__(self) -> str:
        text = f"{len(self.images):,} images with masks"
        return text + (f"\nSkipped:\n{self.problems}" if self.problems.found else "")


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Returns the class of every pixel, `[H, W]`. Of a palette PNG (as VOC's) these are indices.

    Raises:
        ValueError: the file cannot be read, or has not one channel of at most 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise ValueError("it is no PNG")
            if image.mode not in _MODES:
                raise ValueError(f"it has the mode {image.mode}, not one channel of 8 bits")
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError) as error:  # Pillow raises either where a PNG is damaged.
        missing = isinstance(error, FileNotFoundError)
        raise ValueError("it is not there" if missing else "it cannot be read") from error


def read_masks(images: Path, masks: Path, classes: int, ignored: int) -> SegmentationData:
    """Finds the image files of a folder and their masks in another, and decodes them all.

    Args:
        images: folder of JPEG and PNG files.
        masks: folder of PNG files with the names of the images, but for the extension.
        classes: number of classes.
        ignored: value of pixels that are of none.

    Raises:
        DataError: there is no image with a mask; the message says why.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder}: is not a folder")
    problems = Problems()
    paths = find_images([images])
    found = []

    def check(path: Path) -> tuple[str, str] | MaskedImage:
        try:
            size = image_size(path)
        except ValueError as error:
            return "images that cannot be read", f"{path.name} ({error})"
        mask_path = masks / f"{path.stem}.png"
        try:
            mask = read_mask(mask_path)
        except ValueError as error:
            return "images without a mask", f"{path.name} ({mask_path.name}: {error})"
        if mask.shape != size:
            sizes = "{}x{}, not {}x{}".format(*mask.shape, *size)
            return "masks of another size than their images", f"{mask_path.name} ({sizes})"
        values = np.unique(mask)
        others = [int(value) for value in values if value >= classes and value != ignored]
        if others:
            return (
                f"masks with values that are no class (0 to {classes - 1}) and not {ignored}",
                f"{mask_path.name} ({', '.join(map(str, others[:5]))})",
            )
        return MaskedImage(path, mask_path, size)

    for result in check_files(paths, check):
        if isinstance(result, MaskedImage):
            found.append(result)
        else:
            problems.add(*result)
    if not found:
        raise DataError(
            f"{images}: there is no image with a mask in {masks}; what was skipped:\n{problems}"
            if paths
            else f"{images}: there is no JPEG or PNG file"
        )
    return SegmentationData(tuple(found), problems)


def segmentation_batches(
    images: Sequence[MaskedImage],
    target: Size,
    batch: int,
    ignored: int,
    *,
    training: bool,
    mirror: bool = True,
    seed: int = 0,
) -> tf.data.Dataset:
    """Returns batches of images `[B, H, W, 3]` and classes `[B, H, W]`, int32.

    What is padded has the class `ignored`. For training images come in random order, and, with
    `mirror`, half of them mirrored.
    """

    def example(path: Any, mask_path: Any, new_size: Any) -> Any:
        image = load(path, new_size, target)
        read = tf.numpy_function(
            lambda name: read_mask(Path(name.decode())), [mask_path], tf.uint8, stateful=False
        )
        mask = tf.ensure_shape(read, [None, None])[..., tf.newaxis]
        mask = tf.image.resize(tf.cast(mask, tf.int32), new_size, "nearest")
        mask = tf.image.pad_to_bounding_box(mask - ignored, 0, 0, *target) + ignored
        if training and mirror and tf.random.uniform([]) < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return image, tf.ensure_shape(mask[..., 0], target)

    columns = (
        tf.constant([str(image.path) for image in images]),
        tf.constant([str(image.mask) for image in images]),
        tf.constant([fitted_size(image.size, target) for image in images], tf.int32),
    )
    data = tf.data.Dataset.from_tensor_slices(columns)
    if training:
        data = data.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(batch, drop_remainder=training and len(images) >= batch)
    return data.prefetch(tf.data.AUTOTUNE)
