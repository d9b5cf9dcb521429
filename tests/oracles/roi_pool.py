"""RoI pooling in NumPy: float64, loops, gradients written out by hand.

Written from the formulas alone, and for reading: it shares no code with the package. The loops
visit every sample of every bin and class; only the channels of a sample are vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Side:
    """A box along one axis, in pixels of the map."""

    start: float
    size: float
    bins: int
    samples: int  # of one bin
    pixels: int
    aligned: bool

    def position(self, bin_index: int, sample: int, offset: float, gamma: float) -> float:
        bin_size = self.size / self.bins
        within = sample + 0.5 if self.aligned else sample
        bin_start = self.start + bin_index * bin_size + gamma * offset * self.size
        return bin_start + within * bin_size / self.samples

    def keeps(self, q: float) -> bool:
        if self.aligned:
            return -1 <= q <= self.pixels
        return -0.5 <= q <= self.pixels - 0.5

    def corners(self, q: float) -> list[tuple[int, float, float]]:
        """The pixels that q lies between: (index, weight, derivative of the weight by q)."""
        last = self.pixels - 1
        if last < 0:
            return []
        if q <= 0 or q >= last or q == math.floor(q):
            return [(int(min(max(q, 0), last)), 1.0, 0.0)]
        low = math.floor(q)
        return [(low, low + 1 - q, -1.0), (low + 1, q - low, 1.0)]


def _round(value: float) -> float:
    """Half away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def _side(
    low: float, high: float, scale: float, bins: int, pixels: int, samples: int, aligned: bool
) -> _Side:
    if aligned:
        start, size = low * scale - 0.5, (high - low) * scale
    else:
        start = _round(low) * scale - 0.5
        size = max((_round(high) + 1) * scale - 0.5 - start, 0.1)
    if samples == 0:
        samples = max(math.ceil(size / bins), 0)
    return _Side(start, size, bins, samples, pixels, aligned)


def _samples(
    y: _Side, x: _Side, row: int, column: int, offset: tuple[float, float], gamma: float
) -> Iterator[tuple[float, float]]:
    """Positions (y, x) of the samples of bin (row, column) that are kept."""
    for sy in range(y.samples):
        for sx in range(x.samples):
            q_y = y.position(row, sy, offset[0], gamma)
            q_x = x.position(column, sx, offset[1], gamma)
            if y.keeps(q_y) and x.keeps(q_x):
                yield q_y, q_x


