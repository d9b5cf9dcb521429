"""Deformable convolution in NumPy: float64, loops, gradients written out by hand.

Written from the formulas alone, and for reading: it shares no code with the package. One sample is
one (image, output pixel, tap, offset group); the loops visit every sample, and only the channels of
a sample are vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Output size and padding before, along one spatial axis."""

    output: int
    before: int


def axis(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: str | tuple[int, int],
) -> Axis:
    """As `tf.nn.conv2d` pads: "SAME", "VALID" or (before, after)."""
    extent = dilation * (kernel - 1) + 1
    if padding == "SAME":
        output = math.ceil(size / stride)
        needed = (output - 1) * stride + extent - size
        return Axis(output, needed // 2 if needed > 0 else 0)
    before, after = (0, 0) if padding == "VALID" else padding
    # A window starts at every multiple of the stride at which it fits.
    starts = range(0, max(size + before + after - extent + 1, 0), stride)
    return Axis(len(starts), before)


@dataclass(frozen=True)
class _Sample:
    image: int
    row: int  # of the output pixel
    column: int
    tap_row: int
    tap_column: int
    offset_group: int
    offset_channel: int  # of dy; dx follows
    mask_channel: int
    y: float
    x: float


def _samples(
    offsets: np.ndarray,
    kernel: tuple[int, int],
    offset_groups: int,
    strides: tuple[int, int],
    dilations: tuple[int, int],
    before: tuple[int, int],
) -> Iterator[_Sample]:
    batch, height, width, _ = offsets.shape
    for n in range(batch):
        for row in range(height):
            for column in range(width):
                for g in range(offset_groups):
                    for i in range(kernel[0]):
                        for j in range(kernel[1]):
                            tap = (g * kernel[0] + i) * kernel[1] + j
                            dy, dx = offsets[n, row, column, 2 * tap : 2 * tap + 2]
                            y = row * strides[0] - before[0] + i * dilations[0] + dy
                            x = column * strides[1] - before[1] + j * dilations[1] + dx
                            yield _Sample(n, row, column, i, j, g, 2 * tap, tap, y, x)


def _cell(q: float, size: int) -> list[tuple[int, float, float]]:
    """The pixels along one axis: (index, weight, derivative of the weight by q)."""
    if not -1 <= q < size:
        return []
    low = math.floor(q)
    corners = [(low, low + 1 - q, -1.0), (low + 1, q - low, 1.0)]
    return [corner for corner in corners if 0 <= corner[0] < size]


def _interpolate(image: np.ndarray, y: float, x: float) -> tuple[np.ndarray, ...]:
    """Value of `image [H, W, c]` at (y, x) and its derivatives by y and by x, each `[c]`."""
    channels = image.shape[2]
    if math.isnan(y) or math.isnan(x):
        return (np.full(channels, np.nan),) * 3
    value, by_y, by_x = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for r, weight_y, slope_y in _cell(y, image.shape[0]):
        for c, weight_x, slope_x in _cell(x, image.shape[1]):
            value += weight_y * weight_x * image[r, c]
            by_y += slope_y * weight_x * image[r, c]
            by_x += weight_y * slope_x * image[r, c]
    return value, by_y, by_x


def deformable_conv2d(
    inputs: np.ndarray,
    filters: np.ndarray,
    offsets: np.ndarray,
    mask: np.ndarray | None,
    bias: np.ndarray | None,
    grad_output: np.ndarray,
    *,
    strides: tuple[int, int],
    dilations: tuple[int, int],
    before: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Output and gradients for the upstream gradient `grad_output`.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C/groups, F]`.
        offsets: `[N, Ho, Wo, G*kh*kw*2]`.
        mask: `[N, Ho, Wo, G*kh*kw]` or None.
        bias: `[F]` or None.
        grad_output: `[N, Ho, Wo, F]`.
        strides: (y, x).
        dilations: (y, x).
        before: padding (top, left).

    Returns:
        "output", and the gradients under the names of the arguments that are not None.
    """
    inputs, filters, offsets, grad_output = (
        np.asarray(a, np.float64) for a in (inputs, filters, offsets, grad_output)
    )
    kernel_height, kernel_width, group_channels, filter_count = filters.shape
    channels = inputs.shape[3]
    group_filters = filter_count // (channels // group_channels)
    offset_groups = offsets.shape[3] // (2 * kernel_height * kernel_width)
    offset_group_channels = channels // offset_groups
    factors = np.ones([*offsets.shape[:3], offsets.shape[3] // 2]) if mask is None else mask
    factors = np.asarray(factors, np.float64)

    output = np.zeros(grad_output.shape)
    if bias is not None:
        output += np.asarray(bias, np.float64)
    grads = {
        "inputs": np.zeros(inputs.shape),
        "filters": np.zeros(filters.shape),
        "offsets": np.zeros(offsets.shape),
    }
    grad_mask = np.zeros(factors.shape)

    samples = _samples(
        offsets, (kernel_height, kernel_width), offset_groups, strides, dilations, before
    )
    for s in samples:
        first = s.offset_group * offset_group_channels
        end = first + offset_group_channels
        image = inputs[s.image]
        value, by_y, by_x = _interpolate(image[:, :, first:end], s.y, s.x)
        pixel = (s.image, s.row, s.column)
        factor = factors[(*pixel, s.mask_channel)]
        grad_sample = np.zeros(offset_group_channels)  # of factor * value
        for group in range(channels // group_channels):
            # The channels that belong to this group and to this offset group: most often none.
            low = max(first, group * group_channels)
            high = min(end, (group + 1) * group_channels)
            if low >= high:
                continue
            part = slice(low - first, high - first)  # of the sample
            rows = slice(low - group * group_channels, high - group * group_channels)
            out = slice(group * group_filters, (group + 1) * group_filters)
            tap_filters = filters[s.tap_row, s.tap_column, rows, out]
            upstream = grad_output[(*pixel, out)]
            output[(*pixel, out)] += factor * value[part] @ tap_filters
            grads["filters"][s.tap_row, s.tap_column, rows, out] += np.outer(
                factor * value[part], upstream
            )
            grad_sample[part] += tap_filters @ upstream
        grad_mask[(*pixel, s.mask_channel)] += grad_sample @ value
        grads["offsets"][(*pixel, s.offset_channel)] += factor * (grad_sample @ by_y)
        grads["offsets"][(*pixel, s.offset_channel + 1)] += factor * (grad_sample @ by_x)
        for r, weight_y, _ in _cell(s.y, inputs.shape[1]):
            for c, weight_x, _ in _cell(s.x, inputs.shape[2]):
                grads["inputs"][s.image, r, c, first:end] += (
                    factor * weight_y * weight_x * grad_sample
                )

    if mask is not None:
        grads["mask"] = grad_mask
    if bias is not None:
        grads["bias"] = grad_output.sum(axis=(0, 1, 2))
    return {"output": output, **grads}
