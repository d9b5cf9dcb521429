"""Bad input gets one error that names the argument, the rule and the value.

One table for both backends, in eager mode and while a graph is built.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable

OP = "multi_scale_deformable_attention"
LEVELS = [[3, 4], [2, 1]]
SHAPES = {
    "value": [2, 14, 3, 5],
    "sampling_locations": [2, 6, 3, 2, 4, 2],
    "attention_weights": [2, 6, 3, 2, 4],
}


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call that breaks one rule: what differs from a good call, and what it is told."""

    message: str
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    levels: Any = dataclasses.field(default_factory=lambda: LEVELS)
    num_points: list[int] | None = None


def _text(shape: Any) -> str:
    return str(shape).replace(" ", "")


def _rank(argument: str, rank: int, layout: str, shape: list[int]) -> Bad:
    return Bad(
        f"{argument} must have rank {rank} {layout}, got shape {_text(shape)}", {argument: shape}
    )


def _shape(argument: str, layout: str, expected: list[int], shape: list[int]) -> Bad:
    rule = f"{argument} must have shape {layout} = {_text(expected)}"
    return Bad(f"{rule}, got shape {_text(shape)}", {argument: shape})


_locations = functools.partial(
    _shape, "sampling_locations", "[N,Q,heads,levels,points,2]", SHAPES["sampling_locations"]
)


def _weights(shape: list[int]) -> Bad:
    layout = "[N,Q,heads,levels,points]"
    return _shape("attention_weights", layout, SHAPES["attention_weights"], shape)


def _pixels(levels: list[list[int]]) -> Bad:
    return Bad(
        "value must have the pixels of all levels, S = sum of H*W of spatial_shapes, got S=14 and "
        f"spatial_shapes {_text(levels)}",
        levels=levels,
    )


def _sizes(levels: list[list[int]]) -> Bad:
    rule = "spatial_shapes must be heights and widths of at least 0, at most 2147483647"
    return Bad(f"{rule}, got {_text(levels)}", levels=levels)


def _own_points(message: str, num_points: list[int], **shapes: list[int]) -> Bad:
    """A call whose levels have 4 and 3 points, changed."""
    own = {"sampling_locations": [2, 6, 3, 7, 2], "attention_weights": [2, 6, 3, 7]}
    return Bad(message, {**own, **shapes}, num_points=num_points)


TOO_LARGE = "output, beyond all memory"