def deformable_roi_pool(
    inputs: np.ndarray,
    boxes: np.ndarray,
    box_indices: np.ndarray,
    offsets: np.ndarray | None,
    mask: np.ndarray | None,
    grad_output: np.ndarray,
    *,
    group_size: int,
    spatial_scale: float,
    samples_per_bin: int,
    gamma: float,
    aligned: bool,
) -> dict[str, np.ndarray]:
    """Output and gradients for the upstream gradient `grad_output`.

    Args:
        inputs: `[N, H, W, k*k*D]`, channels (map row, map column, D).
        boxes: `[R, 4]`, (y1, x1, y2, x2).
        box_indices: `[R]`; -1 is padding.
        offsets: `[R, part_h, part_w, classes, 2]` or None.
        mask: `[R, ph, pw]` or None.
        grad_output: `[R, ph, pw, D]`.
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; 0: as many as pixels.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry instead of the authors'.

    Returns:
        "output", and the gradients under the names of the arguments that are not None.
    """
    inputs, grad_output = np.asarray(inputs, np.float64), np.asarray(grad_output, np.float64)
    count, pooled_height, pooled_width, depth = grad_output.shape
    has_offsets, has_mask = offsets is not None, mask is not None
    offsets = np.asarray(offsets if has_offsets else np.zeros([count, 1, 1, 1, 2]), np.float64)
    mask = np.asarray(mask if has_mask else np.ones(grad_output.shape[:3]), np.float64)
    _, part_height, part_width, classes, _ = offsets.shape

    output = np.zeros(grad_output.shape)
    grad_inputs, grad_offsets, grad_mask = (np.zeros(a.shape) for a in (inputs, offsets, mask))
    for r, (i, j), cls in (
        (r, ij, cls)
        for r in range(count)
        for ij in np.ndindex(pooled_height, pooled_width)
        for cls in range(classes)
    ):
        if box_indices[r] == -1:
            continue
        image = inputs[box_indices[r]]
        out = slice(cls * depth // classes, (cls + 1) * depth // classes)
        upstream, factor = grad_output[r, i, j, out], mask[r, i, j]
        cell = (r, i * part_height // pooled_height, j * part_width // pooled_width, cls)
        offset = (float(offsets[(*cell, 0)]), float(offsets[(*cell, 1)]))
        box = [float(coordinate) for coordinate in boxes[r]]
        if not all(map(math.isfinite, box)) or any(map(math.isnan, offset)):
            output[r, i, j, out] = grad_offsets[cell] = grad_mask[r, i, j] = math.nan
            continue
        common = (samples_per_bin, aligned)
        y = _side(box[0], box[2], spatial_scale, pooled_height, image.shape[0], *common)
        x = _side(box[1], box[3], spatial_scale, pooled_width, image.shape[1], *common)
        positions = list(_samples(y, x, i, j, offset, gamma))
        n = y.samples * x.samples if aligned else len(positions)
        row_of_maps = i * group_size // pooled_height * group_size
        first = (row_of_maps + j * group_size // pooled_width) * depth
        channels = slice(first + out.start, first + out.stop)
        for q_y, q_x in positions:
            for row, weight_y, slope_y in y.corners(q_y):
                for column, weight_x, slope_x in x.corners(q_x):
                    pixel = image[row, column, channels]
                    weight = weight_y * weight_x
                    output[r, i, j, out] += factor * weight * pixel / n
                    grad_inputs[box_indices[r], row, column, channels] += (
                        factor * weight * upstream / n
                    )
                    dot = upstream @ pixel / n
                    grad_mask[r, i, j] += weight * dot
                    by_y = slope_y * weight_x * gamma * y.size
                    by_x = weight_y * slope_x * gamma * x.size
                    grad_offsets[cell] += factor * dot * np.array([by_y, by_x])

    results = {"output": output, "inputs": grad_inputs}
    if has_offsets:
        results["offsets"] = grad_offsets
    if has_mask:
        results["mask"] = grad_mask
    return results


def roi_align(
    inputs: np.ndarray,
    boxes: np.ndarray,
    box_indices: np.ndarray,
    *,
    output_size: tuple[int, int],
    spatial_scale: float,
    samples: int,
) -> np.ndarray:
    """RoIAlign as detectors have it (half a pixel subtracted), from its own definition.

    Args:
        inputs: `[N, H, W, C]`.
        boxes: `[R, 4]`, (y1, x1, y2, x2).
        box_indices: `[R]`.
        output_size: (ph, pw).
        spatial_scale: pixels of the map per pixel of the image.
        samples: along each axis; 0: as many as pixels.

    Returns:
        `[R, ph, pw, C]`.
    """

    def interpolate(image: np.ndarray, y: float, x: float) -> np.ndarray:
        height, width, channels = image.shape
        if y < -1 or y > height or x < -1 or x > width:
            return np.zeros(channels)
        # The map, continued by its border, is linear between pixels.
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = image[top, left] + (x - left) * (image[top, right] - image[top, left])
        lower = image[bottom, left] + (x - left) * (image[bottom, right] - image[bottom, left])
        return upper + (y - top) * (lower - upper)

    outputs = np.zeros([len(boxes), *output_size, inputs.shape[3]])
    for r, i, j in np.ndindex(outputs.shape[:3]):
        y1, x1, y2, x2 = np.asarray(boxes[r], np.float64) * spatial_scale - 0.5
        height, width = (y2 - y1) / output_size[0], (x2 - x1) / output_size[1]
        rows, columns = samples or math.ceil(height), samples or math.ceil(width)
        values = [
            interpolate(
                inputs[box_indices[r]],
                y1 + height * (i + (sy + 0.5) / rows),
                x1 + width * (j + (sx + 0.5) / columns),
            )
            for sy in range(rows)
            for sx in range(columns)
        ]
        outputs[r, i, j] = np.mean(values, axis=0) if values else 0
    return outputs
