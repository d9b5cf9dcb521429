"""Bad input gets one error that names the argument, the rule and the value.

One table for both backends, in eager mode and while a graph is built.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable

SHAPES = {
    "inputs": [2, 9, 11, 24],
    "boxes": [5, 4],
    "box_indices": [5],
    "offsets": [5, 2, 3, 3, 2],
    "mask": [5, 4, 3],
}
ATTRIBUTES = {"output_size": (4, 3), "group_size": 2, "spatial_scale": 0.5, "aligned": False}


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call that breaks one rule: what differs from a good call, and what it is told."""

    message: str
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


def _text(shape: list[int]) -> str:
    return str(shape).replace(" ", "")


def _rank(argument: str, rank: int, layout: str, shape: list[int]) -> Bad:
    message = f"{argument} must have rank {rank} {layout}, got shape {_text(shape)}"
    return Bad(message, {argument: shape})


def _shape(argument: str, rule: str, shape: list[int]) -> Bad:
    return Bad(f"{argument} must have shape {rule}, got shape {_text(shape)}", {argument: shape})


def _offsets(shape: list[int]) -> Bad:
    return _shape("offsets", "[R,part_h,part_w,classes,2] = [5,>=1,>=1,>=1,2]", shape)


def _output_size(value: Any, text: str) -> Bad:
    return Bad(
        f"output_size must be 2 positive integers (ph, pw), at most 2147483647, got {text}",
        attributes={"output_size": value},
    )


def _samples(value: int, **attributes: Any) -> Bad:
    return Bad(
        "samples_per_bin must be a positive integer (or 0 with aligned=True: as many as pixels), "
        f"at most 1024, got {value}",
        attributes={"samples_per_bin": value, **attributes},
    )


def _group_size(value: int) -> Bad:
    return Bad(
        f"group_size must be a positive integer, at most 2147483647, got {value}",
        attributes={"group_size": value},
    )


def _number(argument: str, rule: str, value: float, text: str) -> Bad:
    return Bad(f"{argument} must be {rule}, got {text}", attributes={argument: value})


_SCALE = ("spatial_scale", "finite and positive")

OP = "deformable_psroi_pool"

BAD = {
    "output size, zero": _output_size(0, "[0,0]"),
    "output size, zero columns": _output_size((4, 0), "[4,0]"),
    "output size, negative": _output_size([-7, 7], "[-7,7]"),
    "output size, beyond int32": _output_size(2**31, "[2147483648,2147483648]"),
    "group size, zero": _group_size(0),
    "group size, negative": _group_size(-2),
    "group size, beyond int32": _group_size(2**31),
    "samples, none": _samples(0),
    "samples, negative": _samples(-1),
    "samples, negative and aligned": _samples(-1, aligned=True),
    "samples, too many": _samples(1025),
    "samples, too many and aligned": _samples(2**31 - 1, aligned=True),
    "scale, zero": _number(*_SCALE, 0, "0"),
    "scale, negative": _number(*_SCALE, -0.0625, "-0.0625"),
    "scale, NaN": _number(*_SCALE, np.nan, "nan"),
    "scale, infinite": _number(*_SCALE, np.inf, "inf"),
    "gamma, NaN": _number("gamma", "finite", np.nan, "nan"),
    "gamma, infinite": _number("gamma", "finite", -np.inf, "-inf"),
    "inputs, rank 3": _rank("inputs", 4, "[N,H,W,k*k*D]", [9, 11, 24]),
    "inputs, rank 5": _rank("inputs", 4, "[N,H,W,k*k*D]", [2, 9, 11, 4, 6]),
    "boxes, rank 1": _rank("boxes", 2, "[R,4]", [4]),
    "boxes, rank 3": _rank("boxes", 2, "[R,4]", [1, 5, 4]),
    "box indices, a scalar": _rank("box_indices", 1, "[R]", []),
    "box indices, rank 2": _rank("box_indices", 1, "[R]", [5, 1]),
    "offsets, rank 4": _rank("offsets", 5, "[R,part_h,part_w,classes,2]", [5, 2, 3, 2]),
    "mask, rank 4": _rank("mask", 3, "[R,ph,pw]", [5, 4, 3, 1]),
    "channels, no multiple of the maps": Bad(
        "inputs channels must be a positive multiple of group_size*group_size, "
        "got C=24 and group_size=5",
        attributes={"group_size": 5},
    ),
    "channels, none": Bad(
        "inputs channels must be a positive multiple of group_size*group_size, "
        "got C=0 and group_size=2",
        {"inputs": [2, 9, 11, 0]},
    ),
    "boxes, with indices": _shape("boxes", "[R,4] = [5,4]", [5, 5]),
    "box indices, one for all": _shape("box_indices", "[R] = [5]", [1]),
    "box indices, too many": _shape("box_indices", "[R] = [5]", [6]),
    "boxes, one for all": Bad(
        "box_indices must have shape [R] = [1], got shape [5]", {"boxes": [1, 4]}
    ),
    "offsets, of one box": _offsets([1, 2, 3, 3, 2]),
    "offsets, no part rows": _offsets([5, 0, 3, 3, 2]),
    "offsets, no part columns": _offsets([5, 2, 0, 3, 2]),
    "offsets, no classes": _offsets([5, 2, 3, 0, 2]),
    "offsets, three coordinates": _offsets([5, 2, 3, 3, 3]),
    "offsets, one coordinate": _offsets([5, 2, 3, 3, 1]),
    "classes, do not divide the output channels": Bad(
        "output channels must be a multiple of the offset classes, got D=6 and classes=4",
        {"offsets": [5, 2, 3, 4, 2]},
    ),
    "mask, of one box": _shape("mask", "[R,ph,pw] = [5,4,3]", [1, 4, 3]),
    "mask, height and width exchanged": _shape("mask", "[R,ph,pw] = [5,4,3]", [5, 3, 4]),
    "mask, one for all bins": _shape("mask", "[R,ph,pw] = [5,4,3]", [5, 1, 1]),
}