BAD = {
    "value, rank 3": _rank("value", 4, "[N,S,heads,D]", [2, 14, 15]),
    "value, a scalar": _rank("value", 4, "[N,S,heads,D]", []),
    "locations, rank 5": _rank(
        "sampling_locations", 6, "[N,Q,heads,levels,points,2]", [2, 6, 3, 8, 2]
    ),
    "weights, rank 4": _rank("attention_weights", 5, "[N,Q,heads,levels,points]", [2, 6, 3, 8]),
    "locations, batch": _locations([1, 6, 3, 2, 4, 2]),
    "locations, heads": _locations([2, 6, 1, 2, 4, 2]),
    "locations, levels": _locations([2, 6, 3, 3, 4, 2]),
    "locations, triples": _locations([2, 6, 3, 2, 4, 3]),
    "weights, batch": _weights([3, 6, 3, 2, 4]),
    "weights, queries": _weights([2, 5, 3, 2, 4]),
    "weights, heads": _weights([2, 6, 4, 2, 4]),
    "weights, levels": _weights([2, 6, 3, 1, 4]),
    "weights, points": _weights([2, 6, 3, 2, 1]),
    "no channels": Bad(
        "value must have at least 1 channel in each head, got shape [2,14,3,0]",
        {"value": [2, 14, 3, 0]},
    ),
    TOO_LARGE: Bad(
        "output must have at most 281474976710656 elements, "
        "got shape [1,1048576,36028797018963968]",
        {
            "value": [1, 0, 2**24, 2**31],
            "sampling_locations": [1, 2**20, 2**24, 1, 0, 2],
            "attention_weights": [1, 2**20, 2**24, 1, 0],
        },
        levels=[[0, 0]],
    ),
    "levels, one size": Bad(
        "spatial_shapes must have rank 2 [levels,2], got shape [2]", levels=[3, 4]
    ),
    "levels, triples": Bad(
        "spatial_shapes must have shape [levels,2] = [2,2], got shape [2,3]",
        levels=[[3, 4, 1], [2, 1, 1]],
    ),
    "pixels, too many": _pixels([[3, 4], [2, 2]]),
    "pixels, too few": _pixels([[3, 3], [2, 2]]),
    "pixels, beyond all tensors": _pixels([[2**31 - 1, 2**31 - 1], [2, 2]]),
    "levels, negative": _sizes([[-3, -4], [2, 1]]),
    "levels, one negative": _sizes([[3, 4], [2, -1]]),
    "own points, negative": _own_points(
        "num_points must be integers of at least 0, at most 2147483647, got [8,-1]", [8, -1]
    ),
    "own points, huge": _own_points(
        "num_points must be integers of at least 0, at most 2147483647, got [4,2147483648]",
        [4, 2**31],
    ),
    "own points, three levels": _own_points(
        "spatial_shapes must have shape [levels,2] = [3,2], got shape [2,2]", [4, 2, 1]
    ),
    "own points, locations with levels": _own_points(
        "sampling_locations must have rank 5 [N,Q,heads,sum of num_points,2], "
        "got shape [2,6,3,2,4,2]",
        [4, 3],
        sampling_locations=[2, 6, 3, 2, 4, 2],
    ),
    "own points, weights with levels": _own_points(
        "attention_weights must have rank 4 [N,Q,heads,sum of num_points], got shape [2,6,3,2,4]",
        [4, 3],
        attention_weights=[2, 6, 3, 2, 4],
    ),
    "own points, locations": _own_points(
        "sampling_locations must have shape [N,Q,heads,sum of num_points,2] = [2,6,3,8,2], "
        "got shape [2,6,3,7,2]",
        [4, 4],
    ),
    "own points, weights": _own_points(
        "attention_weights must have shape [N,Q,heads,sum of num_points] = [2,6,3,7], "
        "got shape [2,6,3,1]",
        [4, 3],
        attention_weights=[2, 6, 3, 1],
    ),
}


def _tensors(**shapes: list[int]) -> dict[str, tf.Tensor]:
    return {name: tf.zeros(shape) for name, shape in {**SHAPES, **shapes}.items()}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_in_eager_mode(backend: str, bad: Bad) -> None:
    error = tf.errors.InvalidArgumentError if backend == "native" else ValueError
    with pytest.raises(error, match=re.escape(f"{OP}: {bad.message}")) as caught:
        tf_deformable.multi_scale_deformable_attention(
            spatial_shapes=bad.levels, num_points=bad.num_points, **_tensors(**bad.shapes)
        )
    if backend == "reference":
        assert str(caught.value) == f"{OP}: {bad.message}"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_while_a_graph_is_built(backend: str, bad: Bad) -> None:
    @tf.function
    def function(**tensors: tf.Tensor) -> tf.Tensor:
        return tf_deformable.multi_scale_deformable_attention(
            spatial_shapes=bad.levels, num_points=bad.num_points, **tensors
        )

    specs = {
        name: tf.TensorSpec(shape, tf.float32) for name, shape in {**SHAPES, **bad.shapes}.items()
    }
    with pytest.raises(ValueError, match=re.escape(f"{OP}: {bad.message}")):
        function.get_concrete_function(**specs)


