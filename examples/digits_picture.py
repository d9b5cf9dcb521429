"""Draws where a deformable network samples an image, as the figures of the papers do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from digits import CANVAS, SCAN, SIZES, ZOOM_EDGES, Array, Digits, Pose, load_scans, render
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, map_coordinates

# `[H, W, taps, 2]`: for every unit of a layer, the positions (y, x) that its taps sample, in cells
# of the map it reads.
Field: TypeAlias = NDArray[np.floating]
Points: TypeAlias = NDArray[np.floating]  # [P, 2], (y, x)

# From a cell of the feature maps to the pixel of the image on which its view is centred: there are
# two convolutions of stride 2 between them, and "SAME" pads them after the image only.
CELL = 4
FIRST_CELL = 3

INK, ALL_LAYERS, LAST_LAYER, UNIT = "gray_r", "#2f7ed8", "#d9480f", "#111111"


def draw_sampling(
    model: tf.keras.Model, layers: Sequence[str], scans: Sequence[int], path: Path
) -> None:
    """Writes a picture of where the unit in the middle of a digit samples, digits in three sizes.

    Args:
        model: the network.
        layers: names of its deformable layers, which follow each other, first to last.
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
        images = np.stack([render(scan_images[scan], pose) for scan in scans])
        unit = np.round((np.array(pose.center) - FIRST_CELL) / CELL).astype(int)
        for column, fields in enumerate(sampling_fields(model, layers, images)):
            for row, image in enumerate(images):
                draw_panel(axes[row, column], image, [field[row] for field in fields], unit)

    bottom.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="center", ncols=3, frameon=False, fontsize=10
    )
    figure.savefig(path)


def middle_pose(size: int) -> Pose:
    """Returns an upright pose of middling zoom in the middle of the canvas."""
    zoom = float(np.sqrt(ZOOM_EDGES[size] * ZOOM_EDGES[size + 1]))
    return Pose(zoom, angle=0.0, slant=0.0, center=((CANVAS - 1) / 2, (CANVAS - 1) / 2))


def sampling_fields(
    model: tf.keras.Model, layers: Sequence[str], images: Array
) -> tuple[list[Field], list[Field]]:
    """Returns where the layers sample: on the regular grid, and where their offsets lead.

    Either is a list of `[N, H, W, taps, 2]`, one for each layer.
    """
    regular, learned = [], []
    for name in layers:
        layer = model.get_layer(name)
        features = tf.keras.Model(model.inputs[0], layer.input)(images[..., np.newaxis])
        positions = layer.sampling_positions(features).numpy()
        offsets = layer.compute_offsets(features)[0].numpy().reshape(positions.shape)
        shape = (*positions.shape[:3], -1, 2)
        regular.append((positions - offsets).reshape(shape))
        learned.append(positions.reshape(shape))
    return regular, learned


def follow(fields: Sequence[Field], unit: Points) -> Points:
    """Follows a unit of the last layer down to the cells it depends on, through all layers.

    A position between four units takes from all of them, so its own samples are at the interpolated
    positions of theirs. Positions outside of the map read zeros and are left out.
    """
    points = unit[np.newaxis]
    for field in reversed(fields):
        height, width, taps, _ = field.shape
        points = np.stack(
            [
                map_coordinates(field[:, :, tap, axis], points.T, order=1, mode="nearest")
                for tap in range(taps)
                for axis in range(2)
            ],
            axis=-1,
        ).reshape(-1, 2)
        points = points[np.all((points > -1) & (points < (height, width)), axis=-1)]
    return points


def reach(model: tf.keras.Model, layer: str, test: Digits) -> tuple[Points, float]:
    """Returns how far from a unit in the middle of a digit its samples are, in pixels.

    That is one mean distance per size class, and the one of the regular grid.
    """
    images = test.images[..., 0]
    middles = np.array([center_of_mass(image) for image in images])
    units = np.round((middles - FIRST_CELL) / CELL).astype(int)
    (regular,), (learned,) = sampling_fields(model, [layer], images)
    units = units.clip(0, np.array(learned.shape[1:3]) - 1)

    def distance(field: Field) -> Points:  # [N]
        samples = field[np.arange(len(units)), units[:, 0], units[:, 1]]
        return CELL * np.linalg.norm(samples - units[:, np.newaxis], axis=-1).mean(axis=-1)

    distances = distance(learned)
    of_classes = [distances[test.sizes == size].mean() for size in range(len(SIZES))]
    return np.array(of_classes), float(distance(regular).mean())


def draw_panel(axis: Axes, image: Array, fields: Sequence[Field], unit: NDArray[np.int_]) -> None:
    """Draws an image, a unit, and the positions it samples in the last and through all layers."""
    axis.imshow(image, cmap=INK, vmin=0.0, vmax=1.8)
    every = CELL * follow(fields, unit.astype(float)) + FIRST_CELL
    last = CELL * follow(fields[-1:], unit.astype(float)) + FIRST_CELL
    y, x = CELL * unit + FIRST_CELL
    for tap_y, tap_x in last:
        axis.plot([x, tap_x], [y, tap_y], color=LAST_LAYER, linewidth=0.8, alpha=0.7)
    axis.scatter(
        *every.T[::-1],
        s=7,
        color=ALL_LAYERS,
        alpha=0.55,
        linewidths=0,
        zorder=3,
        label="what it depends on through both deformable layers",
    )
    axis.scatter(
        *last.T[::-1],
        s=26,
        color=LAST_LAYER,
        edgecolors="white",
        linewidths=0.6,
        zorder=4,
        label="the 9 samples of a unit of the last layer",
    )
    axis.scatter(
        x,
        y,
        s=42,
        marker="s",
        facecolors="none",
        edgecolors=UNIT,
        linewidths=1.3,
        zorder=5,
        label="the unit",
    )
    axis.set(xlim=(-0.5, CANVAS - 0.5), ylim=(CANVAS - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color("#bbbbbb")
