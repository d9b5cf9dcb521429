"""What only the reference promises: it needs no library, and TensorFlow's compilers take it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_conv2d_cases import Case, arrays_and_expected, assert_close, evaluate
from tf_deformable import _native, reference
from tf_deformable._geometry.deformable_conv2d import deformable_conv2d_geometry
from tf_deformable._geometry.padding import resolve_axis


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise AssertionError("the reference must not load the library")

    monkeypatch.setattr(_native, "load", load)


@pytest.mark.parametrize(
    "case",
    [Case(), Case(padding="SAME", mask=False, bias=False), Case(batch=0), Case(size=(0, 5))],
    ids=["lopsided", "plain", "empty batch", "empty map"],
)
def test_compiles_with_xla(case: Case) -> None:
    arrays, expected = arrays_and_expected(case)

    @tf.function(jit_compile=True)
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf_deformable.config.use_backend("reference"):
            return evaluate(arguments, **case.attributes())

    got = function({name: tf.constant(array) for name, array in arrays.items()})

    assert_close(got, expected)


def test_compiles_with_xla_for_sizes_unknown_to_the_trace() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    signature = {name: tf.TensorSpec([None] * a.ndim, a.dtype) for name, a in arrays.items()}

    @tf.function(jit_compile=True, input_signature=[signature])
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf_deformable.config.use_backend("reference"):
            return evaluate(arguments, **case.attributes())

    got = function({name: tf.constant(array) for name, array in arrays.items()})

    assert_close(got, expected)


def test_nan_and_infinite_positions_compile_with_xla() -> None:
    case = Case(groups=1, offset_groups=1)
    arrays = case.arrays()
    arrays["offsets"][0, 0, 0, 0] = np.nan
    arrays["offsets"][0, 1, 1] = np.inf
    arrays["offsets"][1, 2, 0] = 1e30

    @tf.function(jit_compile=True)
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf_deformable.config.use_backend("reference"):
            return evaluate(arguments, **case.attributes())

    got = function({name: tf.constant(array) for name, array in arrays.items()})

    assert_close(got, case.expected(arrays))


def test_takes_normalised_arguments() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    arguments = {name: tf.constant(a) for name, a in arrays.items() if name != "grad_output"}

    output = reference.deformable_conv2d(
        **arguments, strides=case.strides, padding=case.padding, dilations=case.dilations
    )

    assert_close({"output": output}, {"output": expected["output"]})


def test_check_numerics_finds_nothing_in_finite_data() -> None:
    case = Case(padding="SAME")
    arrays, _ = arrays_and_expected(case)
    arrays = {**arrays, "offsets": np.where(arrays["offsets"] > 3, np.inf, arrays["offsets"])}
    arrays["offsets"][np.isinf(arrays["offsets"])] = 1e6

    tf.debugging.enable_check_numerics()
    try:
        with tf_deformable.config.use_backend("reference"):
            evaluate(arrays, **case.attributes())
    finally:
        tf.debugging.disable_check_numerics()


def _geometry(**shapes: list[int | None] | None):
    """The geometry that a graph knows from these shapes."""
    known = {
        "inputs": [2, 9, 11, 4],
        "filters": [3, 3, 2, 6],
        "offsets": [2, 9, 11, 36],
        "mask": [2, 9, 11, 18],
        "bias": [6],
        **shapes,
    }
    with tf.Graph().as_default():
        tensors = {n: tf.compat.v1.placeholder(tf.float32, shape) for n, shape in known.items()}
        return deformable_conv2d_geometry(
            **tensors, strides=(1, 1), padding="SAME", dilations=(1, 1)
        )


def test_sizes_are_static_where_any_argument_tells_them() -> None:
    full = _geometry()
    assert (full.groups, full.offset_groups, full.taps) == (2, 2, 9)
    assert (full.output_height, full.output_width, full.output_pixels) == (9, 11, 198)

    no_inputs = _geometry(inputs=[None] * 4)
    assert (no_inputs.batch, no_inputs.output_height, no_inputs.output_width) == (2, 9, 11)
    assert no_inputs.offset_groups == 2
    assert not isinstance(no_inputs.height, int)

    no_offsets = _geometry(offsets=None)
    assert (no_offsets.batch, no_offsets.output_height, no_offsets.offset_groups) == (2, 9, 2)

    assert _geometry(filters=[3, 3, 2, None]).filters == 6


_LARGEST = 2**31 - 1


@pytest.mark.parametrize(
    ("padding", "pads"),
    [
        ("SAME", None),
        ("VALID", None),
        (((1, 2), (0, 0)), (1, 2)),
        (((_LARGEST, 3), (0, 0)), (_LARGEST, 3)),
        (((_LARGEST, _LARGEST), (0, 0)), (_LARGEST, _LARGEST)),
    ],
    ids=["same", "valid", "explicit", "explicit, large", "explicit, largest"],
)
@pytest.mark.parametrize("dilation", [1, 3, _LARGEST])
@pytest.mark.parametrize("stride", [1, 2, 5, _LARGEST])
def test_sizes_known_at_run_time_lead_where_static_ones_do(
    stride: int, dilation: int, padding, pads
) -> None:
    """Some are divided in int32; no attribute is too large for that."""
    for size in (0, 1, 2, 7, 8, _LARGEST):
        for kernel in (1, 2, 3):
            attributes = (kernel, stride, dilation, padding, pads)
            static = resolve_axis(size, *attributes)
            dynamic = resolve_axis(tf.constant(size, tf.int64), *attributes)
            # as the definition has them, in Python's integers
            extent = (kernel - 1) * dilation + 1
            if padding == "SAME":
                output = -(-size // stride)
                before = max((output - 1) * stride + extent - size, 0) // 2
            else:
                before, after = pads or (0, 0)
                output = max((size + before + after - extent) // stride + 1, 0)
            assert (static.output, static.pad_before) == (output, before)
            assert (int(dynamic.output), int(dynamic.pad_before)) == (output, before)


def test_offsets_of_another_size_do_not_compile_with_xla() -> None:
    """Where sizes are unknown to the trace: XLA drops the check."""
    case = Case(mask=False, bias=False)
    arrays = case.arrays()
    del arrays["grad_output"]
    signature = {name: tf.TensorSpec([None] * a.ndim, a.dtype) for name, a in arrays.items()}

    @tf.function(jit_compile=True, input_signature=[signature])
    def function(arguments: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf_deformable.config.use_backend("reference"):
            return tf_deformable.deformable_conv2d(**arguments, **case.attributes())

    function(arrays)
    for offsets in (arrays["offsets"][:1], arrays["offsets"][:, 1:], arrays["offsets"][:, :, 1:]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function({**arrays, "offsets": offsets})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"inputs": [None, 9, 11, 3]}, r"got C=3 and filters shape \[3,3,2,6\]"),
        ({"inputs": [None, None, None, 4], "mask": [2, 8, 11, 18]}, r"= \[2,9,11,18\], got shape"),
        ({"offsets": [None, 8, None, 36]}, r"= \[2,9,11,G\*18\], got shape \[\?,8,\?,36\]"),
        (
            {"filters": [None, 3, 2, 6], "offsets": [5, None, None, None]},
            r"= \[2,9,11,G\*\?\], got shape \[5,\?,\?,\?\]",
        ),
    ],
)
def test_partly_known_shapes_are_checked(shapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _geometry(**shapes)