@functools.cache
def _graph_that_knows_nothing(backend: str, num_points: tuple[int, ...] | None) -> Any:
    """Traced once per backend and attribute, for all bad shapes."""
    specs = {name: tf.TensorSpec(None, tf.float32) for name in SHAPES}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.int32), specs])
    def function(spatial_shapes: tf.Tensor, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf_deformable.config.use_backend(backend):
            return tf_deformable.multi_scale_deformable_attention(
                spatial_shapes=spatial_shapes, num_points=num_points, **tensors
            )

    return function


@pytest.mark.parametrize("name", BAD)
def test_bad_input_that_only_the_run_shows(backend: str, name: str) -> None:
    bad = BAD[name]
    if backend == "reference" and name == TOO_LARGE:
        pytest.skip("TensorFlow's own operators end the process")
    points = None if bad.num_points is None else tuple(bad.num_points)
    # The reference owes an error instead of a silent broadcast, but not the same words.
    message = re.escape(f"{OP}: {bad.message}") if backend == "native" else None
    # An attribute that is wrong by itself is found as the graph is built.
    is_early = bad.message.startswith("num_points")
    with pytest.raises(ValueError if is_early else tf.errors.InvalidArgumentError, match=message):
        graph = _graph_that_knows_nothing(backend, points)
        graph(tf.constant(bad.levels), _tensors(**bad.shapes))


def test_the_good_call_is_good(backend: str) -> None:
    result = tf_deformable.multi_scale_deformable_attention(spatial_shapes=LEVELS, **_tensors())
    assert result.shape == [2, 6, 15]


# --- What is checked before either backend sees it ---


def _call(**changes: Any) -> tf.Tensor:
    arguments = {"spatial_shapes": LEVELS, **_tensors(), **changes}
    return tf_deformable.multi_scale_deformable_attention(**arguments)


@pytest.mark.parametrize("argument", ["sampling_locations", "attention_weights"])
@pytest.mark.parametrize("kind", [tf.zeros, np.zeros])
def test_dtypes_must_agree(backend: str, argument: str, kind: Any) -> None:
    value = kind(SHAPES[argument], np.float64)
    message = f"{OP}: {argument} must have the dtype of value (float32), got float64"
    with pytest.raises(ValueError, match=re.escape(message)):
        _call(**{argument: value})


def test_sampling_beside_half_precision(backend: str) -> None:
    message = "attention_weights must have the dtype of sampling_locations (float32), got float16"
    with pytest.raises(ValueError, match=re.escape(f"{OP}: {message}")):
        _call(
            value=tf.zeros(SHAPES["value"], tf.float16),
            attention_weights=tf.zeros(SHAPES["attention_weights"], tf.float16),
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coordinates": "xy"}, ValueError, '"normalized" or "pixels", got "xy"'),
        ({"coordinates": None}, ValueError, '"normalized" or "pixels", got None'),
        (
            {"num_points": []},
            ValueError,
            "num_points must be None or a list of integers, one for each level, got []",
        ),
        ({"num_points": 4}, ValueError, "num_points must be None or a list of integers"),
        ({"num_points": [4, [3]]}, ValueError, "num_points must be None or a list of integers"),
        ({"num_points": [4, 3.5]}, TypeError, "num_points must be None or a list of integers"),
        ({"num_points": "43"}, TypeError, "num_points must be None or a list of integers"),
        ({"spatial_shapes": None}, TypeError, "spatial_shapes must be convertible to a tensor"),
        ({"spatial_shapes": [[3.5, 4], [2, 1]]}, TypeError, "spatial_shapes must be convertible"),
        (
            {"spatial_shapes": tf.constant([[3.0, 4], [2, 1]])},
            ValueError,
            "spatial_shapes must have an integer dtype, got float32",
        ),
        (
            {"spatial_shapes": [(3, 4), (2,)]},
            TypeError,
            "spatial_shapes must be convertible to a tensor, got list",
        ),
        ({"value": None}, TypeError, "value must be convertible to a tensor, got None"),
        (
            {"value": tf.zeros(SHAPES["value"], tf.int32)},
            ValueError,
            "value must have dtype float16, bfloat16, float32 or float64, got int32",
        ),
        ({"sampling_locations": object()}, TypeError, "sampling_locations must be convertible"),
    ],
)
def test_wrong_kinds_and_names(
    backend: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{OP}: .*" + re.escape(message)):
        _call(**changes)
