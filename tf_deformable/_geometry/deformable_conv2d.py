"""Geometry and validation of the reference operators.

The counterpart of `cc/kernels/deformable_conv2d/geometry.cc`: the same rules in the same order
with the same messages, checked wherever the static shapes allow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import tensorflow as tf

from tf_deformable._geometry.sizes import (
    AT_MOST_LARGEST,
    LARGEST_INTEGER,
    Checks,
    Dim,
    Pair,
    differ,
    dims,
    first_known,
    floor_divide,
    known,
    text,
)

# Explicit padding is ((top, bottom), (left, right)).
Padding: TypeAlias = Literal["SAME", "VALID"] | tuple[Pair, Pair]

_check = Checks("deformable_conv2d")


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


def deformable_conv2d_geometry(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    offsets: tf.Tensor,
    mask: tf.Tensor | None,
    bias: tf.Tensor | None,
    *,
    strides: Pair,
    padding: Padding,
    dilations: Pair,
) -> DeformableConv2DGeometry:
    """Checks the arguments of one call and derives every size from them.

    Args:
        inputs: `[N, H, W, C]`.
        filters: `[kh, kw, C/groups, F]`.
        offsets: `[N, Ho, Wo, G*kh*kw*2]`.
        mask: `[N, Ho, Wo, G*kh*kw]` or None.
        bias: `[F]` or None.
        strides: (y, x), in pixels of the inputs.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: (y, x), in pixels of the inputs.

    Returns:
        The geometry; sizes that the static shapes do not tell are scalar tensors.

    Raises:
        ValueError: the static shapes or the attributes break a rule; the message names the
            argument, the rule and what was got.
    """
    _check_attributes(strides, padding, dilations)
    _check.rank("inputs", "[N,H,W,C]", 4, inputs)
    _check.rank("filters", "[kh,kw,C/groups,F]", 4, filters)
    _check.rank("offsets", "[N,Ho,Wo,G*kh*kw*2]", 4, offsets)
    _check.rank("mask", "[N,Ho,Wo,G*kh*kw]", 4, mask)
    _check.rank("bias", "[F]", 1, bias)

    batch, height, width, channels = dims(inputs, 4)
    kernel_height, kernel_width, group_channels, filter_count = dims(filters, 4)
    offsets_dims = dims(offsets, 4)
    mask_dims = offsets_dims if mask is None else dims(mask, 4)

    if any(known(size) and size > LARGEST_INTEGER for size in (height, width)):
        raise _check.error(
            f"inputs height and width must be at most {LARGEST_INTEGER}, "
            f"got shape {text(inputs.shape)}"
        )
    if _is(0, kernel_height, kernel_width, group_channels, filter_count):
        raise _check.error(
            "filters must have kernel height, kernel width, input channels and output channels "
            f"of at least 1, got shape {text(filters.shape)}"
        )
    if known(channels, group_channels) and (channels == 0 or channels % group_channels):
        raise _check.error(
            "inputs channels must be a multiple of the filters' input channels "
            f"(C = groups * filters.shape[2]), got C={channels} and filters shape "
            f"{text(filters.shape)}"
        )
    groups = channels // group_channels
    filter_count = first_known(filter_count, *([] if bias is None else dims(bias, 1)))
    if known(filter_count, groups) and filter_count % groups:
        raise _check.error(
            "filters output channels must be a multiple of groups, "
            f"got F={filter_count} and groups={groups}"
        )

    top_bottom, left_right = (None, None) if isinstance(padding, str) else padding
    y = _resolve_axis(height, kernel_height, strides[0], dilations[0], padding, top_bottom)
    x = _resolve_axis(width, kernel_width, strides[1], dilations[1], padding, left_right)
    if y.kernel_is_too_large or x.kernel_is_too_large:
        raise _check.error(
            "the dilated kernel must fit into the padded inputs, got kernel extent "
            f"{text([y.extent, x.extent])} and padded size {text([y.padded, x.padded])}"
        )

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
        raise _check.error(
            "offsets must have shape [N,Ho,Wo,G*2*kh*kw] = "
            f"{text([*output_map, f'G*{text(2 * taps)}'])}, got shape {text(offsets.shape)}"
        )
    _check.at_run_time("offsets", "[N,Ho,Wo,G*2*kh*kw]", offsets_dims[:3], inputs_map)
    offset_groups = offsets_dims[3] // (2 * taps)
    if not known(offset_groups) and known(mask_dims[3], taps) and mask_dims[3] % taps == 0:
        offset_groups = max(mask_dims[3] // taps, 1)
    if known(channels, offset_groups) and channels % offset_groups:
        raise _check.error(
            "inputs channels must be a multiple of the offset groups, "
            f"got C={channels} and G={offset_groups}"
        )
    expected_mask = [*output_map, offset_groups * taps]
    if mask is not None and differ(mask_dims, expected_mask):
        raise _check.error(
            f"mask must have shape [N,Ho,Wo,G*kh*kw] = {text(expected_mask)}, "
            f"got shape {text(mask.shape)}"
        )
    if mask is not None:
        _check.at_run_time("mask", "[N,Ho,Wo,G*kh*kw]", mask_dims[:3], inputs_map)
    if bias is not None and differ(dims(bias, 1), [filter_count]):
        raise _check.error(
            f"bias must have shape [F] = {text([filter_count])}, got shape {text(bias.shape)}"
        )

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


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One spatial axis: the output's size, and the padding that leads to it."""

    output: Dim
    pad_before: Dim
    extent: Dim  # of the dilated kernel
    padded: Dim
    kernel_is_too_large: bool


