"""What only the reference promises: it needs no library, and TensorFlow's compiler takes it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_attention_cases import Case, arrays_and_expected, evaluate
from tests.ops.deformable_conv2d_cases import assert_close
from tf_deformable import _native, reference


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise AssertionError("the reference must not load the library")

    monkeypatch.setattr(_native, "load", load)


def _compiled(case: Case, signature=None):
    @tf.function(jit_compile=True, input_signature=signature)
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf_deformable.config.use_backend("reference"):
            return evaluate(arguments, **case.attributes())

    return function


@pytest.mark.parametrize(
    "case",
    [Case(), Case(coordinates="pixels"), Case(batch=0), Case(levels=((0, 3), (2, 2)))],
    ids=["lopsided", "pixels", "empty batch", "an empty level"],
)
def test_compiles_with_xla(case: Case) -> None:
    arrays, expected = arrays_and_expected(case)

    got = _compiled(case)({name: tf.constant(array) for name, array in arrays.items()})

    assert_close(got, expected)


def test_compiles_with_xla_for_sizes_unknown_to_the_trace() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    signature = {name: tf.TensorSpec([None] * a.ndim, a.dtype) for name, a in arrays.items()}

    got = _compiled(case, [signature])({name: tf.constant(a) for name, a in arrays.items()})

    assert_close(got, expected)


def test_nan_and_infinite_positions_compile_with_xla() -> None:
    case = Case()
    arrays = case.arrays()
    arrays["sampling_locations"][0, 0, 0, 0, 0] = np.nan
    arrays["sampling_locations"][0, 1, 1] = np.inf
    arrays["sampling_locations"][1, 2, 0] = 1e30

    got = _compiled(case)({name: tf.constant(array) for name, array in arrays.items()})

    assert_close(got, case.expected(arrays))


def test_takes_normalised_arguments() -> None:
    arrays, expected = arrays_and_expected(Case())
    arguments = {name: tf.constant(a) for name, a in arrays.items() if name != "grad_output"}

    output = reference.multi_scale_deformable_attention(
        spatial_shapes=tf.constant(Case().levels), **arguments
    )

    assert_close({"output": output}, {"output": expected["output"]})
