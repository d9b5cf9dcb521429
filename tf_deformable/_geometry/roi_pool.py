"""Geometry and validation of RoI pooling, in Python.

The counterpart of `cc/kernels/roi_pool/geometry.cc`: the same rules in the same order with the
same messages, checked wherever the static shapes allow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_deformable._geometry import attributes
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

MOST_SAMPLES_PER_BIN = 1024  # the work of a bin grows with their number, whatever it pools

OPERATORS = ("deformable_roi_pool", "deformable_psroi_pool")

_AXES = {
    "inputs": "[N,H,W,k*k*D]",
    "boxes": "[R,4]",
    "box_indices": "[R]",
    "offsets": "[R,part_h,part_w,classes,2]",
    "mask": "[R,ph,pw]",
}
_WITHOUT_CLASSES = "[R,part_h,part_w,2]"


@dataclasses.dataclass(frozen=True)
class _Pooling:
    output_size: Pair
    group_size: int
    spatial_scale: float
    samples_per_bin: int  # 0: as many as the bin has pixels
    gamma: float
    aligned: bool


@dataclasses.dataclass(frozen=True)
class RoIPoolAttributes(_Pooling):
    """What is not a tensor of a call, normalised."""

    @classmethod
    def normalised(
        cls,
        op: str,
        output_size: int | Sequence[int],
        group_size: int,
        spatial_scale: float,
        samples_per_bin: int,
        gamma: float,
        aligned: bool,
    ) -> RoIPoolAttributes:
        """Returns the attributes of a call of one of `OPERATORS`.

        Raises:
            TypeError: one is of the wrong kind.
            ValueError: `output_size` are not two, or a number is beyond float32.
        """
        return cls(
            output_size=attributes.pair(op, "output_size", output_size),
            group_size=attributes.integer(op, "group_size", group_size),
            spatial_scale=attributes.number(op, "spatial_scale", spatial_scale),
            samples_per_bin=attributes.integer(op, "samples_per_bin", samples_per_bin),
            gamma=attributes.number(op, "gamma", gamma),
            aligned=attributes.boolean(op, "aligned", aligned),
        )

    def for_native(self) -> dict[str, Any]:
        """As the compiled operators and handlers take them."""
        return {**dataclasses.asdict(self), "output_size": list(self.output_size)}

    def for_reference(self) -> dict[str, Any]:
        """As the functions of `tf_deformable.reference`, and those of the geometry, take them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class RoIPoolGeometry(_Pooling):
    """The attributes and all sizes of one pooling, each static where it can be known statically."""

    batch: Dim
    height: Dim
    width: Dim
    boxes: Dim
    depth: Dim  # output channels
    part_height: Dim
    part_width: Dim
    classes: Dim

    @property
    def pooled_height(self) -> int:
        """Rows of bins."""
        return self.output_size[0]

    @property
    def pooled_width(self) -> int:
        """Columns of bins."""
        return self.output_size[1]


def roi_pool_checks(operator: str) -> Checks:
    """Returns the checks of a call of one of `OPERATORS`."""
    has_classes = operator != OPERATORS[0]
    return Checks(operator, _AXES if has_classes else {**_AXES, "offsets": _WITHOUT_CLASSES})


