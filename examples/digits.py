"""Handwritten digits on a larger canvas, at any size, angle, slant and place.

The digits are the 1797 scans of 8x8 pixels that ship with scikit-learn (a part of the UCI data set
"Optical Recognition of Handwritten Digits"). Every scan goes to one of training, validation and
test, then it is drawn `copies` times in each of three size classes. What a network is tested on is
hence neither a scan nor a writing of one that it was trained on, and every class has equal shares.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array: TypeAlias = NDArray[np.float32]

CANVAS = 40  # pixels, height and width of an image
SCAN = 8  # pixels, height and width of a scan
SIZES = ("small", "medium", "large")
# Pixels of the canvas per pixel of the scan; class i has zooms from edge i to edge i + 1.
ZOOM_EDGES = np.geomspace(1.25, 4.0, len(SIZES) + 1)
MAX_ANGLE = np.deg2rad(30)
MAX_SLANT = 0.3

_SPLIT_SEED = 0
_EVALUATION_SEED = 1


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a scan is put on the canvas."""

    zoom: float  # pixels of the canvas per pixel of the scan
    angle: float  # radians
    slant: float  # columns by which a row of the scan is shifted against the row above it
    center: tuple[float, float]  # (y, x) in pixels of the canvas

    def matrix(self) -> NDArray[np.float64]:
        """Returns the 2x2 matrix from scan to canvas, both (y, x) from their centres."""
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        rotation = np.array([[cosine, -sine], [sine, cosine]])
        shear = np.array([[1.0, 0.0], [self.slant, 1.0]])
        return self.zoom * rotation @ shear


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images and where they come from."""

    images: Array  # [N, CANVAS, CANVAS, 1], 0 (paper) to 1 (ink)
    labels: NDArray[np.int64]  # [N]
    sizes: NDArray[np.int64]  # [N], index into SIZES
    scans: NDArray[np.int64]  # [N], index into scikit-learn's data set

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three sets of digits that share no scan."""

    training: Digits
    validation: Digits
    test: Digits


def load(*, seed: int, copies: int = 3, max_scans: int | None = None) -> Splits:
    """Makes the data of a run.

    Args:
        seed: of the training images. The scans in each part, and how those of validation and test
            are drawn, are always the same, so that the accuracies of two runs compare.
        copies: number of training images per scan and size class; one in validation and test.
        max_scans: use so many scans only, None for all.

    Returns:
        60 % of the scans for training, 15 % for validation and 25 % for test.
    """
    scans, labels = load_scans()
    chosen = np.arange(len(labels))[:max_scans]
    rest, test = _stratified(chosen, labels, test_share=0.25)
    training, validation = _stratified(rest, labels, test_share=0.2)
    evaluation = np.random.default_rng(_EVALUATION_SEED)
    return Splits(
        training=draw(scans, labels, training, copies, np.random.default_rng(seed)),
        validation=draw(scans, labels, validation, 1, evaluation),
        test=draw(scans, labels, test, 1, evaluation),
    )


def load_scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the scans `[1797, SCAN, SCAN]`, 0 to 1, and their labels `[1797]`."""
    data = load_digits()
    return data.images / data.images.max(), data.target


def draw(
    scans: NDArray[np.float64],
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    copies: int,
    rng: np.random.Generator,
) -> Digits:
    """Draws each of the scans at `indices` `copies` times in each size class."""
    drawn = np.repeat(indices, copies * len(SIZES))
    sizes = np.tile(np.arange(len(SIZES)), copies * len(indices))
    images = [
        render(scans[scan], random_pose(size, rng)) for scan, size in zip(drawn, sizes, strict=True)
    ]
    return Digits(np.stack(images)[..., np.newaxis], labels[drawn], sizes, drawn)


def random_pose(size: int, rng: np.random.Generator) -> Pose:
    """Returns a pose in a size class; the whole scan is on the canvas, as far as it fits."""
    low, high = np.log(ZOOM_EDGES[size : size + 2])
    pose = Pose(
        zoom=float(np.exp(rng.uniform(low, high))),
        angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
        slant=rng.uniform(-MAX_SLANT, MAX_SLANT),
        center=(0.0, 0.0),
    )
    reach = np.abs(pose.matrix()).sum(axis=1) * SCAN / 2
    room = np.maximum(CANVAS / 2 - reach, 0.0)
    y, x = (CANVAS - 1) / 2 + rng.uniform(-room, room)
    return dataclasses.replace(pose, center=(y, x))


def render(scan: NDArray[np.float64], pose: Pose) -> Array:
    """Draws a scan on an empty canvas: `[CANVAS, CANVAS]`, 0 to 1."""
    to_scan = np.linalg.inv(pose.matrix())
    offset = (SCAN - 1) / 2 - to_scan @ np.array(pose.center)
    # "grid-constant" lets the ink fade out beyond the scan's edge; "constant" cuts it off there.
    canvas = affine_transform(scan, to_scan, offset, (CANVAS, CANVAS), mode="grid-constant")
    return canvas.clip(0.0, 1.0).astype(np.float32)


def _stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64], test_share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    train, test = train_test_split(
        indices, test_size=test_share, random_state=_SPLIT_SEED, stratify=labels[indices]
    )
    return train, test
