"""Pictures of where deformable networks sample, after the figures of the paper.

Matplotlib draws them; the package does not install it (`pip install matplotlib`). Axes that are not
given belong to a new figure, `axes.figure`, which `savefig` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_deformable.analysis._calls import Array
from tf_deformable.analysis.locations import SamplingLocations

# Of the levels, from the last layer's samples to those through all layers, and of what is regular.
LAST, ALL, REGULAR, UNIT = "#d9480f", "#2f7ed8", "#9aa7b4", "#111111"
_SIZE = 4.0  # inches


def draw_image(image: Any, ax: Any = None) -> Any:
    """Draws an image without ticks, a single channel as ink on paper.

    Args:
        image: `[H, W, 3]` (or 4), floats from 0 to 1 or uint8, or `[H, W]` or `[H, W, 1]`, from its
            least value (white) to its largest (dark grey).
        ax: Matplotlib axes, None for new ones.

    Returns:
        The axes.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: image has another shape.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (3, 4)):
        raise ValueError(
            "draw_image: image must have shape [H,W], [H,W,1], [H,W,3] or [H,W,4], got "
            f"{list(pixels.shape)}"
        )
    if ax is None:
        ax = _new_axes(pixels)
    if pixels.ndim == 2:
        low, high = float(pixels.min()), float(pixels.max())
        dark = high + 0.7 * (high - low)  # points have to be seen on it
        ax.imshow(pixels, cmap="gray_r", vmin=low, vmax=dark if high > low else low + 1)
    else:
        ax.imshow(pixels)
    height, width = pixels.shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    return ax


def draw_sampling_locations(
    image: Any,
    locations: SamplingLocations,
    index: int = 0,
    *,
    regular: bool = False,
    ax: Any = None,
) -> Any:
    """Draws an image, a unit, and what it samples: in the last layer, and through all (Figure 6).

    Samples that count for nothing, outside of a map, are left out; modulated ones are the paler the
    less they count. Calls on the same axes draw further units.

    Args:
        image: as `draw_image` takes it, or None to draw on what is there.
        locations: from `sampling_locations`.
        index: which of its images this is.
        regular: draw what layers without offsets would sample.
        ax: Matplotlib axes, None for new ones.

    Returns:
        The axes; `ax.legend()` explains what is drawn.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: as `draw_image`, or neither image nor ax is given.
    """
    if image is not None:
        ax = draw_image(image, ax)
    elif ax is None:
        raise ValueError("draw_sampling_locations: image or ax must be given, got neither")
    depth = len(locations.layers)
    labelled = set(ax.get_legend_handles_labels()[1])
    y, x = locations.center[index]

    def shown(level: int) -> tuple[Array, Array]:
        points = locations.points(index, level, regular)
        if regular:
            return points, np.ones(len(points))
        weights = locations.weights[level][index]
        weights = weights[weights > 0]
        return points, weights / max(weights.max(initial=0), 1)

    def label(text: str) -> str | None:
        return None if text in labelled else text  # once, however many units are drawn

    last, last_weights = shown(0)
    for (tap_y, tap_x), weight in zip(last, last_weights, strict=True):
        ax.plot([x, tap_x], [y, tap_y], color=LAST, linewidth=0.8, alpha=0.7 * weight, zorder=2.5)
    if depth > 1:
        every, weights = shown(-1)
        ax.scatter(
            *every.T[::-1],
            s=7,
            color=ALL,
            alpha=0.5 * weights,
            linewidths=0,
            zorder=3,
            label=label(f"samples through {depth} layers"),
        )
    ax.scatter(
        *last.T[::-1],
        s=26,
        color=LAST,
        alpha=0.25 + 0.75 * last_weights,
        edgecolors="white",
        linewidths=0.6,
        zorder=4,
        label=label("samples of the last layer" if depth > 1 else "samples"),
    )
    ax.scatter(
        x,
        y,
        s=42,
        marker="s",
        facecolors="none",
        edgecolors=UNIT,
        linewidths=1.3,
        zorder=5,
        label=label("unit"),
    )
    return ax