def _tensors(**shapes: list[int]) -> dict[str, tf.Tensor]:
    return {
        name: tf.zeros(shape, tf.int32 if name == "box_indices" else tf.float32)
        for name, shape in {**SHAPES, **shapes}.items()
    }


def _pool(tensors: dict[str, tf.Tensor], **attributes: Any) -> tf.Tensor:
    return tf_deformable.deformable_psroi_pool(**tensors, **{**ATTRIBUTES, **attributes})


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_in_eager_mode(backend: str, bad: Bad) -> None:
    error = tf.errors.InvalidArgumentError if backend == "native" else ValueError
    with pytest.raises(error, match=re.escape(f"{OP}: {bad.message}")) as caught:
        _pool(_tensors(**bad.shapes), **bad.attributes)
    if backend == "reference":
        assert str(caught.value) == f"{OP}: {bad.message}"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_while_a_graph_is_built(backend: str, bad: Bad) -> None:
    @tf.function(autograph=False)
    def function(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        return _pool(tensors, **bad.attributes)

    specs = {name: tf.TensorSpec(t.shape, t.dtype) for name, t in _tensors(**bad.shapes).items()}
    with pytest.raises(ValueError, match=re.escape(f"{OP}: {bad.message}")):
        function.get_concrete_function(specs)


def test_bad_input_that_only_the_run_shows(backend: str) -> None:
    specs = {name: tf.TensorSpec(None, tensor.dtype) for name, tensor in _tensors().items()}

    @tf.function(input_signature=[specs], autograph=False)
    def function(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        return _pool(tensors)

    for bad in BAD.values():
        if bad.attributes:
            continue
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)) as caught:
            function(_tensors(**bad.shapes))
        # The reference only promises an error instead of a silent broadcast.
        if backend == "native":
            assert f"{OP}: {bad.message}" in str(caught.value)
    assert function(_tensors()).shape == [5, 4, 3, 6]


