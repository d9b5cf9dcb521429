"""Draws detected digits and the bins that deformable RoI pooling moved, as the paper's Figure 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from digits import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

FEW = 0.5  # the least score of a detection that is drawn
BOX, REGULAR, MOVED = "#2f7ed8", "#9aa7b4", "#d9480f"
CLOSE_UPS = 3  # per image


def draw_detections(images: Array, found: Any, moved: Array, path: Path) -> None:
    """Writes a picture: detections on each image, and close-ups of the bins of some of them.

    Args:
        images: `[N, H, W, 1]`.
        found: detections of these and perhaps further images (see detector_demo.py).
        moved: `[N, K, ph, pw, 4]`, the bins of each detection.
        path: file to write.
    """
    figure = Figure(figsize=(3.1 * (1 + CLOSE_UPS), 3.2 * len(images) + 0.5), dpi=110)
    axes = figure.subplots(len(images), 1 + CLOSE_UPS, squeeze=False)
    figure.subplots_adjust(0.01, 0.05, 0.99, 0.95, wspace=0.04, hspace=0.1)
    axes[0, 0].set_title("detections", size=10)
    for row, image in enumerate(images):
        kept = np.flatnonzero(found.scores[row, : found.counts[row]] >= FEW)
        show(axes[row, 0], image)
        for detection in kept:
            box = found.boxes[row, detection]
            outline(axes[row, 0], box, BOX, linewidth=1.5)
            label = f"{found.classes[row, detection]}"
            axes[row, 0].text(box[1], box[0] - 1.5, label, color=BOX, size=10, weight="bold")
        for column in range(CLOSE_UPS):
            axis = axes[row, 1 + column]
            if column < len(kept):
                detection = kept[column]
                draw_bins(axis, image, found.boxes[row, detection], moved[row, detection])
                axis.set_title(f"bins of the {found.classes[row, detection]}", size=10)
            else:
                axis.axis("off")
    figure.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=REGULAR, label="regular bins"),
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=MOVED, linewidth=1.5, label="moved bins"),
        ],
        loc="lower center",
        ncols=2,
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path)


def draw_bins(axis: Axes, image: Array, box: Array, moved: Array) -> None:
    """Draws the regular and the moved bins of a box, and what is around it."""
    show(axis, image)
    rows, columns = moved.shape[:2]
    y = np.linspace(box[0], box[2], rows + 1)
    x = np.linspace(box[1], box[3], columns + 1)
    for i in range(rows):
        for j in range(columns):
            regular = np.array([y[i], x[j], y[i + 1], x[j + 1]])
            outline(axis, regular, REGULAR, linewidth=0.8)
            outline(axis, moved[i, j], MOVED, linewidth=1.3)
            centers = [(b[:2] + b[2:]) / 2 - 0.5 for b in (regular, moved[i, j])]
            axis.plot(*np.array(centers)[:, ::-1].T, color=MOVED, linewidth=0.8)
            axis.plot(centers[1][1], centers[1][0], ".", color=MOVED, markersize=4)
    middle = (box[:2] + box[2:]) / 2
    reach = 0.75 * np.max(box[2:] - box[:2])
    axis.set_xlim(middle[1] - reach, middle[1] + reach)
    axis.set_ylim(middle[0] + reach, middle[0] - reach)


def show(axis: Axes, image: Array) -> None:
    """Draws an image, ink on paper."""
    axis.imshow(image[..., 0], cmap="gray_r", vmin=0.0, vmax=1.6)
    axis.set_xticks([])
    axis.set_yticks([])


def outline(axis: Axes, box: Array, color: str, linewidth: float) -> None:
    """Draws the outline of a box (y1, x1, y2, x2) in continuous coordinates of the image."""
    corner = (box[1] - 0.5, box[0] - 0.5)  # imshow has pixel centres at integers
    height, width = box[2:] - box[:2]
    axis.add_patch(
        Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=linewidth)
    )
