"""The rules that more than one part of the package checks, in words.

Those of the operator have the words of `cc/kernels/deformable_conv2d/geometry.cc`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tf_deformable._geometry.sizes import Dim, text


def kernel_does_not_fit(extent: Sequence[Dim], padded: Sequence[Dim | str]) -> str:
    """A dilated kernel is larger than the padded inputs."""
    return (
        "the dilated kernel must fit into the padded inputs, got kernel extent "
        f"{text(list(extent))} and padded size {text(list(padded))}"
    )


def offset_groups_do_not_divide(channels: Dim, offset_groups: Dim) -> str:
    """The channels of the inputs cannot be split into the offset groups."""
    return (
        "inputs channels must be a multiple of the offset groups, "
        f"got C={channels} and G={offset_groups}"
    )
