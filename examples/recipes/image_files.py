"""Image files: which can be read, and as what tensors."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image

from recipes.problems import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def decode(data: Any) -> tf.Tensor:
    """Returns the pixels of a JPEG or PNG file, `[H, W, 3]`, uint8.

    They are turned as the EXIF orientation of a JPEG says, as browsers and the tools show them in
    which images are annotated. Transparency is dropped.
    """
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    orientation = tf.numpy_function(_orientation, [data], tf.int64, stateful=False)
    return tf.ensure_shape(_upright(image, orientation), [None, None, 3])


def _orientation(data: Any) -> np.int64:
    """Returns the EXIF orientation of a file, 1 where it has none."""
    if isinstance(data, np.ndarray):  # So TensorFlow hands bytes over where it runs eagerly.
        data = data.item()
    if data.startswith(_SIGNATURES[0]):
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.int64(image.getexif().get(ExifTags.Base.Orientation, 1))
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
            pass  # What cannot be read, or is very large, is not turned.
    return np.int64(1)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns an image as it is to be seen: 2 to 4 are flips, 5 to 8 the same after a transpose."""
    is_turned = tf.logical_and(orientation >= 5, orientation <= 8)
    image = tf.cond(is_turned, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    for axis, orientations in ((0, (3, 4, 7, 8)), (1, (2, 3, 6, 7))):
        is_flipped = tf.reduce_any(tf.equal(orientation, orientations))
        image = tf.cond(is_flipped, lambda: tf.reverse(image, [axis]), lambda: image)  # noqa: B023
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image, after decoding all of it.

    It is decoded as in training: a file that is cut off is found here, not in the third epoch.

    Raises:
        ValueError: the file is not there, is neither JPEG nor PNG, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not data.startswith(_SIGNATURES):
        raise ValueError("neither JPEG nor PNG" if data else "the file is empty")
    try:
        with tf.device("CPU"):
            height, width, _ = decode(data).shape
    except tf.errors.InvalidArgumentError as error:
        raise ValueError("it is damaged") from error
    return int(height), int(width)


def check_files(paths: Sequence[Path], check: Callable[[Path], Any]) -> list[Any]:
    """Returns what `check` returns for each file, or the ValueError that it raises.

    Files are read by several threads, and a progress bar shows how many are done.
    """

    def result_or_error(path: Path) -> Any:
        try:
            return check(path)
        except ValueError as error:
            return error

    shows = len(paths) > 200 and sys.stdout.isatty()
    bar = tf.keras.utils.Progbar(len(paths), unit_name="file") if shows else None
    results = []
    with ThreadPoolExecutor() as pool:
        for result in pool.map(result_or_error, paths):
            results.append(result)
            if bar is not None and (len(results) % 100 == 0 or len(results) == len(paths)):
                bar.update(len(results))
    return results


def find_images(given: Sequence[Path]) -> list[Path]:
    """Returns the files among these paths, and the images in the folders among them, sorted."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS)
        else:
            found.append(path)
    return found


def readable_images(given: Sequence[Path]) -> list[tuple[Path, tuple[int, int]]]:
    """Returns paths and sizes of the images that can be read; prints which cannot, and why.

    Args:
        given: files, and folders of files.

    Raises:
        DataError: none of them can be read.
    """
    readable = []
    paths = find_images(given)
    for path, size in zip(paths, check_files(paths, image_size), strict=True):
        if isinstance(size, ValueError):
            print(f"Skipped: {path} ({size})")
        else:
            readable.append((path, size))
    if not readable:
        raise DataError(f"there is no image to read among {', '.join(map(str, given))}")
    return readable
