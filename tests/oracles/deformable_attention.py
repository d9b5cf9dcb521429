"""Multi-scale deformable attention as loops in NumPy, in float64: the equation, and no more.

Written for reading: it shares no code with the package. One sample is one (image, query, head,
level, point); the loops visit every sample, and only the channels of a head are vectors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def _cell(q: float, size: int) -> list[tuple[int, float, float]]:
    """The pixels along one axis: (index, weight, derivative of the weight by q)."""
    if not -1 <= q < size:
        return []
    low = math.floor(q)
    corners = [(low, low + 1 - q, -1.0), (low + 1, q - low, 1.0)]
    return [corner for corner in corners if 0 <= corner[0] < size]


def multi_scale_deformable_attention(
    value: np.ndarray,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
    grad_output: np.ndarray,
    *,
    coordinates: str = "normalized",
    num_points: tuple[int, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Output and gradients for the upstream gradient `grad_output`.

    Args:
        value: `[N, S, heads, D]`.
        spatial_shapes: height and width of each level.
        sampling_locations: `[N, Q, heads, levels, points, 2]`, (y, x), or with num_points
            `[N, Q, heads, points of all levels, 2]`.
        attention_weights: `[N, Q, heads, levels, points]`, or without the levels.
        grad_output: `[N, Q, heads*D]`.
        coordinates: "normalized", where a location is at the pixel location * size - 0.5, or
            "pixels".
        num_points: points of each level, or None where all levels have as many.

    Returns:
        "output", and the gradients under the names of the arguments.
    """
    value, sampling_locations, attention_weights, grad_output = (
        np.asarray(a, np.float64)
        for a in (value, sampling_locations, attention_weights, grad_output)
    )
    if num_points is None:
        num_points = (attention_weights.shape[4],) * len(spatial_shapes)
    batch, queries, heads = attention_weights.shape[:3]
    points = sum(num_points)
    level_of_point = [level for level, count in enumerate(num_points) for _ in range(count)]
    locations = sampling_locations.reshape(batch, queries, heads, points, 2)
    weights = attention_weights.reshape(batch, queries, heads, points)
    depth = value.shape[3]
    output = np.zeros([batch, queries, heads, depth])
    upstream = grad_output.reshape(output.shape)
    grad_value = np.zeros(value.shape)
    grad_locations = np.zeros(locations.shape)
    grad_weights = np.zeros(weights.shape)

    first_pixels = [0, *itertools.accumulate(height * width for height, width in spatial_shapes)]
    for n, q, h, p in np.ndindex(batch, queries, heads, points):
        level = level_of_point[p]
        height, width = spatial_shapes[level]
        first = first_pixels[level]
        y, x = locations[n, q, h, p]
        scale = np.ones(2)
        if coordinates == "normalized":
            scale = np.array([height, width], np.float64)
            y, x = y * height - 0.5, x * width - 0.5
        weight = weights[n, q, h, p]
        gradient = upstream[n, q, h]
        sample, by_y, by_x = np.zeros(depth), np.zeros(depth), np.zeros(depth)
        if math.isnan(y) or math.isnan(x):
            sample, by_y, by_x = (np.full(depth, np.nan) for _ in range(3))
        for row, weight_y, slope_y in _cell(y, height):
            for column, weight_x, slope_x in _cell(x, width):
                pixel = value[n, first + row * width + column, h]
                sample += weight_y * weight_x * pixel
                by_y += slope_y * weight_x * pixel
                by_x += weight_y * slope_x * pixel
                grad_value[n, first + row * width + column, h] += (
                    weight * weight_y * weight_x * gradient
                )
        output[n, q, h] += weight * sample
        grad_weights[n, q, h, p] = gradient @ sample
        grad_locations[n, q, h, p] = weight * scale * [gradient @ by_y, gradient @ by_x]
    return {
        "output": output.reshape(grad_output.shape),
        "value": grad_value,
        "sampling_locations": grad_locations.reshape(sampling_locations.shape),
        "attention_weights": grad_weights.reshape(attention_weights.shape),
    }
