"""Geometry and validation of the reference of deformable attention.

The counterpart of `cc/kernels/deformable_attention/geometry.cc`: the same rules in the same order
with the same messages, checked wherever the static shapes allow it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_deformable._geometry.sizes import (
    AT_MOST_LARGEST,
    LARGEST_INTEGER,
    Checks,
    Dim,
    differ,
    dims,
    first_known,
    known,
    text,
)

if TYPE_CHECKING:
    import tensorflow as tf

_OPERATOR = "multi_scale_deformable_attention"


@dataclasses.dataclass(frozen=True)
class DeformableAttentionGeometry:
    """All sizes of one call, each static where it can be known statically."""

    batch: Dim
    pixels: Dim  # of all levels
    heads: Dim
    depth: Dim  # channels of a head
    queries: Dim
    points: Dim | tuple[int, ...]  # of every level, or of each
    samples: Dim  # of a head of a query: the points of all levels

    @property
    def rows(self) -> Dim:
        """Heads of all queries of the batch."""
        return self.batch * self.queries * self.heads


def deformable_attention_geometry(
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
    num_points: Sequence[int] = (),
) -> DeformableAttentionGeometry:
    """Checks the arguments of one call, of TensorFlow or JAX, and derives every size from them.

    Args:
        value: `[N, S, heads, D]`.
        spatial_shapes: `[levels, 2]`, height and width of each level, integers. What NumPy's arrays
            and TensorFlow's constants hold is checked.
        sampling_locations: `[N, Q, heads, levels, points, 2]`, or `[N, Q, heads, P, 2]` with
            num_points, of which P is the sum.
        attention_weights: `[N, Q, heads, levels, points]`, or `[N, Q, heads, P]`.
        num_points: points of each level, or nothing where all levels have as many.

    Returns:
        The geometry; sizes that the static shapes do not tell are scalar tensors.

    Raises:
        ValueError: the static shapes, or constant sizes of levels, break a rule; the message names
            the argument, the rule and what was got.
    """
    rank, axes = (4, "sum of num_points") if num_points else (5, "levels,points")
    check = Checks(
        _OPERATOR,
        {
            "value": "[N,S,heads,D]",
            "spatial_shapes": "[levels,2]",
            "sampling_locations": f"[N,Q,heads,{axes},2]",
            "attention_weights": f"[N,Q,heads,{axes}]",
        },
    )
    if any(not 0 <= points <= LARGEST_INTEGER for points in num_points):
        raise check.error(
            f"num_points must be integers of at least 0{AT_MOST_LARGEST}, "
            f"got {text(tuple(num_points))}"
        )
    check.rank("value", value)
    check.rank("spatial_shapes", spatial_shapes)
    check.rank("sampling_locations", sampling_locations)
    check.rank("attention_weights", attention_weights)

    value_dims = dims(value, 4)
    shapes_dims = dims(spatial_shapes, 2)
    locations_dims = dims(sampling_locations, rank + 1)
    weights_dims = dims(attention_weights, rank)
    levels: Dim = len(num_points)
    points: Dim | tuple[int, ...] = tuple(num_points)
    axes_of_points: list[Dim] = [sum(num_points)]
    if not num_points:
        levels = first_known(shapes_dims[0], locations_dims[3], weights_dims[3])
        points = first_known(locations_dims[4], weights_dims[4])
        axes_of_points = [levels, points]
    g = DeformableAttentionGeometry(
        batch=first_known(value_dims[0], locations_dims[0], weights_dims[0]),
        pixels=value_dims[1],
        heads=first_known(value_dims[2], locations_dims[2], weights_dims[2]),
        depth=value_dims[3],
        # Of the two, where neither is known, weights have no more axes than LiteRT takes.
        queries=locations_dims[1] if known(locations_dims[1]) else weights_dims[1],
        points=points,
        samples=math.prod(axes_of_points),
    )
    samples = [g.batch, g.queries, g.heads, *axes_of_points]

    def check_shape(name: str, tensor: Any, got: list[Dim], expected: list[Dim]) -> None:
        if differ(got, expected):
            raise check.wrong_shape(name, expected, tensor)
        check.at_run_time(name, got, expected)

    check_shape("value", value, value_dims, [g.batch, g.pixels, g.heads, g.depth])
    if known(g.depth) and g.depth == 0:
        raise check.error(
            "value must have at least 1 channel in each head, "
            f"got shape {check.shape('value', value)}"
        )
    check_shape("spatial_shapes", spatial_shapes, shapes_dims, [levels, 2])
    check_shape("sampling_locations", sampling_locations, locations_dims, [*samples, 2])
    check_shape("attention_weights", attention_weights, weights_dims, samples)
    check.output(g.batch, g.queries, g.heads * g.depth)
    if isinstance(spatial_shapes, np.ndarray):
        _check_known_levels(check, spatial_shapes, g)
    elif not isinstance(spatial_shapes.shape, tuple):
        _check_levels(check, spatial_shapes, g)
    # Else the compiled operator checks them: a program of JAX cannot.
    return g


_SUMMED_AXES = "[N,S = sum of H*W,heads,D]"  # of value


def _check_levels(check: Checks, spatial_shapes: tf.Tensor, g: DeformableAttentionGeometry) -> None:
    import tensorflow as tf

    sizes = tf.get_static_value(spatial_shapes)
    if sizes is None:
        tf.debugging.assert_non_negative(
            spatial_shapes,
            message=f"{_OPERATOR}: spatial_shapes must be at least 0",
        )
        areas = tf.reduce_prod(tf.cast(spatial_shapes, tf.int64), axis=1)
        check.at_run_time("value", [g.pixels], [tf.reduce_sum(areas)], _SUMMED_AXES)
        return
    _check_known_levels(check, sizes, g)


def _check_known_levels(check: Checks, sizes: np.ndarray, g: DeformableAttentionGeometry) -> None:
    levels = [[int(size) for size in level] for level in sizes]
    if any(not 0 <= size <= LARGEST_INTEGER for level in levels for size in level):
        raise check.error(
            f"spatial_shapes must be heights and widths of at least 0{AT_MOST_LARGEST}, "
            f"got {text(levels)}"
        )
    pixels = sum(height * width for height, width in levels)
    if differ([g.pixels], [pixels]):
        raise check.error(
            "value must have the pixels of all levels, S = sum of H*W of spatial_shapes, "
            f"got S={g.pixels} and spatial_shapes {text(levels)}"
        )
    check.at_run_time("value", [g.pixels], [pixels], _SUMMED_AXES)