def roi_pool_geometry(
    operator: str,
    inputs: Any,
    boxes: Any,
    box_indices: Any,
    offsets: Any,
    mask: Any,
    *,
    output_size: Pair,
    group_size: int,
    spatial_scale: float,
    samples_per_bin: int,
    gamma: float,
    aligned: bool,
) -> RoIPoolGeometry:
    """Checks the arguments of one call and derives every size from them.

    Tensors may be of TensorFlow or of JAX.

    Args:
        operator: one of `OPERATORS`, for messages; the first takes offsets without classes.
        inputs: `[N, H, W, k*k*D]`.
        boxes: `[R, 4]`.
        box_indices: `[R]`.
        offsets: `[R, part_h, part_w, classes, 2]` or None.
        mask: `[R, ph, pw]` or None.
        output_size: (ph, pw).
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; 0, if aligned: as many as the bin has pixels.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry instead of the authors'.

    Returns:
        The geometry; sizes that the static shapes do not tell are scalar tensors.

    Raises:
        ValueError: the static shapes or the attributes break a rule; the message names the
            argument, the rule and what was got.
    """
    check = roi_pool_checks(operator)
    _check_attributes(
        check, output_size, group_size, spatial_scale, samples_per_bin, gamma, aligned
    )
    check.rank("inputs", inputs)
    check.rank("boxes", boxes)
    check.rank("box_indices", box_indices)
    has_classes = operator != OPERATORS[0]
    if has_classes:  # Those of the other operator have got the axis after a check of their own.
        check.rank("offsets", offsets)
    check.rank("mask", mask)

    batch, height, width, channels = dims(inputs, 4)
    maps = group_size * group_size
    if known(channels) and (channels == 0 or channels % maps):
        raise check.error(
            "inputs channels must be a positive multiple of group_size*group_size, "
            f"got C={channels} and group_size={group_size}"
        )
    boxes_dims, (indices_count,) = dims(boxes, 2), dims(box_indices, 1)
    offsets_dims = [boxes_dims[0], 1, 1, 1, 2] if offsets is None else dims(offsets, 5)
    mask_dims = [boxes_dims[0], *output_size] if mask is None else dims(mask, 3)
    count = first_known(boxes_dims[0], indices_count, offsets_dims[0], mask_dims[0])
    if differ(boxes_dims, [count, 4]):
        raise check.wrong_shape("boxes", [count, 4], boxes)
    if differ([indices_count], [count]):
        raise check.wrong_shape("box_indices", [count], box_indices)

    _, part_height, part_width, classes, _ = offsets_dims
    depth = channels // maps
    if offsets is not None:
        empty = any(known(dim) and dim == 0 for dim in (part_height, part_width, classes))
        if empty or differ(offsets_dims, [count, part_height, part_width, classes, 2]):
            if has_classes:
                raise check.wrong_shape("offsets", [count, ">=1", ">=1", ">=1", 2], offsets)
            raise check.wrong_shape("offsets", [count, ">=1", ">=1", 2], offsets[:, :, :, 0])
        if known(depth, classes) and depth % classes:
            raise check.error(
                "output channels must be a multiple of the offset classes, "
                f"got D={depth} and classes={classes}"
            )
    if mask is not None and differ(mask_dims, [count, *output_size]):
        raise check.wrong_shape("mask", [count, *output_size], mask)
    check.output(count, *output_size, depth)
    check.at_run_time("inputs", [channels % maps], [0])
    check.at_run_time("boxes", boxes_dims, [boxes_dims[0], 4])
    # One box (one part row) for all would be a silent broadcast, not an error.
    check.at_run_time("box_indices", [indices_count], boxes_dims[:1])
    check.at_run_time("offsets", [offsets_dims[0], offsets_dims[4]], [boxes_dims[0], 2])
    check.at_run_time("mask", mask_dims, [boxes_dims[0], *output_size])

    return RoIPoolGeometry(
        batch=batch,
        height=height,
        width=width,
        boxes=count,
        depth=depth,
        part_height=part_height,
        part_width=part_width,
        classes=classes,
        output_size=output_size,
        group_size=group_size,
        # The compiled operator's attributes are float32, for float64 tensors too.
        spatial_scale=float(np.float32(spatial_scale)),
        samples_per_bin=samples_per_bin,
        gamma=float(np.float32(gamma)),
        aligned=aligned,
    )


def _check_attributes(
    check: Checks,
    output_size: Pair,
    group_size: int,
    spatial_scale: float,
    samples_per_bin: int,
    gamma: float,
    aligned: bool,
) -> None:
    if not all(_is_between(size, 1) for size in output_size):
        raise check.error(
            f"output_size must be 2 positive integers (ph, pw){AT_MOST_LARGEST}, "
            f"got {text(list(output_size))}"
        )
    if not _is_between(group_size, 1):
        raise check.error(
            f"group_size must be a positive integer{AT_MOST_LARGEST}, got {group_size}"
        )
    if not (0 if aligned else 1) <= samples_per_bin <= MOST_SAMPLES_PER_BIN:
        raise check.error(
            "samples_per_bin must be a positive integer (or 0 with aligned=True: as many as "
            f"pixels), at most {MOST_SAMPLES_PER_BIN}, got {samples_per_bin}"
        )
    if not (np.isfinite(np.float32(spatial_scale)) and np.float32(spatial_scale) > 0):
        raise check.error(f"spatial_scale must be finite and positive, got {spatial_scale:g}")
    if not np.isfinite(np.float32(gamma)):
        raise check.error(f"gamma must be finite, got {gamma:g}")


def _is_between(value: int, lowest: int) -> bool:
    return lowest <= value <= LARGEST_INTEGER
