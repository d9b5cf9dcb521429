"""The window of DCNv3 and DCNv4: attributes, sizes and rules, for TensorFlow and JAX."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_deformable._geometry import attributes, rules
from tf_deformable._geometry.data_format import DataFormat
from tf_deformable._geometry.padding import Axis, Padding, resolve_axes
from tf_deformable._geometry.sizes import (
    Checks,
    Dim,
    Pair,
    differ,
    dims,
    known,
    text,
)

# Float32 counts so many pixels, and as many again.
_NEAR = 2**23
# Graphs hold the place of each tap, and programs that build them a list of all.
_MOST_TAPS = 2**20

_AXES = {"inputs": "[N,H,W,C]", "offsets": "[N,Ho,Wo,G*K*2]", "mask": "[N,Ho,Wo,G*K]"}


@dataclasses.dataclass(frozen=True)
class Window:
    """The attributes of a call, checked."""

    kernel_size: Pair
    strides: Pair
    padding: Padding
    dilations: Pair
    scale: float
    taps: tuple[Pair, ...]  # row, column
    data_format: DataFormat

    def center(self, i: int) -> int:
        """Distance of the center from the first tap along an axis."""
        return self.dilations[i] * (self.kernel_size[i] - 1) // 2

    def distances(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the taps lie along an axis as seen from the center: a sum of two, each `[K]`.

        The first is of whole pixels, int64, to be added to the center before the sum is rounded: a
        center and a tap may lie far from the map, on its two sides. It is 0 where all are near.
        """
        along = np.array([tap[i] for tap in self.taps], np.int64)
        distances = (along * self.dilations[i] - self.center(i)) * self.scale
        is_far = np.abs(distances).max() > _NEAR
        whole = np.where(is_far & (np.abs(distances) < 2.0**53), np.rint(distances), 0)
        return whole.astype(np.int64), distances - whole


@dataclasses.dataclass(frozen=True)
class DCNv3Geometry:
    """All sizes of one call, each static where it can be known statically."""

    batch: Dim
    height: Dim
    width: Dim
    channels: Dim
    groups: Dim
    axes: tuple[Axis, Axis]

    @property
    def output(self) -> list[Dim]:
        """Batch, height and width of the output."""
        return [self.batch, self.axes[0].output, self.axes[1].output]


def dcnv3_window(
    op: str,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str | Sequence[Sequence[int]],
    dilations: int | Sequence[int],
    offset_scale: float,
    remove_center: bool,
    data_format: str,
) -> Window:
    """Normalises the attributes of a call.

    Raises:
        TypeError: one is of the wrong kind.
        ValueError: one breaks its rule.
    """
    layout = attributes.data_format(op, data_format)
    kernel = attributes.positive_pair(op, "kernel_size", kernel_size)
    steps = attributes.positive_pair(op, "strides", strides)
    rates = attributes.positive_pair(op, "dilations", dilations)
    pads = attributes.padding(op, padding, layout)
    if not np.isfinite(attributes.number(op, "offset_scale", offset_scale)):
        raise Checks(op).error(f"offset_scale must be finite, got {offset_scale:g}")
    scale = float(offset_scale)  # no attribute of an operator: it need not be float32
    if kernel[0] * kernel[1] > _MOST_TAPS:
        raise Checks(op).error(
            f"kernel_size must have at most {_MOST_TAPS} taps, got {text(kernel)}"
        )
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    if attributes.boolean(op, "remove_center", remove_center):
        if kernel == (1, 1):
            raise Checks(op).error("remove_center needs a kernel_size above 1, or no tap is left")
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise Checks(op).error(f"remove_center needs an odd kernel_size, got {text(kernel)}")
        del taps[len(taps) // 2]
    return Window(kernel, steps, pads, rates, scale, tuple(taps), layout)


def dcnv3_checks(op: str, data_format: DataFormat) -> Checks:
    """Returns the checks of a call whose maps have this data format; `op` begins messages."""
    return Checks(op, _AXES, tuple(_AXES), data_format)


def dcnv3_geometry(op: str, inputs: Any, offsets: Any, mask: Any, window: Window) -> DCNv3Geometry:
    """Checks the tensors of one call and derives every size from them.

    Args:
        op: begins messages.
        inputs: `[N, H, W, C]`, a tensor of TensorFlow or JAX.
        offsets: `[N, Ho, Wo, G*K*2]`.
        mask: `[N, Ho, Wo, G*K]`.
        window: the attributes. The tensors have channels last; messages show them in the window's
            data format.

    Raises:
        ValueError: the static shapes break a rule.
    """
    check = dcnv3_checks(op, window.data_format)
    for argument, tensor in (("inputs", inputs), ("offsets", offsets), ("mask", mask)):
        check.rank(argument, tensor)
    batch, height, width, channels = dims(inputs, 4)
    axes = resolve_axes(
        (height, width), window.kernel_size, window.strides, window.dilations, window.padding
    )
    if any(axis.kernel_is_too_large for axis in axes):
        extent, padded = ([getattr(axis, size) for axis in axes] for size in ("extent", "padded"))
        raise check.error(rules.kernel_does_not_fit(extent, padded))
    count = len(window.taps)
    groups = _groups(check, dims(offsets, 4)[3], count, channels)
    g = DCNv3Geometry(batch, height, width, channels, groups, axes)
    for argument, tensor, size in (("offsets", offsets, 2 * count), ("mask", mask, count)):
        got, expected = dims(tensor, 4), [*g.output, groups * size]
        if differ(got, expected):
            shown = [*g.output, f"G*{size}"] if argument == "offsets" else expected
            raise check.wrong_shape(argument, shown, tensor)
        check.at_run_time(argument, got, expected)
    return g


def _groups(check: Checks, sizes: Dim, taps: int, channels: Dim) -> Dim:
    """The groups that offsets of `sizes` channels have, which must divide the channels."""
    if known(sizes) and (sizes == 0 or sizes % (2 * taps)):
        raise check.error(
            f"offsets channels must be a positive multiple of K*2={2 * taps}, got {sizes}"
        )
    groups = sizes // (2 * taps)
    if known(channels, groups) and channels % groups:
        raise check.error(f"inputs channels must be a multiple of G, got C={channels}, G={groups}")
    return groups
