"""Draws detected digits and where the queries that have found them look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detector_picture import label_boxes
from digits import Array
from matplotlib.figure import Figure

from tf_deformable import analysis

FEW = 0.4  # the least score of a detection that is drawn
CLOSE_UPS = 3  # per image
COLORS = ("#e8590c", "#1c7ed6")  # of the levels
AREA = 1000  # of a point that counts fully, in square typographic points
MARGIN = 1.7  # size of a close-up over that of the box


def draw_looks(
    images: Array, found: Any, queries: np.ndarray, locations: Array, weights: Array, path: Path
) -> None:
    """Writes a picture: detections on each image, and for some of them what their query looks at.

    Args:
        images: `[N, H, W, 1]`.
        found: detections of these images (see average_precision.py).
        queries: `[N, K]`, the query of each detection.
        locations: `[N, Q, heads, levels, points, 2]`, (y, x), 0 and 1 being the edges of the image.
        weights: `[N, Q, heads, levels, points]`.
        path: file to write.
    """
    figure = Figure(figsize=(3.1 * (1 + CLOSE_UPS), 3.2 * len(images) + 0.5), dpi=110)
    axes = figure.subplots(len(images), 1 + CLOSE_UPS, squeeze=False)
    figure.subplots_adjust(0.01, 0.05, 0.99, 0.95, wspace=0.04, hspace=0.1)
    axes[0, 0].set_title("detections", size=10)
    height, width = images.shape[1:3]
    for row, image in enumerate(images):
        kept = np.flatnonzero(found.scores[row] >= FEW)
        analysis.draw_image(image, axes[row, 0])
        for detection in kept:
            analysis.draw_box(found.boxes[row, detection], ax=axes[row, 0])
        label_boxes(axes[row, 0], found.boxes[row, kept], found.classes[row, kept])
        for column in range(CLOSE_UPS):
            axis = axes[row, 1 + column]
            if column >= len(kept):
                axis.axis("off")
                continue
            detection = kept[column]
            query = queries[row, detection]
            analysis.draw_image(image, axis)
            analysis.draw_box(found.boxes[row, detection], ax=axis)
            for level, color in enumerate(COLORS):
                points = locations[row, query, :, level].reshape(-1, 2) * (height, width) - 0.5
                areas = AREA * weights[row, query, :, level].ravel()
                axis.scatter(
                    *points.T[::-1], areas, color=color, alpha=0.65, linewidths=0, zorder=3
                )
            top, left, bottom, right = found.boxes[row, detection] - 0.5
            reach = MARGIN * max(bottom - top, right - left) / 2
            axis.set_xlim((left + right) / 2 - reach, (left + right) / 2 + reach)
            axis.set_ylim((top + bottom) / 2 + reach, (top + bottom) / 2 - reach)
            axis.set_title(f"where the query of the {found.classes[row, detection]} looks", size=10)
    handles = [axes[0, 0].scatter([], [], 60, color=color, alpha=0.65) for color in COLORS]
    names = ["points on the fine map", "on the coarse map (area: attention weight)"]
    figure.legend(handles, names, loc="lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(path)