@pytest.mark.parametrize(
    ("boxes", "output_size"),
    [(1, (2**31 - 1, 2**31 - 1)), (0, (2**30, 2**16)), (2**20, (2**13, 2**13))],
)
def test_output_beyond_all_memory(backend: str, boxes: int, output_size: tuple[int, int]) -> None:
    text = f"[{boxes},{output_size[0]},{output_size[1]},8]"
    message = f"output must have at most 281474976710656 elements, got shape {text}"
    arguments = [tf.zeros([1, 4, 4, 8]), tf.zeros([boxes, 4]), tf.zeros([boxes], tf.int32)]

    def pool(*arguments: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_roi_pool(*arguments, output_size=output_size)

    for function in (pool, tf.function(pool, autograph=False)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=re.escape(message)):
            function(*arguments)


def test_an_output_of_as_many_elements_as_are_allowed(backend: str) -> None:
    shapes = [([1, 4, 4, 8], tf.float32), ([2**20, 4], tf.float32), ([2**20], tf.int32)]

    @tf.function(input_signature=[tf.TensorSpec(*spec) for spec in shapes], autograph=False)
    def pool(*arguments: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_roi_pool(*arguments, output_size=(2**12, 2**13))

    assert pool.get_concrete_function().output_shapes == [2**20, 2**12, 2**13, 8]  # 2**48


@pytest.mark.parametrize("aligned", [False, True])
def test_as_many_samples_as_are_allowed(backend: str, aligned: bool) -> None:
    columns = tf.tile(tf.range(8.0)[None, None, :, None], [1, 8, 1, 1])

    output = tf_deformable.deformable_roi_pool(
        columns, [[2, 2, 5, 5.0]], [0], output_size=1, samples_per_bin=1024, aligned=aligned
    )

    # Samples lie from 1.5 to 4.5, or to 5.5: the last pixel inside counts.
    middle = 3.0 if aligned else 3.5
    np.testing.assert_allclose(output, np.full([1, 1, 1, 1], middle), atol=3e-3)


def test_plain_pooling_is_named_as_it_was_called(backend: str) -> None:
    inputs, boxes = tf.zeros([1, 4, 4, 8]), tf.zeros([2, 4])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="deformable_roi_pool: "):
        tf_deformable.deformable_roi_pool(inputs, boxes, [0, 1], output_size=0)


# --- What the registered operator cannot tell: which function was called, with which offsets ---


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": [4, 2, 3, 2]}, "[R,part_h,part_w,2] = [5,>=1,>=1,2], got shape [4,2,3,2]"),
        ({"offsets": [5, 0, 3, 2]}, "[R,part_h,part_w,2] = [5,>=1,>=1,2], got shape [5,0,3,2]"),
        ({"offsets": [5, 2, 3, 1]}, "[R,part_h,part_w,2] = [5,>=1,>=1,2], got shape [5,2,3,1]"),
    ],
)
def test_offsets_without_classes_are_shown_as_they_were_given(
    backend: str, in_graph: bool, changes: dict[str, list[int]], message: str
) -> None:
    def call() -> tf.Tensor:
        tensors = _tensors(**{"offsets": [5, 2, 3, 2], **changes})
        return tf_deformable.deformable_roi_pool(**tensors, output_size=(4, 3))

    is_refusal = backend == "native" and not in_graph
    error = tf.errors.InvalidArgumentError if is_refusal else ValueError
    message = f"deformable_roi_pool: offsets must have shape {message}"
    with pytest.raises(error, match=re.escape(message)):
        (tf.function(call) if in_graph else call)()


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_position_sensitive_pooling_of_one_map_is_named_as_it_was_called(
    backend: str, in_graph: bool
) -> None:
    def call(shapes: dict[str, list[int]]) -> tf.Tensor:
        tensors = _tensors(**{"offsets": [5, 2, 3, 3, 2], **shapes})
        return tf_deformable.deformable_psroi_pool(**tensors, output_size=(4, 3), group_size=1)

    is_refusal = backend == "native" and not in_graph
    error = tf.errors.InvalidArgumentError if is_refusal else ValueError
    message = (
        "deformable_psroi_pool: offsets must have shape [R,part_h,part_w,classes,2] = "
        "[5,>=1,>=1,>=1,2], got shape [4,2,3,3,2]"
    )
    assert call({}).shape == [5, 4, 3, 24]
    with pytest.raises(error, match=re.escape(message)):
        (tf.function(call) if in_graph else call)({"offsets": [4, 2, 3, 3, 2]})


def test_a_wrong_index_in_position_sensitive_pooling_of_one_map(backend: str) -> None:
    tensors = {**_tensors(), "box_indices": tf.constant([0, 1, -1, 2, 7])}
    message = "box_indices must be -1 (padding) or in [0,N) = [0,2), got 2 at 3"
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=re.escape(f"deformable_psroi_pool: {message}")
    ):
        tf_deformable.deformable_psroi_pool(**tensors, output_size=(4, 3), group_size=1)


def test_the_good_call_is_good(backend: str) -> None:
    assert _pool(_tensors()).shape == [5, 4, 3, 6]


# --- Boxes of images that there are not ---


