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

SHAPES = {
    "inputs": [2, 9, 11, 4],
    "filters": [3, 3, 4, 6],
    "offsets": [2, 9, 11, 18],
    "mask": [2, 9, 11, 9],
    "bias": [6],
}


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call that breaks one rule: what differs from a good call, and what it is told."""

    message: str
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


def _rank(argument: str, rank: int, layout: str, shape: list[int]) -> Bad:
    text = str(shape).replace(" ", "")
    return Bad(f"{argument} must have rank {rank} {layout}, got shape {text}", {argument: shape})


def _offsets(shape: list[int]) -> Bad:
    text = str(shape).replace(" ", "")
    rule = "offsets must have shape [N,Ho,Wo,G*kh*kw*2] = [2,9,11,G*18]"
    return Bad(f"{rule}, got shape {text}", {"offsets": shape})


def _mask(shape: list[int]) -> Bad:
    text = str(shape).replace(" ", "")
    rule = "mask must have shape [N,Ho,Wo,G*kh*kw] = [2,9,11,9]"
    return Bad(f"{rule}, got shape {text}", {"mask": shape})


def _filters(shape: list[int]) -> Bad:
    text = str(shape).replace(" ", "")
    rule = (
        "filters must have kernel height, kernel width, input channels and output channels of "
        "at least 1"
    )
    return Bad(f"{rule}, got shape {text}", {"filters": shape})


def _pair(argument: str, value: Any, text: str) -> Bad:
    rule = f"{argument} must be 2 positive integers (y, x), at most 2147483647"
    return Bad(f"{rule}, got {text}", attributes={argument: value})


def _padding(bottom: int) -> Bad:
    rule = "explicit padding must be 4 non-negative integers (top, bottom, left, right)"
    return Bad(
        f"{rule}, at most 2147483647, got [1,{bottom},0,0]",
        attributes={"padding": [[0, 0], [1, bottom], [0, 0], [0, 0]]},
    )


TOO_HIGH = "inputs, height beyond int32"
TOO_HIGH_FILTERS = "filters, height beyond int32"

BAD = {
    "inputs, rank 3": _rank("inputs", 4, "[N,H,W,C]", [9, 11, 4]),
    "inputs, rank 5": _rank("inputs", 4, "[N,H,W,C]", [2, 1, 9, 11, 4]),
    "inputs, a scalar": _rank("inputs", 4, "[N,H,W,C]", []),
    TOO_HIGH: Bad(
        "inputs height and width must be at most 2147483647, got shape [0,2147483648,11,4]",
        {"inputs": [0, 2**31, 11, 4]},
    ),
    TOO_HIGH_FILTERS: Bad(
        "filters height and width must be at most 2147483647, got shape [2147483648,3,0,6]",
        {"filters": [2**31, 3, 0, 6]},
    ),
    "filters, rank 2": _rank("filters", 4, "[kh,kw,C/groups,F]", [3, 3]),
    "offsets, rank 6": _rank("offsets", 4, "[N,Ho,Wo,G*kh*kw*2]", [2, 9, 11, 3, 3, 2]),
    "mask, rank 3": _rank("mask", 4, "[N,Ho,Wo,G*kh*kw]", [2, 9, 11]),
    "bias, rank 2": _rank("bias", 1, "[F]", [1, 6]),
    "bias, a scalar": _rank("bias", 1, "[F]", []),
    "strides, zero": _pair("strides", 0, "[0,0]"),
    "strides, zero along y": _pair("strides", (0, 1), "[0,1]"),
    "strides, negative along x": _pair("strides", [2, -1], "[2,-1]"),
    "strides, beyond int32": _pair("strides", 2**31, "[2147483648,2147483648]"),
    "dilations, zero": _pair("dilations", (1, 0), "[1,0]"),
    "dilations, negative": _pair("dilations", -2, "[-2,-2]"),
    "padding, negative": _padding(-1),
    "padding, beyond int32": _padding(2**31),
    "filters, no rows": _filters([0, 3, 4, 6]),
    "filters, no input channels": _filters([3, 3, 0, 6]),
    "filters, no outputs": _filters([3, 3, 4, 0]),
    "channels, no multiple of the filters'": Bad(
        "inputs channels must be a multiple of the filters' input channels "
        "(C = groups * filters.shape[2]), got C=4 and filters shape [3,3,3,6]",
        {"filters": [3, 3, 3, 6]},
    ),
    "channels, fewer than the filters'": Bad(
        "inputs channels must be a multiple of the filters' input channels "
        "(C = groups * filters.shape[2]), got C=4 and filters shape [3,3,8,6]",
        {"filters": [3, 3, 8, 6]},
    ),
    "channels, none": Bad(
        "inputs channels must be a multiple of the filters' input channels "
        "(C = groups * filters.shape[2]), got C=0 and filters shape [3,3,4,6]",
        {"inputs": [2, 9, 11, 0]},
    ),
    "groups, outputs do not divide": Bad(
        "filters output channels must be a multiple of groups, got F=6 and groups=4",
        {"filters": [3, 3, 1, 6]},
    ),
    "kernel, too tall": Bad(
        "the dilated kernel must fit into the padded inputs, got kernel extent [11,3] and padded "
        "size [9,11]",
        attributes={"padding": "VALID", "dilations": (5, 1)},
    ),
    "kernel, too wide for the padding": Bad(
        "the dilated kernel must fit into the padded inputs, got kernel extent [3,15] and padded "
        "size [12,14]",
        attributes={"padding": [[0, 0], [1, 2], [3, 0], [0, 0]], "dilations": (1, 7)},
    ),
    "offsets, another batch": _offsets([3, 9, 11, 18]),
    "offsets, a batch of one": _offsets([1, 9, 11, 18]),
    "offsets, another height": _offsets([2, 8, 11, 18]),
    "offsets, height and width swapped": _offsets([2, 11, 9, 18]),
    "offsets, a map of one pixel": _offsets([2, 1, 1, 18]),
    "offsets, half of the channels": _offsets([2, 9, 11, 9]),
    "offsets, mask channels included": _offsets([2, 9, 11, 27]),
    "offsets, no channels": _offsets([2, 9, 11, 0]),
    "offset groups, do not divide channels": Bad(
        "inputs channels must be a multiple of the offset groups, got C=4 and G=3",
        {"offsets": [2, 9, 11, 54], "mask": [2, 9, 11, 27]},
    ),
    "mask, another batch": _mask([1, 9, 11, 9]),
    "mask, another width": _mask([2, 9, 1, 9]),
    "mask, one channel": _mask([2, 9, 11, 1]),
    "mask, channels of the offsets": _mask([2, 9, 11, 18]),
    "bias, one value": Bad("bias must have shape [F] = [6], got shape [1]", {"bias": [1]}),
    "bias, too long": Bad("bias must have shape [F] = [6], got shape [7]", {"bias": [7]}),
}


def _tensors(**shapes: list[int]) -> dict[str, tf.Tensor]:
    return {name: tf.zeros(shape) for name, shape in {**SHAPES, **shapes}.items()}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_in_eager_mode(backend: str, bad: Bad) -> None:
    error = tf.errors.InvalidArgumentError if backend == "native" else ValueError
    with pytest.raises(error, match=re.escape(f"deformable_conv2d: {bad.message}")) as caught:
        tf_deformable.deformable_conv2d(**_tensors(**bad.shapes), **bad.attributes)
    if backend == "reference":
        assert str(caught.value) == f"deformable_conv2d: {bad.message}"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_while_a_graph_is_built(backend: str, bad: Bad) -> None:
    @tf.function
    def function(**tensors: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(**tensors, **bad.attributes)

    specs = {
        name: tf.TensorSpec(shape, tf.float32) for name, shape in {**SHAPES, **bad.shapes}.items()
    }
    with pytest.raises(ValueError, match=re.escape(f"deformable_conv2d: {bad.message}")):
        function.get_concrete_function(**specs)


@functools.cache
def _graph_that_knows_nothing(backend: str) -> Any:
    """Traced once per backend, for all bad shapes."""

    @tf.function(input_signature=[{name: tf.TensorSpec(None, tf.float32) for name in SHAPES}])
    def function(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf_deformable.config.use_backend(backend):
            return tf_deformable.deformable_conv2d(**tensors)

    return function


@pytest.mark.parametrize("channels", [0, 10])
def test_a_mask_of_no_whole_taps_beside_offsets_of_unknown_size(
    backend: str, channels: int
) -> None:
    tensors = _tensors(mask=[2, 9, 11, channels])
    specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    specs["offsets"] = tf.TensorSpec([2, 9, 11, None])

    @tf.function(input_signature=[specs], autograph=False)
    def function(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(**tensors)

    with pytest.raises(ValueError, match="mask must have shape"):
        function.get_concrete_function()


@pytest.mark.parametrize("name", [name for name, bad in BAD.items() if bad.shapes])
def test_bad_input_that_only_the_run_shows(backend: str, name: str) -> None:
    bad = BAD[name]
    if backend == "reference" and name in (TOO_HIGH, TOO_HIGH_FILTERS):
        pytest.skip("it works out as many positions before it looks at the offsets")
    # The reference owes an error instead of a silent broadcast, but not the same words.
    message = re.escape(f"deformable_conv2d: {bad.message}") if backend == "native" else None
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _graph_that_knows_nothing(backend)(_tensors(**bad.shapes))


def test_the_good_call_is_good(backend: str) -> None:
    assert tf_deformable.deformable_conv2d(**_tensors()).shape == [2, 9, 11, 6]


# --- What is checked before either backend sees it ---


def _call(**changes: Any) -> tf.Tensor:
    return tf_deformable.deformable_conv2d(**{**_tensors(), **changes})


@pytest.mark.parametrize("argument", ["filters", "offsets", "mask", "bias"])
@pytest.mark.parametrize("kind", [tf.zeros, np.zeros, tf.Variable])
def test_dtypes_must_agree(backend: str, argument: str, kind: Any) -> None:
    values = np.zeros(SHAPES[argument])
    value = tf.Variable(values) if kind is tf.Variable else kind(SHAPES[argument], values.dtype)
    message = f"deformable_conv2d: {argument} must have the dtype of inputs (float32), got float64"
    with pytest.raises(ValueError, match=re.escape(message)):
        _call(**{argument: value})


@pytest.mark.parametrize(
    ("offsets", "mask", "rule"),
    [
        (tf.float64, tf.float64, "offsets must have the dtype of inputs (float16) or float32, got"),
        (tf.bfloat16, tf.bfloat16, "offsets must have the dtype of inputs (float16) or float32"),
        (tf.float32, tf.float16, "mask must have the dtype of offsets (float32), got float16"),
        (tf.float16, tf.float32, "mask must have the dtype of offsets (float16), got float32"),
    ],
)
def test_sampling_beside_half_precision(
    backend: str, offsets: tf.DType, mask: tf.DType, rule: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"deformable_conv2d: {rule}")):
        _call(
            inputs=tf.zeros(SHAPES["inputs"], tf.float16),
            filters=tf.zeros(SHAPES["filters"], tf.float16),
            offsets=tf.zeros(SHAPES["offsets"], offsets),
            mask=tf.zeros(SHAPES["mask"], mask),
        )


@pytest.mark.parametrize("dtype", [tf.int32, tf.complex64, tf.bool], ids=lambda d: d.name)
def test_inputs_must_be_floating(backend: str, dtype: tf.DType) -> None:
    message = (
        "deformable_conv2d: inputs must have dtype float16, bfloat16, float32 or float64, "
        f"got {dtype.name}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        _call(inputs=tf.zeros(SHAPES["inputs"], dtype))


_PADDING = 'padding must be "SAME", "VALID" or [[0,0],[top,bottom],[left,right],[0,0]], got '


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strides": (1, 2, 1)}, ValueError, "strides must be an integer or 2 integers (y, x)"),
        ({"strides": ()}, ValueError, "2 integers (y, x), got []"),
        (
            {"strides": 2**63},
            ValueError,
            "2 integers (y, x), got 9223372036854775808, which 64 bits do not hold",
        ),
        ({"dilations": (1, -(2**63) - 1)}, ValueError, "which 64 bits do not hold"),
        ({"dilations": np.uint64(2**63)}, ValueError, "which 64 bits do not hold"),
        (
            {"padding": [[0, 0], [0, 10**30], [0, 0], [0, 0]]},
            ValueError,
            "which 64 bits do not hold",
        ),
        ({"strides": 1.5}, TypeError, "2 integers (y, x), got 1.5"),
        ({"strides": (1, 2.0)}, TypeError, "2 integers (y, x), got [1,2.0]"),
        ({"strides": "2"}, TypeError, '2 integers (y, x), got "2"'),
        ({"strides": None}, TypeError, "2 integers (y, x), got None"),
        ({"strides": True}, TypeError, "2 integers (y, x), got True"),
        ({"dilations": [[1, 1], [1, 1]]}, ValueError, "dilations must be an integer or 2"),
        ({"padding": "full"}, ValueError, _PADDING + '"full"'),
        ({"padding": "EXPLICIT"}, ValueError, _PADDING + '"EXPLICIT"'),
        ({"padding": 1}, TypeError, _PADDING + "1"),
        ({"padding": None}, TypeError, _PADDING + "None"),
        ({"padding": (1, 1)}, ValueError, _PADDING + "[1,1]"),
        ({"padding": [[1, 1], [1, 1]]}, ValueError, _PADDING + "[[1,1],[1,1]]"),
        ({"padding": [[0, 0], [1], [1, 1], [0, 0]]}, ValueError, _PADDING),
        ({"padding": [[0, 0], [1, 1], [1, 0.5], [0, 0]]}, TypeError, _PADDING),
        ({"padding": [[1, 0], [1, 1], [1, 1], [0, 0]]}, ValueError, _PADDING),
        ({"padding": [[0, 0], [0, 0], [1, 1], [0, 1]]}, ValueError, _PADDING),
        (
            {"padding": [[0, 0], [1, 1], [1, 1], [0, 0]], "data_format": "NCHW"},
            ValueError,
            'padding must be "SAME", "VALID" or [[0,0],[0,0],[top,bottom],[left,right]]',
        ),
        ({"data_format": "NWHC"}, ValueError, 'data_format must be "NHWC" or "NCHW", got "NWHC"'),
        ({"data_format": None}, ValueError, 'data_format must be "NHWC" or "NCHW", got None'),
        ({"inputs": None}, TypeError, "inputs must be convertible to a tensor, got None"),
        ({"filters": "abc"}, ValueError, "filters must have the dtype of inputs (float32)"),
        ({"offsets": None}, TypeError, "offsets must be convertible to a tensor, got None"),
        ({"offsets": object()}, TypeError, "offsets must be convertible to a tensor, got object"),
        (
            {"mask": [[1.0], [1.0, 2.0]]},
            TypeError,
            "mask must be convertible to a tensor, got list",
        ),
    ],
)
def test_wrong_kinds_and_names(
    backend: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="deformable_conv2d: .*" + re.escape(message)):
        _call(**changes)


# --- Channels first: shapes in messages are those that the caller gave ---


def _first(shape: list[int]) -> list[int]:
    return [shape[0], shape[3], *shape[1:3]]


FIRST = {
    name: _first(shape) if name in ("inputs", "offsets", "mask") else shape
    for name, shape in SHAPES.items()
}
_OFFSETS_FIRST = "offsets must have shape [N,G*kh*kw*2,Ho,Wo] = [2,G*18,9,11]"
_MASK_FIRST = "mask must have shape [N,G*kh*kw,Ho,Wo] = [2,9,9,11]"

BAD_FIRST = {
    "inputs, beyond int32": Bad(
        "inputs height and width must be at most 2147483647, got shape [0,4,2147483648,11]",
        {"inputs": [0, 4, 2**31, 11]},
    ),
    "filters, no rows": _filters([0, 3, 4, 6]),
    "channels, no multiple of the filters'": Bad(
        "inputs channels must be a multiple of the filters' input channels "
        "(C = groups * filters.shape[2]), got C=9 and filters shape [3,3,4,6]",
        {"inputs": SHAPES["inputs"]},
    ),
    "kernel, too tall": Bad(
        "the dilated kernel must fit into the padded inputs, got kernel extent [11,3] and padded "
        "size [9,11]",
        attributes={"padding": "VALID", "dilations": (5, 1)},
    ),
    "offsets, another height": Bad(
        f"{_OFFSETS_FIRST}, got shape [2,18,8,11]", {"offsets": [2, 18, 8, 11]}
    ),
    "offsets, half of the channels": Bad(
        f"{_OFFSETS_FIRST}, got shape [2,9,9,11]", {"offsets": [2, 9, 9, 11]}
    ),
    "offsets, channels last": Bad(
        f"{_OFFSETS_FIRST}, got shape [2,9,11,18]", {"offsets": SHAPES["offsets"]}
    ),
    "mask, another batch": Bad(f"{_MASK_FIRST}, got shape [1,9,9,11]", {"mask": [1, 9, 9, 11]}),
    "mask, channels last": Bad(f"{_MASK_FIRST}, got shape [2,9,11,9]", {"mask": SHAPES["mask"]}),
    "bias, too long": Bad("bias must have shape [F] = [6], got shape [7]", {"bias": [7]}),
    "output, too large": Bad(
        "output must have at most 281474976710656 elements, got shape [0,6,2147483647,2147483647]",
        {
            "inputs": [0, 4, 2**31 - 1, 2**31 - 1],
            "offsets": [0, 18, 2**31 - 1, 2**31 - 1],
            "mask": [0, 9, 2**31 - 1, 2**31 - 1],
        },
    ),
}


def _call_first(tensors: dict[str, tf.Tensor], **attributes: Any) -> tf.Tensor:
    return tf_deformable.deformable_conv2d(**tensors, data_format="NCHW", **attributes)


def _tensors_first(**shapes: list[int]) -> dict[str, tf.Tensor]:
    return {name: tf.zeros(shape) for name, shape in {**FIRST, **shapes}.items()}


@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_bad_channels_first_input_in_eager_mode(backend: str, bad: Bad) -> None:
    error = tf.errors.InvalidArgumentError if backend == "native" else ValueError
    with pytest.raises(error) as caught:
        _call_first(_tensors_first(**bad.shapes), **bad.attributes)
    assert str(caught.value) == f"deformable_conv2d: {bad.message}"


@pytest.mark.parametrize("autograph", [True, False])
@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_bad_channels_first_input_while_a_graph_is_built(
    backend: str, bad: Bad, autograph: bool
) -> None:
    @tf.function(autograph=autograph)
    def function(**tensors: tf.Tensor) -> tf.Tensor:
        return _call_first(tensors, **bad.attributes)

    shapes = {**FIRST, **bad.shapes}
    specs = {name: tf.TensorSpec(shape, tf.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=re.escape(f"deformable_conv2d: {bad.message}")):
        function.get_concrete_function(**specs)


def test_sizes_that_a_graph_does_not_know_are_shown_in_their_place(backend: str) -> None:
    specs = {name: tf.TensorSpec(shape) for name, shape in FIRST.items()}
    specs |= {
        "inputs": tf.TensorSpec([None, 4, None, 11]),
        "offsets": tf.TensorSpec([None, 27, None, 11]),
        "mask": tf.TensorSpec(None),
    }
    message = "offsets must have shape [N,G*kh*kw*2,Ho,Wo] = [?,G*18,?,11], got shape [?,27,?,11]"
    with pytest.raises(ValueError, match=re.escape(f"deformable_conv2d: {message}")):
        tf.function(_call_first, autograph=False).get_concrete_function(specs)


def test_a_mask_beside_offsets_of_unknown_size_is_shown_with_channels_first(backend: str) -> None:
    specs = {name: tf.TensorSpec(shape) for name, shape in FIRST.items()}
    specs |= {"offsets": tf.TensorSpec([None] * 4), "mask": tf.TensorSpec([2, 9, 8, 11])}
    message = f"deformable_conv2d: {_MASK_FIRST}, got shape [2,9,8,11]"
    with pytest.raises(ValueError, match=re.escape(message)):
        tf.function(_call_first, autograph=False).get_concrete_function(specs)


def test_bad_channels_first_input_that_only_the_run_shows(backend: str) -> None:
    specs = {name: tf.TensorSpec(None, tf.float32) for name in FIRST}
    function = tf.function(_call_first, input_signature=[specs], autograph=False)
    for argument, name in (("offsets", "offsets, another height"), ("mask", "mask, another batch")):
        # As without a data format: the reference does not owe the same words.
        message = f"deformable_conv2d: {argument} must have shape" if backend == "native" else None
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            function(_tensors_first(**BAD_FIRST[name].shapes))
    assert function(_tensors_first()).shape == [2, 6, 9, 11]


def test_the_good_call_is_good_with_channels_first(backend: str) -> None:
    assert _call_first(_tensors_first()).shape == [2, 6, 9, 11]


@pytest.mark.parametrize(
    ("argument", "shape", "layout"),
    [
        ("inputs", [2, 4, 9], "[N,C,H,W]"),
        ("offsets", [2, 18], "[N,G*kh*kw*2,Ho,Wo]"),
        ("mask", [9], "[N,G*kh*kw,Ho,Wo]"),
    ],
)
def test_ranks_of_channels_first_tensors(
    backend: str, argument: str, shape: list[int], layout: str
) -> None:
    text = str(shape).replace(" ", "")
    message = f"deformable_conv2d: {argument} must have rank 4 {layout}, got shape {text}"
    with pytest.raises(ValueError, match=re.escape(message)):
        _call_first(_tensors_first(**{argument: shape}))


# --- What is accepted ---


@pytest.mark.parametrize("padding", ["same", "Valid", "SAME"])
def test_padding_in_any_case(backend: str, padding: str) -> None:
    size = [7, 9] if padding == "Valid" else [9, 11]
    result = _call(offsets=tf.zeros([2, *size, 18]), mask=tf.zeros([2, *size, 9]), padding=padding)
    assert result.shape == [2, *size, 6]


@pytest.mark.parametrize(
    "strides", [(2, 2), [2, 2], np.array([2, 2]), np.int64(2), tf.constant(2)], ids=repr
)
def test_pairs_of_any_kind(backend: str, strides: Any) -> None:
    result = _call(offsets=tf.zeros([2, 5, 6, 18]), mask=tf.zeros([2, 5, 6, 9]), strides=strides)
    assert result.shape == [2, 5, 6, 6]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_python_numbers_and_integers_take_the_dtype_of_inputs(backend: str, dtype: type) -> None:
    result = _call(
        inputs=np.ones(SHAPES["inputs"], dtype),
        filters=np.ones(SHAPES["filters"], np.int64),
        offsets=np.zeros(SHAPES["offsets"], np.int8).tolist(),
        mask=np.ones(SHAPES["mask"], np.int32),
        bias=[0.5] * 6,
    )
    assert result.dtype == dtype
    assert result[0, 4, 4, 0] == 36.5


def test_python_numbers_are_float32_as_in_tensorflow(backend: str) -> None:
    result = _call(inputs=np.ones(SHAPES["inputs"], np.int8).astype(float).tolist())
    assert result.dtype == tf.float32
