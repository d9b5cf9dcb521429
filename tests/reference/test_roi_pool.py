"""What only the reference promises: it needs no library, and TensorFlow's compilers take it."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_conv2d_cases import assert_close
from tests.ops.roi_pool_cases import Arrays, Case, arrays_and_expected, evaluate
from tf_deformable import _native, reference
from tf_deformable._geometry.roi_pool import roi_pool_geometry


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise AssertionError("the reference must not load the library")

    monkeypatch.setattr(_native, "load", load)


def _compiled(case: Case, arrays: Arrays, **options) -> dict[str, tf.Tensor]:
    @tf.function(jit_compile=True, autograph=False, **options)
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf_deformable.config.use_backend("reference"):
            return evaluate(arguments, **case.attributes())

    return function({name: tf.constant(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(mask=False, part_size=None, aligned=True),
        Case(boxes=0),
        Case(size=(0, 5)),
    ],
    ids=["lopsided", "plain and aligned", "no boxes", "empty map"],
)
def test_compiles_with_xla(case: Case) -> None:
    arrays, expected = arrays_and_expected(case)

    assert_close(_compiled(case, arrays), expected)


def test_compiles_with_xla_for_sizes_unknown_to_the_trace() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    signature = {name: tf.TensorSpec([None] * a.ndim, a.dtype) for name, a in arrays.items()}

    assert_close(_compiled(case, arrays, input_signature=[signature]), expected)


def test_odd_boxes_and_offsets_compile_with_xla() -> None:
    case = Case(output_size=(4, 6), part_size=(2, 3))
    arrays = case.arrays()
    arrays["offsets"][1, 0, 0, 0] = np.nan
    arrays["offsets"][1, 1, 0, 0] = np.inf
    arrays["boxes"][4, 1] = np.nan
    expected = case.expected({**arrays, "box_indices": np.int32([-1, 0, 1, -1, 0])})
    # Compiled, an index that is not one of an image cannot be an error: it is padding.
    arrays["box_indices"][:] = [-1, 0, 1, 2, 0]

    assert_close(_compiled(case, arrays), expected)


def test_takes_the_arguments_of_the_functions() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    arguments = {name: tf.constant(a) for name, a in arrays.items() if name != "grad_output"}

    output = reference.deformable_psroi_pool(**arguments, **case.attributes())

    assert_close({"output": output}, {"output": expected["output"]})


@pytest.mark.parametrize("name", ["deformable_roi_pool", "deformable_psroi_pool"])
def test_signatures_are_those_of_the_functions(name: str) -> None:
    own, public = (
        inspect.signature(getattr(module, name)).parameters for module in (reference, tf_deformable)
    )
    assert list(own) == list(public)
    for argument in own:
        assert own[argument].default == public[argument].default
        assert own[argument].kind == public[argument].kind


def test_offsets_have_no_classes_without_position_sensitive_maps() -> None:
    tensors = tf.random.normal([2, 9, 9, 6]), tf.constant([[1.0, 2, 7, 8]]), tf.constant([1])
    offsets = tf.random.normal([1, 2, 2, 2])
    one = reference.deformable_roi_pool(*tensors, offsets, output_size=2, name="pool")
    other = reference.deformable_psroi_pool(
        *tensors, offsets[:, :, :, None], output_size=(2, 2), group_size=1
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [[3, 2, 2, 2], [1, 0, 2, 2], [1, 2, 2, 3]], ids=str)
def test_messages_write_the_offsets_as_they_were_given(shape: list[int]) -> None:
    arguments = tf.zeros([2, 9, 9, 6]), tf.zeros([1, 4]), tf.zeros([1], tf.int32)
    given = str(shape).replace(" ", "")
    rule = "offsets must have shape [R,part_h,part_w,2] = [1,>=1,>=1,2]"
    message = f"deformable_roi_pool: {rule}, got shape {given}"
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.deformable_roi_pool(*arguments, tf.zeros(shape), output_size=2)


def test_check_numerics_finds_nothing_in_finite_data() -> None:
    case = Case()
    arrays = case.arrays()
    arrays["offsets"][0] = 1e6
    arrays["boxes"][1] = [9, 9, 3, 3]

    tf.debugging.enable_check_numerics()
    try:
        with tf_deformable.config.use_backend("reference"):
            evaluate(arrays, **case.attributes())
    finally:
        tf.debugging.disable_check_numerics()


def _geometry(**shapes: list[int | None] | None):
    """The geometry that a graph knows from these shapes."""
    known = {
        "inputs": [2, 9, 11, 24],
        "boxes": [5, 4],
        "box_indices": [5],
        "offsets": [5, 2, 3, 3, 2],
        "mask": [5, 4, 3],
        **shapes,
    }
    with tf.Graph().as_default():
        tensors = {n: tf.compat.v1.placeholder(tf.float32, shape) for n, shape in known.items()}
        return roi_pool_geometry(
            "deformable_psroi_pool",
            **tensors,
            output_size=(4, 3),
            group_size=2,
            spatial_scale=0.1,
            samples_per_bin=4,
            gamma=0.1,
            aligned=False,
        )


def test_sizes_are_static_where_any_argument_tells_them() -> None:
    full = _geometry()
    assert (full.boxes, full.depth, full.classes) == (5, 6, 3)
    assert full.spatial_scale == np.float32(0.1)

    assert _geometry(boxes=[None, 4], box_indices=None, offsets=None).boxes == 5
    assert _geometry(boxes=None, box_indices=[None], mask=None).boxes == 5
    assert not isinstance(_geometry(inputs=[2, 9, 11, None]).depth, int)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"inputs": [None, None, None, 25]}, "got C=25 and group_size=2"),
        ({"boxes": [None, 4], "box_indices": [6]}, r"offsets must have shape .* \[6,>=1,>=1"),
        ({"boxes": [None, 5]}, r"boxes must have shape \[R,4\] = \[5,4\], got shape \[\?,5\]"),
        ({"inputs": None, "mask": [None, 4, 4]}, r"= \[5,4,3\], got shape \[\?,4,4\]"),
        ({"offsets": [None, None, None, 5, 2]}, "got D=6 and classes=5"),
    ],
)
def test_partly_known_shapes_are_checked(shapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _geometry(**shapes)
