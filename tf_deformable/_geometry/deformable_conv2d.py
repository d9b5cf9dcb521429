"""Geometry and validation of the deformable convolution, in Python.

The counterpart of `cc/kernels/deformable_conv2d/geometry.cc`: the same rules in the same order
with the same messages, checked wherever the static shapes allow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tf_deformable._geometry import rules
from tf_deformable._geometry.data_format import DataFormat
from tf_deformable._geometry.padding import Padding, resolve_axes
from tf_deformable._geometry.sizes import (
    AT_MOST_LARGEST,
    LARGEST_INTEGER,
    Checks,
    Dim,
    Pair,
    differ,
    dims,
    first_known,
    known,
    text,
)

_AXES = {
    "inputs": "[N,H,W,C]",
    "filters": "[kh,kw,C/groups,F]",
    "offsets": "[N,Ho,Wo,G*kh*kw*2]",
    "mask": "[N,Ho,Wo,G*kh*kw]",
    "bias": "[F]",
}
_MAPS = ("inputs", "offsets", "mask", "output")


@dataclasses.dataclass(frozen=True)
class DeformableConv2DGeometry:
    """All sizes of one deformable convolution, each static where it can be known statically."""

    batch: Dim
    height: Dim
    width: Dim
    channels: Dim
    kernel_height: Dim
    kernel_width: Dim
    group_channels: Dim  # input channels of one group: filters.shape[2]
    filters: Dim  # output channels
    groups: Dim
    offset_groups: Dim
    output_height: Dim
    output_width: Dim
    pad_top: Dim
    pad_left: Dim
    strides: Pair
    dilations: Pair

    @property
    def taps(self) -> Dim:
        """Sampling positions of one output pixel and offset group."""
        return self.kernel_height * self.kernel_width

    @property
    def output_pixels(self) -> Dim:
        """Output pixels of the whole batch."""
        return self.batch * self.output_height * self.output_width


def deformable_conv2d_checks(data_format: DataFormat) -> Checks:
    """Returns the checks of a call whose maps have this data format."""
    return Checks("deformable_conv2d", _AXES, _MAPS, data_format)


def deformable_conv2d_geometry(
    inputs: Any,
    filters: Any,
    offsets: Any,
    mask: Any,
    bias: Any,
    *,
    strides: Pair,
    padding: Padding,
    dilations: Pair,
    data_format: DataFormat = "NHWC",
) -> DeformableConv2DGeometry:
    """Checks the arguments of one call and derives every size from them.

    Tensors may be of TensorFlow or of JAX.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C/groups, F]`.
        offsets: `[N, Ho, Wo, G*kh*kw*2]`.
        mask: `[N, Ho, Wo, G*kh*kw]` or None.
        bias: `[F]` or None.
        strides: (y, x), in pixels of the inputs.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: (y, x), in pixels of the inputs.
        data_format: of the caller. The tensors have channels last; messages show them so.

    Returns:
        The geometry; sizes that the static shapes do not tell are scalar tensors.

    Raises:
        ValueError: the static shapes or the attributes break a rule; the message names the
            argument, the rule and what was got.
    """
    check = deformable_conv2d_checks(data_format)
    _check_attributes(check, strides, padding, dilations)
    check.rank("inputs", inputs)
    check.rank("filters", filters)
    check.rank("offsets", offsets)
    check.rank("mask", mask)
    check.rank("bias", bias)

    batch, height, width, channels = dims(inputs, 4)
    kernel_height, kernel_width, group_channels, filter_count = dims(filters, 4)
    offsets_dims = dims(offsets, 4)
    mask_dims = offsets_dims if mask is None else dims(mask, 4)

    if any(known(size) and size > LARGEST_INTEGER for size in (height, width)):
        raise check.error(
            f"inputs height and width must be at most {LARGEST_INTEGER}, "
            f"got shape {check.shape('inputs', inputs)}"
        )
    if any(known(size) and size > LARGEST_INTEGER for size in (kernel_height, kernel_width)):
        raise check.error(
            f"filters height and width must be at most {LARGEST_INTEGER}, "
            f"got shape {check.shape('filters', filters)}"
        )
    if _is(0, kernel_height, kernel_width, group_channels, filter_count):
        raise check.error(
            "filters must have kernel height, kernel width, input channels and output channels "
            f"of at least 1, got shape {check.shape('filters', filters)}"
        )
    if known(channels, group_channels) and (channels == 0 or channels % group_channels):
        raise check.error(
            "inputs channels must be a multiple of the filters' input channels "
            f"(C = groups * filters.shape[2]), got C={channels} and filters shape "
            f"{check.shape('filters', filters)}"
        )
    groups = channels // group_channels
    filter_count = first_known(filter_count, *([] if bias is None else dims(bias, 1)))
    if known(filter_count, groups) and filter_count % groups:
        raise check.error(
            "filters output channels must be a multiple of groups, "
            f"got F={filter_count} and groups={groups}"
        )

    y, x = resolve_axes((height, width), (kernel_height, kernel_width), strides, dilations, padding)
    if y.kernel_is_too_large or x.kernel_is_too_large:
        raise check.error(rules.kernel_does_not_fit((y.extent, x.extent), (y.padded, x.padded)))

    inputs_map = [batch, y.output, x.output]
    batch = first_known(batch, offsets_dims[0], mask_dims[0])
    output_height = first_known(y.output, offsets_dims[1], mask_dims[1])
    output_width = first_known(x.output, offsets_dims[2], mask_dims[2])
    output_map = [batch, output_height, output_width]

    taps = kernel_height * kernel_width
    channels_wrong = known(offsets_dims[3], taps) and (
        offsets_dims[3] == 0 or offsets_dims[3] % (2 * taps) != 0
    )
    if channels_wrong or differ(offsets_dims[:3], output_map):
        raise check.wrong_shape("offsets", [*output_map, f"G*{text(2 * taps)}"], offsets)
    check.at_run_time("offsets", offsets_dims[:3], inputs_map)
    offset_groups = offsets_dims[3] // (2 * taps)
    if not known(offset_groups) and known(mask_dims[3], taps):
        offset_groups = max(mask_dims[3] // taps, 1)  # checked below
    if known(channels, offset_groups) and channels % offset_groups:
        raise check.error(rules.offset_groups_do_not_divide(channels, offset_groups))
    expected_mask = [*output_map, offset_groups * taps]
    if mask is not None and differ(mask_dims, expected_mask):
        raise check.wrong_shape("mask", expected_mask, mask)
    if mask is not None:
        check.at_run_time("mask", mask_dims[:3], inputs_map)
    if bias is not None and differ(dims(bias, 1), [filter_count]):
        raise check.wrong_shape("bias", [filter_count], bias)
    check.output(*output_map, filter_count)

    return DeformableConv2DGeometry(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        group_channels=group_channels,
        filters=filter_count,
        groups=groups,
        offset_groups=offset_groups,
        output_height=output_height,
        output_width=output_width,
        pad_top=y.pad_before,
        pad_left=x.pad_before,
        strides=strides,
        dilations=dilations,
    )


def _check_attributes(check: Checks, strides: Pair, padding: Padding, dilations: Pair) -> None:
    for name, values in (("strides", strides), ("dilations", dilations)):
        if not _all_between(values, 2, 1):
            raise check.error(
                f"{name} must be 2 positive integers (y, x){AT_MOST_LARGEST}, got {text(values)}"
            )
    if not isinstance(padding, str):
        pads = [pad for axis in padding for pad in axis]
        if not _all_between(pads, 4, 0):
            raise check.error(
                "explicit padding must be 4 non-negative integers (top, bottom, left, right)"
                f"{AT_MOST_LARGEST}, got {text(pads)}"
            )


def _all_between(values: Sequence[int], count: int, lowest: int) -> bool:
    return len(values) == count and all(lowest <= v <= LARGEST_INTEGER for v in values)


def _is(value: int, *dims: Dim) -> bool:
    return any(known(dim) and dim == value for dim in dims)