@pytest.mark.parametrize(
    ("index", "in_graph"),
    [(2, False), (-2, False), (-(2**31), False), (2**31 - 1, False), (2, True), (-2, True)],
)
def test_box_indices_out_of_range(backend: str, index: int, in_graph: bool) -> None:
    tensors = {**_tensors(), "box_indices": tf.constant([0, 1, -1, index, 7])}
    function = tf.function(_pool, autograph=False) if in_graph else _pool
    message = f"{OP}: box_indices must be -1 (padding) or in [0,N)"
    rest = f" = [0,2), got {index} at 3"
    if backend == "reference" and in_graph:  # an assertion prints its parts
        rest = f", N:] [2] [got:] [{index}] [at:] [3]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message + rest)):
        function(tensors)


def test_box_indices_without_images(backend: str) -> None:
    tensors = _tensors(inputs=[0, 9, 11, 24])
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape("[0,0), got 0 at 0")):
        _pool(tensors)


def test_box_indices_beyond_int32_are_not_wrapped(backend: str) -> None:
    for index in (2**32, -(2**32), 2**62):
        tensors = {**_tensors(), "box_indices": tf.constant([index] * 5, tf.int64)}
        with pytest.raises(tf.errors.InvalidArgumentError, match="box_indices must be -1"):
            _pool(tensors)
    tensors = {**_tensors(), "box_indices": tf.constant([2**64 - 1] * 5, tf.uint64)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="box_indices must be -1"):
        _pool(tensors)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int16, tf.uint32, tf.int64, tf.uint64])
def test_integers_of_any_dtype(backend: str, dtype: tf.DType) -> None:
    tensors = _tensors()
    tensors["box_indices"] = tf.constant([0, 1, 1, 0, 1])
    tensors["boxes"] = tf.round(tf.abs(tensors["boxes"]))
    integers = {name: tf.cast(tensors[name], dtype) for name in ("boxes", "box_indices")}
    np.testing.assert_array_equal(_pool({**tensors, **integers}), _pool(tensors))


# --- What is checked before either backend sees it ---


def _call(**changes: Any) -> tf.Tensor:
    return tf_deformable.deformable_psroi_pool(**{**_tensors(), **ATTRIBUTES, **changes})


@pytest.mark.parametrize("argument", ["offsets", "mask"])
@pytest.mark.parametrize("kind", [tf.zeros, np.zeros])
def test_dtypes_must_agree(backend: str, argument: str, kind: Any) -> None:
    message = f"deformable_psroi_pool: {argument} must have the dtype of inputs (float32), "
    with pytest.raises(ValueError, match=re.escape(message + "got float16")):
        _call(**{argument: kind(SHAPES[argument], np.float16)})


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
    with pytest.raises(ValueError, match=re.escape(f"deformable_psroi_pool: {rule}")):
        _call(
            inputs=tf.zeros(SHAPES["inputs"], tf.float16),
            offsets=tf.zeros(SHAPES["offsets"], offsets),
            mask=tf.zeros(SHAPES["mask"], mask),
        )


