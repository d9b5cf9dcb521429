"""Effective dilation: how far apart the samples of a deformable filter are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.analysis import _calls, locations
from tf_deformable.analysis._calls import Array
from tf_deformable.analysis._paths import Paths

CATEGORIES = ("small", "medium", "large", "background")
_OPERATION = "effective_dilation"


def effective_dilation(positions: Any) -> Array:
    """Returns the mean distance between adjacent samples of filters.

    Adjacent are taps that are neighbours in a row or in a column of the kernel: of a 3x3 kernel 12
    pairs. A regular grid of dilation d has d.

    Args:
        positions: `[..., kh, kw, 2]`, (y, x), as `DeformableConv2D.sampling_positions` and
            `LayerSamples.positions` are. Only distances count, so positions relative to the pixel
            will do: `taps * dilation + offsets`.

    Returns:
        `[...]`, in the unit of positions.

    Raises:
        ValueError: another shape, or a 1x1 kernel, which has no adjacent taps.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 3 ("effective dilation").
    """
    values = np.asarray(positions)
    if values.ndim < 3 or values.shape[-1] != 2:
        raise ValueError(
            f"{_OPERATION}: positions must have shape [...,kh,kw,2], got {list(values.shape)}"
        )
    if values.shape[-3] * values.shape[-2] < 2:
        raise ValueError(
            f"{_OPERATION}: positions must be of a kernel of two taps at least, got "
            f"{list(values.shape)}"
        )
    pairs = [
        np.linalg.norm(np.diff(values, axis=axis), axis=-1).reshape(*values.shape[:-3], -1)
        for axis in (-3, -2)
    ]
    return np.concatenate(pairs, axis=-1).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class DilationBySize:
    """Effective dilation of filters centred on small, medium and large objects and elsewhere.

    In pixels of the map that a layer reads. Printed, it is a table.

    Attributes:
        layers: names of the `L` layers.
        categories: "small", "medium", "large", "background".
        mean: `[L, 4]`, over the filters of a category; NaN if there are none.
        std: `[L, 4]`, their standard deviation.
        count: `[L, 4]`, how many filters.
    """

    layers: tuple[str, ...]
    mean: Array
    std: Array
    count: NDArray[np.int64]
    categories: tuple[str, ...] = CATEGORIES

    def __str__(self) -> str:
        width = max(len("layer"), *map(len, self.layers))
        lines = [f"{'layer':<{width}}" + "".join(f"{c:>16}" for c in self.categories)]
        for name, mean, std in zip(self.layers, self.mean, self.std, strict=True):
            cells = "".join(f"{m:>8.2f} ± {s:<5.2f}" for m, s in zip(mean, std, strict=True))
            lines.append(f"{name:<{width}}{cells}".rstrip())
        return "\n".join(lines)


def effective_dilation_by_size(
    model: Any,
    images: Any,
    *,
    boxes: Any = None,
    masks: Any = None,
    layers: Sequence[Any] | None = None,
    areas: tuple[float, float] = (96**2, 224**2),
    batch_size: int = 16,
) -> DilationBySize:
    """Measures effective dilation by the size of the object that a filter is centred on.

    A filter is on the object in whose box (or mask) the middle of its receptive field lies, on the
    smallest if there are several, and on the background if there is none.

    Args:
        model: a Keras model, as in `sampling_locations`.
        images: N images, or all the model's inputs with that many rows.
        boxes: `[N, M, 4]`, (y1, x1, y2, x2) in pixels of the image, pixel i from i to i + 1; rows
            of area 0 are padding.
        masks: in place of boxes, `[N, M, H, W]`, not 0 where an object is; the area of an object
            is the number of its pixels.
        layers: the deformable layers, or their names; by default all with a kernel above 1x1.
        areas: objects below the first are small, from the second on large, in square pixels of the
            image. The default is the paper's.
        batch_size: how many images run at a time.

    Returns:
        Mean, standard deviation and number of filters, for each layer and category.

    Raises:
        TypeError: neither boxes nor masks are given, or both.
        ValueError: they have another shape, areas are not in order, or as `sampling_locations`.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 3 and Table 2.
    """
    if (boxes is None) == (masks is None):
        raise TypeError("effective_dilation_by_size: one of boxes and masks must be given")
    if not 0 < areas[0] <= areas[1]:
        raise ValueError(
            f"effective_dilation_by_size: areas must be two positive numbers in order, got {areas}"
        )
    total = len(tf.nest.flatten(images)[0])
    objects = _objects(boxes, masks, total)

    values: dict[str, list[list[Array]]] = {}
    for start in range(0, total, batch_size):
        rows = slice(start, start + batch_size)
        batch = tf.nest.map_structure(lambda t, rows=rows: t[rows], images)
        samples = _calls.layer_samples(model, batch)
        if start == 0:
            centers = locations.centers(samples, Paths(model, batch))
        if layers is None:
            chosen = [s for s in samples if s.layer.kernel_size != (1, 1)]
        else:
            argument = "effective_dilation_by_size: layers"
            chosen = [samples[i] for i in _calls.select(samples, layers, argument)]
        for layer in chosen:
            dilation = effective_dilation(layer.positions)  # [N, Ho, Wo, G]
            category = _categories(objects[rows], centers[layer.name], areas)
            of_layer = values.setdefault(layer.name, [[] for _ in CATEGORIES])
            for index, parts in enumerate(of_layer):
                parts.append(dilation[category == index].ravel())
    pooled = {name: [np.concatenate(p) for p in parts] for name, parts in values.items()}
    return DilationBySize(
        layers=tuple(pooled),
        mean=_each(pooled, lambda v: v.mean() if len(v) else np.nan),
        std=_each(pooled, lambda v: v.std() if len(v) else np.nan),
        count=_each(pooled, len).astype(np.int64),
    )


def _each(pooled: dict[str, list[Array]], function: Any) -> Array:
    return np.array([[function(values) for values in parts] for parts in pooled.values()])


def _objects(boxes: Any, masks: Any, total: int) -> Array:
    """Checks boxes or masks."""
    argument, value = ("boxes", boxes) if masks is None else ("masks", masks)
    objects = np.asarray(value)
    rule = "[N,M,4]" if masks is None else "[N,M,H,W]"
    is_right = objects.ndim == (3 if masks is None else 4) and len(objects) == total
    if not is_right or (masks is None and objects.shape[2] != 4):
        raise ValueError(
            f"effective_dilation_by_size: {argument} must have shape {rule}, N={total} the number "
            f"of images, got {list(objects.shape)}"
        )
    return objects


def _categories(objects: Array, centers: Array, limits: tuple[float, float]) -> NDArray[np.int64]:
    """The category of each filter, `[N, Ho, Wo]`, an index into CATEGORIES."""
    edge = centers + 0.5  # pixel i is from i to i + 1 there
    if objects.ndim == 3:
        boxes = objects[:, :, np.newaxis, np.newaxis]  # [N, M, 1, 1, 4]
        sizes = objects[..., 2:] - objects[..., :2]
        area = np.maximum(sizes, 0).prod(axis=-1)
        inside = np.all((boxes[..., :2] <= edge) & (edge < boxes[..., 2:]), axis=-1)
    else:
        masks = objects.astype(bool)
        area = masks.sum(axis=(2, 3))
        y, x = np.floor(edge).astype(int).transpose(2, 0, 1)
        height, width = masks.shape[2:]
        on_map = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        inside = masks[:, :, y.clip(0, height - 1), x.clip(0, width - 1)] & on_map
    area = np.where(inside, area[..., np.newaxis, np.newaxis], np.inf)  # [N, M, Ho, Wo]
    smallest = area.min(axis=1, initial=np.inf)
    return np.where(np.isinf(smallest), 3, np.digitize(smallest, limits))