def draw_fixed_and_adaptive(
    image: Any, locations: SamplingLocations, index: int = 0, *, axes: Sequence[Any] | None = None
) -> Any:
    """Draws the regular grid of a unit beside the learned one (Figure 5).

    Args:
        image: as `draw_image` takes it.
        locations: from `sampling_locations`.
        index: which of its images this is.
        axes: two Matplotlib axes, None for those of a new figure.

    Returns:
        The figure, with a legend if it is new.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: as `draw_image`.
    """
    if axes is not None:
        left, right = axes
    else:
        height, width = np.shape(image)[:2]
        figure = _figure(2 * _SIZE, _SIZE * height / width + 0.7)
        left, right = figure.subplots(1, 2)
        left.set_title("regular grid", size=10)
        right.set_title("learned", size=10)
    draw_sampling_locations(image, locations, index, regular=True, ax=left)
    draw_sampling_locations(image, locations, index, ax=right)
    if axes is None:
        legend = left.get_legend_handles_labels()
        figure.legend(*legend, loc="lower center", ncols=3, frameon=False, fontsize=9)
        figure.subplots_adjust(0.02, 0.1, 0.98, 0.92, wspace=0.05)
    return right.figure


def draw_bins(
    image: Any,
    regular: Array,
    moved: Array,
    *,
    zoom: bool = True,
    ax: Any = None,
) -> Any:
    """Draws the regular and the moved bins of a box (Figure 7).

    Args:
        image: as `draw_image` takes it, or None to draw on what is there.
        regular: `[ph, pw, 4]`, the bins of one box without offsets: `LayerBins.regular[b, r]`.
        moved: `[ph, pw, 4]`, with them: `LayerBins.bins[b, r]`, of one class if it has classes.
        zoom: show the box and what is around it, not the whole image.
        ax: Matplotlib axes, None for new ones.

    Returns:
        The axes; `ax.legend()` explains what is drawn.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: as `draw_image`, or bins have another shape.
    """
    regular, moved = np.asarray(regular), np.asarray(moved)
    if regular.ndim != 3 or regular.shape[-1] != 4 or moved.shape != regular.shape:
        raise ValueError(
            "draw_bins: regular and moved must have the same shape [ph,pw,4], got "
            f"{list(regular.shape)} and {list(moved.shape)}"
        )
    if image is not None:
        ax = draw_image(image, ax)
    elif ax is None:
        raise ValueError("draw_bins: image or ax must be given, got neither")
    for number, (start, end) in enumerate(
        zip(regular.reshape(-1, 4), moved.reshape(-1, 4), strict=True)
    ):
        first = number == 0
        draw_box(start, REGULAR, ax=ax, linewidth=0.8, label="regular bins" if first else None)
        draw_box(end, LAST, ax=ax, linewidth=1.3, label="moved bins" if first else None)
        centers = [(box[:2] + box[2:]) / 2 - 0.5 for box in (start, end)]
        ax.plot(*np.array(centers)[:, ::-1].T, color=LAST, linewidth=0.8)
        ax.plot(centers[1][1], centers[1][0], ".", color=LAST, markersize=4)
    if zoom:
        low, high = regular[0, 0, :2], regular[-1, -1, 2:]
        middle, size = (low + high) / 2, np.max(high - low)
        farthest = np.abs(np.nan_to_num(moved.reshape(-1, 2) - middle)).max()
        reach = np.clip(farthest, 0.75 * size, size)  # one bin far away shall not shrink the rest
        ax.set_xlim(middle[1] - reach, middle[1] + reach)
        ax.set_ylim(middle[0] + reach, middle[0] - reach)
    return ax


def draw_box(
    box: Any, color: str = ALL, *, ax: Any, linewidth: float = 1.5, label: str | None = None
) -> None:
    """Draws the outline of a box.

    Args:
        box: (y1, x1, y2, x2) in the continuous coordinates of the image, pixel i from i to i + 1.
        color: of the line, as Matplotlib takes it.
        ax: Matplotlib axes with the image.
        linewidth: in points.
        label: for the legend.
    """
    _figure_class()  # Says what is missing.
    from matplotlib.patches import Rectangle

    y1, x1, y2, x2 = box
    corner = (x1 - 0.5, y1 - 0.5)  # imshow has the centres of pixels at integers
    height, width = y2 - y1, x2 - x1
    ax.add_patch(
        Rectangle(
            corner, width, height, fill=False, edgecolor=color, linewidth=linewidth, label=label
        )
    )


def _new_axes(pixels: Array) -> Any:
    height, width = pixels.shape[:2]
    figure = _figure(_SIZE, _SIZE * height / width)
    return figure.add_axes((0.01, 0.01, 0.98, 0.98))


def _figure(width: float, height: float) -> Any:
    return _figure_class()(figsize=(width, height), dpi=110)


def _figure_class() -> Any:
    """A figure of its own, not of pyplot: nothing to close, no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing with tf_deformable.analysis needs Matplotlib: pip install matplotlib"
        ) from error
    return Figure
