"""The strides of the maps of a functional or Sequential model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable.graphs.keras_graph import Call, Walk, is_channels_first, shape_of, walk
from tf_deformable.graphs.receptive_field import ReceptiveFields

Stride: TypeAlias = "tuple[float, float]"  # pixels of the image per cell, y and x

# Sizes of images for networks that take any: what depends on which of them is no property of the
# network. Whole maps come out of both, whatever is halved in between.
_PROBES = ((512, 512), (640, 640))


@dataclasses.dataclass(frozen=True)
class StridedCall:
    """A call of a layer, and the strides of the maps that it reads and makes."""

    call: Call
    read: list[Stride | None]  # None: not a map, or one whose stride depends on the images' size
    made: list[Stride | None]


def walk_strides(model: Any) -> tuple[list[StridedCall], list[Stride | None]]:
    """Returns the calls of a model with the strides of their maps, and those of its outputs.

    Args:
        model: as in `walk`. All its inputs of rank 4 are images.
    """
    rows = 2 if is_channels_first(model) else 1
    walks = _probes(model) if _takes_any_size(model, rows) else [walk(model)]
    strides = [_Strides(one, rows) for one in walks]

    def common(tensors: Sequence[Sequence[Any]]) -> list[Stride | None]:
        found = [[of(tensor) for tensor in each] for of, each in zip(strides, tensors, strict=True)]
        return [each[0] if len(set(each)) == 1 else None for each in zip(*found, strict=True)]

    calls = [
        StridedCall(same[0], common([c.read for c in same]), common([c.made for c in same]))
        for same in zip(*(one.calls for one in walks), strict=True)
    ]
    return calls, common([one.outputs for one in walks])


class _Strides:
    """The strides of the maps of a walk."""

    def __init__(self, walked: Walk, rows: int) -> None:
        fields = ReceptiveFields(
            walked.graph.get_operations(),
            walked.convolutions,
            [(call.read, call.made) for call in walked.calls],
        )
        axes = (rows, rows + 1)
        self._reached = [
            fields.of(tensor, axes)
            for tensor in walked.inputs
            if isinstance(tensor, tf.Tensor) and tensor.shape.rank == 4
        ]

    def __call__(self, tensor: Any) -> Stride | None:
        """The stride of a map; the coarsest, if it depends on several images."""
        if not isinstance(tensor, tf.Tensor) or tensor.shape.rank != 4:
            return None
        found = [fields[tensor.ref()] for fields in self._reached if tensor.ref() in fields]
        strides = [(float(f.stride[0]), float(f.stride[1])) for f in found if not f.flat]
        return max(strides, default=None, key=lambda stride: stride[0] * stride[1])


def _probes(model: Any) -> list[Walk]:
    """Walks through a model that takes images of any size."""
    try:
        return [walk(model, size) for size in _PROBES]
    except Exception:  # A layer may refuse these sizes, in whatever way; none is refused by all.
        return [walk(model)]


def _takes_any_size(model: Any, rows: int) -> bool:
    shapes = [shape_of(tensor) for tensor in model.inputs]
    return any(None in shape[rows : rows + 2] for shape in shapes if len(shape) == 4)
