"""Draws where a deformable network samples an image, as the figures of the papers do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from digits import CANVAS, SCAN, SIZES, ZOOM_EDGES, Array, Digits, Pose, load_scans, render
from matplotlib.figure import Figure
from scipy.ndimage import center_of_mass

from tf_deformable import analysis


def draw_sampling(
    model: tf.keras.Model, layers: Sequence[str], scans: Sequence[int], path: Path
) -> None:
    """Writes a picture of where the unit in the middle of a digit samples, digits in three sizes.

    Args:
        model: the network.
        layers: names of its deformable layers, first to last.
        scans: the digits to draw, indices into scikit-learn's data set.
        path: file to write.
    """
    figure = Figure(figsize=(12.6, 2.15 * len(scans) + 1.3), dpi=110)
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.15 * len(scans) + 0.8, 0.5])
    blocks = top.subfigures(1, len(SIZES))
    scan_images = load_scans()[0]
    for size, block in enumerate(blocks):
        low, high = SCAN * ZOOM_EDGES[size : size + 2]
        block.suptitle(f"{SIZES[size]} digits ({low:.0f} to {high:.0f} pixels)", y=0.975, size=12)
        axes = block.subplots(len(scans), 2, squeeze=False)
        block.subplots_adjust(0.03, 0.01, 0.97, 0.91, wspace=0.04, hspace=0.04)
        axes[0, 0].set_title("regular grid", size=10)
        axes[0, 1].set_title("learned", size=10)

        pose = middle_pose(size)
        images = np.stack([render(scan_images[scan], pose) for scan in scans])[..., np.newaxis]
        locations = analysis.sampling_locations(model, images, pixel=pose.center, layers=layers)
        for row, image in enumerate(images):
            analysis.draw_fixed_and_adaptive(image, locations, row, axes=axes[row])

    bottom.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="center", ncols=3, frameon=False, fontsize=10
    )
    figure.savefig(path)


def middle_pose(size: int) -> Pose:
    """Returns an upright pose of middling zoom in the middle of the canvas."""
    zoom = float(np.sqrt(ZOOM_EDGES[size] * ZOOM_EDGES[size + 1]))
    return Pose(zoom, angle=0.0, slant=0.0, center=((CANVAS - 1) / 2, (CANVAS - 1) / 2))


def reach(model: tf.keras.Model, layer: str, test: Digits) -> tuple[Array, float]:
    """Returns how far from a unit in the middle of a digit its samples are, in pixels.

    That is one mean distance per size class, and the one of the regular grid.
    """
    middles = np.array([center_of_mass(image[..., 0]) for image in test.images])
    found = analysis.sampling_locations(model, test.images, pixel=middles, layers=[layer])
    centers = found.center[:, np.newaxis]
    distances = np.linalg.norm(found.levels[0] - centers, axis=-1).mean(axis=-1)
    regular = np.linalg.norm(found.regular[0] - centers, axis=-1).mean()
    of_classes = [distances[test.sizes == size].mean() for size in range(len(SIZES))]
    return np.array(of_classes), float(regular)
