"""The compiled operator inside of programs that XLA compiles (`jit_compile=True`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.roi_pool_cases import Case, arrays_and_expected, evaluate
from tests.xla import assert_same_bits, compiled, custom_calls, needs_lowering

pytestmark = needs_lowering

CASES = {
    "lopsided": Case(),
    "aligned": Case(aligned=True),
    "as many samples as pixels": Case(aligned=True, samples_per_bin=0),
    "plain": Case(part_size=None, mask=False, group_size=1),
    "modulated alone": Case(part_size=None),
    "no boxes": Case(boxes=0),
    "no images": Case(batch=0, boxes=0),
}
DTYPES = [tf.float32, tf.float64, tf.float16, tf.bfloat16]


def _call(case: Case) -> Any:
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return evaluate(dict(arguments), **case.attributes())

    return function


def _constants(case: Case, dtype: tf.DType) -> dict[str, tf.Tensor]:
    arrays, _ = arrays_and_expected(case, dtype)
    return {name: tf.constant(array) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_xla_changes_no_bit(case: Case, dtype: tf.DType) -> None:
    arguments = _constants(case, dtype)
    function = _call(case)
    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_boxes_of_the_other_type(dtype: tf.DType) -> None:
    """XLA converts them, where the operator would do it itself."""
    arguments = _constants(Case(), dtype)
    other = tf.float32 if dtype == tf.float64 else tf.float64
    arguments["boxes"] = tf.cast(arguments["boxes"], other) + 0.1
    function = _call(Case())
    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


def test_the_oracle_agrees() -> None:
    _, expected = arrays_and_expected(Case())
    got = compiled(_call(Case()))(_constants(Case(), tf.float64))
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_kernels_are_inside() -> None:
    assert custom_calls(_call(Case()), _constants(Case(), tf.float32)) == {
        "tf_deformable_roi_pool",
        "tf_deformable_roi_pool_grad",
    }


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 1e30, 16.0])
def test_attributes_arrive_as_they_are(value: float) -> None:
    case = dataclasses.replace(Case(), gamma=value, spatial_scale=value, mask=False)
    arguments = {**_constants(Case(mask=False), tf.float32)}
    function = _call(case)
    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [-2, 2])
def test_box_indices_out_of_range(index: int) -> None:
    arguments = _constants(Case(), tf.float32)
    arguments["box_indices"] = tf.constant([0, 1, index, 0, 0])
    message = rf"deformable_psroi_pool: box_indices must be -1 .* \[0,2\), got {index} at 2"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        compiled(_call(Case()))(arguments)


def test_shapes_that_do_not_fit() -> None:
    @compiled
    def function(inputs: tf.Tensor, boxes: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        hidden = tf.raw_ops.PlaceholderWithDefault(input=indices, shape=None)
        return tf_deformable.deformable_roi_pool(inputs, boxes, hidden, output_size=2)

    message = r"deformable_roi_pool: box_indices must have shape \[R\] = \[3\], got shape \[2\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        function(tf.zeros([1, 5, 5, 2]), tf.zeros([3, 4]), tf.zeros([2], tf.int32))


def test_a_number_of_boxes_that_the_program_computes() -> None:
    @compiled
    def function(inputs: tf.Tensor, boxes: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        kept = tf.gather(boxes, tf.where(scores > 0.5)[:, 0])
        indices = tf.zeros(tf.shape(kept)[:1], tf.int32)
        return tf_deformable.deformable_roi_pool(inputs, kept, indices, output_size=2)

    message = (
        r"deformable_roi_pool: boxes must have a shape that is known when XLA compiles "
        r"\(jit_compile=True\), got f32\[<=3,4\]"
    )
    with pytest.raises(tf.errors.UnimplementedError, match=message):
        function(tf.zeros([1, 5, 5, 2]), tf.zeros([3, 4]), tf.constant([0.2, 0.7, 0.9]))
