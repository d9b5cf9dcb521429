"""Draws detected digits and the bins that deformable RoI pooling moved, as the paper's Figure 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from digits import Array
from matplotlib.figure import Figure

from tf_deformable import analysis

FEW = 0.5  # the least score of a detection that is drawn
CLOSE_UPS = 3  # per image


def draw_detections(images: Array, found: Any, bins: analysis.LayerBins, path: Path) -> None:
    """Writes a picture: detections on each image, and close-ups of the bins of some of them.

    Args:
        images: `[N, H, W, 1]`.
        found: detections of these and perhaps further images (see detector_demo.py).
        bins: those of each detection.
        path: file to write.
    """
    figure = Figure(figsize=(3.1 * (1 + CLOSE_UPS), 3.2 * len(images) + 0.5), dpi=110)
    axes = figure.subplots(len(images), 1 + CLOSE_UPS, squeeze=False)
    figure.subplots_adjust(0.01, 0.05, 0.99, 0.95, wspace=0.04, hspace=0.1)
    axes[0, 0].set_title("detections", size=10)
    legend = None
    for row, image in enumerate(images):
        kept = np.flatnonzero(found.scores[row, : found.counts[row]] >= FEW)
        analysis.draw_image(image, axes[row, 0])
        for detection in kept:
            analysis.draw_box(found.boxes[row, detection], ax=axes[row, 0])
        label_boxes(axes[row, 0], found.boxes[row, kept], found.classes[row, kept])
        for column in range(CLOSE_UPS):
            axis = axes[row, 1 + column]
            if column < len(kept):
                detection = kept[column]
                regular, moved = bins.regular[row, detection], bins.bins[row, detection]
                analysis.draw_bins(image, regular, moved, ax=axis)
                legend = axis.get_legend_handles_labels()
                axis.set_title(f"bins of the {found.classes[row, detection]}", size=10)
            else:
                axis.axis("off")
    if legend is not None:
        figure.legend(*legend, loc="lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(path)


def label_boxes(axis: Any, boxes: Array, classes: Array) -> None:
    """Writes the class of each box in one of its corners, where none has been written yet."""
    taken: list[Array] = []
    for (top, left, bottom, right), label in zip(boxes, classes, strict=True):
        corners = np.array([(y, x) for x in (left, right) for y in (top, bottom)])
        gaps = [
            min((np.abs(corner - other).max() for other in taken), default=9) for corner in corners
        ]
        corner = corners[np.argmax(np.minimum(gaps, 9))]  # the first that is far enough from others
        taken.append(corner)
        axis.text(
            corner[1],
            corner[0],
            str(label),
            color="white",
            size=9,
            weight="bold",
            ha="center",
            va="center",
            bbox={"facecolor": analysis.drawing.ALL, "linewidth": 0, "pad": 1.5},
        )
