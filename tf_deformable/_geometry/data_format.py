"""The order of the axes of maps: channels come last in the package, and where callers have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar

DataFormat: TypeAlias = Literal["NHWC", "NCHW"]
T = TypeVar("T")

# Permutations for `transpose`: from NCHW, and to it.
TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


def in_format(axes: Sequence[T], data_format: DataFormat) -> list[T]:
    """Returns what belongs to the axes (N, H, W, C) of a map in the order of a data format."""
    return [axes[axis] for axis in TO_NCHW] if data_format == "NCHW" else list(axes)