@pytest.mark.parametrize("dtype", [tf.int32, tf.complex64, tf.bool], ids=lambda d: d.name)
def test_inputs_must_be_floating(backend: str, dtype: tf.DType) -> None:
    message = (
        "deformable_psroi_pool: inputs must have dtype float16, bfloat16, float32 or float64, "
        f"got {dtype.name}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        _call(inputs=tf.zeros(SHAPES["inputs"], dtype))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"boxes": tf.zeros([5, 4], tf.float16)}, ValueError, "boxes must have dtype float32, "),
        ({"boxes": tf.zeros([5, 4], tf.bool)}, ValueError, "float64 or integers, got bool"),
        ({"boxes": None}, TypeError, "boxes must be convertible to a tensor, got None"),
        ({"box_indices": tf.zeros([5])}, ValueError, "must have an integer dtype, got float32"),
        ({"box_indices": np.zeros([5])}, ValueError, "must have an integer dtype, got float64"),
        ({"box_indices": tf.zeros([5], tf.bool)}, ValueError, "an integer dtype, got bool"),
        ({"box_indices": [0.5] * 5}, TypeError, "box_indices must be convertible to a tensor"),
        ({"box_indices": None}, TypeError, "box_indices must be convertible to a tensor, got N"),
        ({"inputs": None}, TypeError, "inputs must be convertible to a tensor, got None"),
        ({"output_size": (4, 3, 2)}, ValueError, "output_size must be an integer or 2 integers"),
        ({"output_size": 3.5}, TypeError, "2 integers (y, x), got 3.5"),
        ({"output_size": None}, TypeError, "2 integers (y, x), got None"),
        ({"group_size": 2.0}, TypeError, "group_size must be an integer, got 2.0"),
        ({"group_size": (2, 2)}, TypeError, "group_size must be an integer, got [2,2]"),
        ({"group_size": True}, TypeError, "group_size must be an integer, got True"),
        ({"samples_per_bin": "4"}, TypeError, 'samples_per_bin must be an integer, got "4"'),
        ({"spatial_scale": None}, TypeError, "spatial_scale must be a number, got None"),
        ({"spatial_scale": "1"}, TypeError, 'spatial_scale must be a number, got "1"'),
        ({"spatial_scale": (1, 2)}, TypeError, "spatial_scale must be a number, got [1,2]"),
        ({"spatial_scale": 1e39}, ValueError, "spatial_scale must be in the range of float32, "),
        ({"spatial_scale": 1e-46}, ValueError, "must be in the range of float32, got 1e-46"),
        ({"gamma": -1e39}, ValueError, "gamma must be in the range of float32, got -1e+39"),
        ({"gamma": True}, TypeError, "gamma must be a number, got True"),
        ({"aligned": 1}, TypeError, "aligned must be True or False, got 1"),
        ({"aligned": None}, TypeError, "aligned must be True or False, got None"),
    ],
)
def test_wrong_kinds(
    backend: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="deformable_psroi_pool: .*" + re.escape(message)):
        _call(**changes)


@pytest.mark.parametrize("shape", [[5, 2, 3], [5, 2, 3, 1, 2]], ids=str)
def test_offsets_of_plain_maps_have_no_classes(backend: str, shape: list[int]) -> None:
    message = f"offsets must have rank 4 [R,part_h,part_w,2], got shape {_text(shape)}"
    tensors = _tensors(offsets=shape)
    with pytest.raises(ValueError, match=re.escape(f"deformable_roi_pool: {message}")):
        tf_deformable.deformable_roi_pool(**tensors, output_size=(4, 3))


# --- What is accepted ---


@pytest.mark.parametrize(
    "output_size", [(4, 3), [4, 3], np.array([4, 3]), tf.constant([4, 3])], ids=repr
)
def test_sizes_of_any_kind(backend: str, output_size: Any) -> None:
    assert _call(output_size=output_size).shape == [5, 4, 3, 6]


def test_numbers_of_any_kind(backend: str) -> None:
    result = _call(
        output_size=np.int64(3),
        mask=None,
        group_size=np.int32(1),
        offsets=None,
        spatial_scale=tf.constant(0.5),
        samples_per_bin=tf.constant(2),
        gamma=1,
        aligned=np.bool_(True),
    )
    assert result.shape == [5, 3, 3, 24]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("kind", [np.array, tf.constant, list])
def test_box_indices_of_any_kind(backend: str, dtype: type, kind: Any) -> None:
    inputs = np.zeros(SHAPES["inputs"], np.float32)
    inputs[1] = 1
    result = _call(inputs=inputs, box_indices=kind(np.array([0, 1, 0, 1, 1], dtype)))
    plain = _call(
        inputs=inputs, box_indices=kind(np.array([0, 1, 0, 1, 1], dtype)), mask=None, offsets=None
    )
    assert not np.any(result)  # the mask is zero
    assert plain[:, 0, 0, 0].numpy().tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_python_numbers_and_integers_are_converted(backend: str, dtype: type) -> None:
    result = tf_deformable.deformable_psroi_pool(
        np.ones(SHAPES["inputs"], dtype),
        [[0, 0, 7, 7.5]],
        [1],
        np.zeros([1, 2, 2, 1, 2], np.int8).tolist(),
        np.full([1, 4, 3], 2),
        **ATTRIBUTES,
    )
    assert result.dtype == dtype
    np.testing.assert_allclose(result, 2, rtol=1e-3)


@pytest.mark.parametrize("boxes", [[], (), np.zeros([0, 4])], ids=["list", "tuple", "array"])
def test_no_boxes_as_empty_lists(backend: str, boxes: Any) -> None:
    result = _call(boxes=boxes, box_indices=[], offsets=None, mask=None)
    assert result.shape == [0, 4, 3, 6]
