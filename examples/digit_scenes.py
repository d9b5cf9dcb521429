"""Several handwritten digits on one canvas, with the box of each, to train and test detectors on.

The digits are those of digits.py: any size, angle and slant, no scan in two of the sets.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from digits import Array, Digits
from numpy.typing import NDArray

CANVAS = 96  # pixels, height and width of an image
FEWEST, MOST = 3, 6  # digits of a scene
INK = 0.1  # what is darker belongs to a digit, and is in its box
GAP = 1  # pixels between two boxes, at least

_ATTEMPTS = 50  # places tried for a digit


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Images and what is on them. Rows of `boxes` and `labels` beyond a scene's digits are padding.

    Boxes are (y1, x1, y2, x2) in pixels: pixel i extends from i to i + 1.
    """

    images: Array  # [N, CANVAS, CANVAS, 1], 0 (paper) to 1 (ink)
    boxes: Array  # [N, MOST, 4], all zero where there is no digit
    labels: NDArray[np.int64]  # [N, MOST], -1 where there is no digit

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which rows of `boxes` and `labels` are digits: [N, MOST]."""
        return self.labels >= 0


def compose(digits: Digits, count: int, rng: np.random.Generator) -> Scenes:
    """Puts digits on `count` canvases, each digit as often as any other (or once less)."""
    numbers = rng.integers(FEWEST, MOST + 1, count)
    rounds = -(-numbers.sum() // len(digits))
    order = np.concatenate([rng.permutation(len(digits)) for _ in range(rounds)])
    scenes = Scenes(
        images=np.zeros((count, CANVAS, CANVAS, 1), np.float32),
        boxes=np.zeros((count, MOST, 4), np.float32),
        labels=np.full((count, MOST), -1),
    )
    for scene, end in enumerate(np.cumsum(numbers)):
        chosen = order[end - numbers[scene] : end]
        patches = [crop(digits.images[digit, :, :, 0]) for digit in chosen]
        boxes = place([patch.shape for patch in patches], rng)
        for row, (digit, patch, box) in enumerate(zip(chosen, patches, boxes, strict=True)):
            top, left, bottom, right = box
            scenes.images[scene, top:bottom, left:right, 0] = patch
            scenes.boxes[scene, row] = box
            scenes.labels[scene, row] = digits.labels[digit]
    return scenes


def crop(image: Array) -> Array:
    """Returns the part of a digit's image that its tight box encloses."""
    rows, columns = (np.flatnonzero((image > INK).any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place(shapes: list[tuple[int, int]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns boxes [n, 4] of these shapes, at random on the canvas, none near another."""
    boxes = np.zeros((len(shapes), 4), np.int64)
    while True:  # Rarely, what is placed first leaves no room for the last.
        placed: list[int] = []
        for index in np.argsort([-height * width for height, width in shapes]):
            shape = np.array(shapes[index])
            for _ in range(_ATTEMPTS):
                corner = rng.integers(0, CANVAS + 1 - shape)
                box = np.concatenate([corner, corner + shape])
                if not any(near(box, boxes[other]) for other in placed):
                    boxes[index] = box
                    placed.append(index)
                    break
        if len(placed) == len(shapes):
            return boxes


def near(box: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Returns whether two boxes overlap, or almost."""
    return bool(np.all(box[:2] < other[2:] + GAP) and np.all(other[:2] < box[2:] + GAP))


def pixel_labels(scenes: Scenes) -> NDArray[np.int64]:
    """Returns the class of every pixel `[N, CANVAS, CANVAS]`: 0 paper, 1 + the digit for ink."""
    labels = np.zeros(scenes.images.shape[:3], np.int64)
    for scene, (boxes, digits) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        for (top, left, bottom, right), digit in zip(boxes.astype(int), digits, strict=True):
            ink = scenes.images[scene, top:bottom, left:right, 0] > INK
            labels[scene, top:bottom, left:right][ink] = 1 + digit
    return labels
