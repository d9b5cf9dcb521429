"""Image files: which can be read, and as what tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from recipes.problems import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def decode(data: Any) -> tf.Tensor:
    """Returns the pixels of a JPEG or PNG file, `[H, W, 3]`, uint8. Transparency is dropped."""
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


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