def _resolve_axis(
    size: Dim, kernel: Dim, stride: int, dilation: int, padding: Padding, pads: Pair | None
) -> _Axis:
    """Output size and padding as `tf.nn.conv2d` defines them.

    Only sizes are divided, and what an attribute adds to them beforehand is negative and less than
    a stride: the dividends fit in int32, whatever the attributes.
    """
    extent = (kernel - 1) * dilation + 1
    if padding == "SAME":
        output = -floor_divide(-size, stride)
        missing = (output - 1) * stride - size  # but for the kernel
        total = _maximum(missing + extent, 0)
        before = floor_divide(missing + extent % 2, 2) + extent // 2  # half of missing + extent
        return _Axis(output, _maximum(before, 0), extent, size + total, False)
    before, after = pads or (0, 0)
    padded = size + before + after
    added = before + after - extent
    whole = -(-added // stride)
    # An empty map has an empty output instead of an error.
    output = floor_divide(size + (added - whole * stride), stride) + whole + 1
    too_large = known(size, padded, extent) and size > 0 and padded < extent
    return _Axis(_maximum(output, 0), before, extent, padded, too_large)


def _check_attributes(strides: Pair, padding: Padding, dilations: Pair) -> None:
    for name, values in (("strides", strides), ("dilations", dilations)):
        if not _all_between(values, 2, 1):
            raise _check.error(
                f"{name} must be 2 positive integers (y, x){AT_MOST_LARGEST}, got {text(values)}"
            )
    if not isinstance(padding, str):
        pads = [pad for axis in padding for pad in axis]
        if not _all_between(pads, 4, 0):
            raise _check.error(
                "explicit padding must be 4 non-negative integers (top, bottom, left, right)"
                f"{AT_MOST_LARGEST}, got {text(pads)}"
            )


def _all_between(values: Sequence[int], count: int, lowest: int) -> bool:
    return len(values) == count and all(lowest <= v <= LARGEST_INTEGER for v in values)


def _is(value: int, *dims: Dim) -> bool:
    return any(known(dim) and dim == value for dim in dims)


def _maximum(a: Dim, b: int) -> Dim:
    return max(a, b) if isinstance(a, int) else tf.maximum(a, tf.constant(b, tf.int64))
