"""The compiled operator inside of programs that XLA compiles (`jit_compile=True`)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_attention_cases import Case, arrays_and_expected, evaluate
from tests.xla import assert_same_bits, compiled, custom_calls, needs_lowering

pytestmark = needs_lowering

CASES = {
    "lopsided": Case(),
    "pixels": Case(coordinates="pixels"),
    "no queries": Case(queries=0),
    "no points": Case(points=0),
    "no heads": Case(heads=0),
    "no images": Case(batch=0),
    "an empty level": Case(levels=((3, 4), (0, 5), (2, 2))),
    "points of each level": Case(points=(3, 0, 6)),
    "vectors and a rest": Case(depth=59, heads=2, queries=3),
}
DTYPES = [tf.float32, tf.float64, tf.float16, tf.bfloat16]
HANDLERS = {"tf_deformable_attention", "tf_deformable_attention_grad"}


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


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
def test_half_precision_with_sampling_in_float32(dtype: tf.DType) -> None:
    arguments = _constants(Case(), dtype)
    for name in ("sampling_locations", "attention_weights"):
        arguments[name] = tf.cast(arguments[name], tf.float32)
    function = _call(Case())
    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


def test_the_oracle_agrees() -> None:
    _, expected = arrays_and_expected(Case())
    got = compiled(_call(Case()))(_constants(Case(), tf.float64))
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_kernels_are_inside() -> None:
    assert custom_calls(_call(Case()), _constants(Case(), tf.float32)) == HANDLERS


def test_dcnv3_is_compiled_to_the_same_kernels() -> None:
    random = np.random.default_rng(0)
    arguments = {
        "inputs": tf.constant(random.normal(size=[2, 6, 5, 8])),
        "offsets": tf.constant((2 * random.integers(-48, 48, [2, 6, 5, 36]) + 1) / 32),
        "mask": tf.constant(random.uniform(size=[2, 6, 5, 18])),
    }

    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        arguments = dict(arguments)
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            output = tf_deformable.dcnv3(**arguments, offset_scale=0.5)
            loss = tf.reduce_sum(output**2)
        return {"output": output, **tape.gradient(loss, arguments)}

    assert custom_calls(function, arguments) == HANDLERS
    got, want = compiled(function)(arguments), function(arguments)
    for name in want:  # XLA computes positions and what is done to gradients in its own way
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-12, err_msg=name)


# --- Sizes of levels -----------------------------------------------------------------------------


def test_sizes_of_levels_that_the_run_tells() -> None:
    """One program serves them, as long as their number and that of the pixels stay."""
    traces = 0

    def function(sizes: tf.Tensor, arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        nonlocal traces
        traces += 1
        return evaluate({**arguments}, spatial_shapes=sizes)

    program = compiled(function)
    for levels in (Case().levels, ((4, 5), (4, 5), (1, 5)), ((0, 3), (9, 5), (0, 0))):
        case = Case(levels=levels)
        arguments = _constants(case, tf.float64)
        sizes = tf.constant(levels)
        assert_same_bits(program(sizes, arguments), evaluate(dict(arguments), spatial_shapes=sizes))
    assert traces == 1


def test_wrong_sizes_of_levels_that_the_run_tells() -> None:
    @compiled
    def function(sizes: tf.Tensor, arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return evaluate({**arguments}, spatial_shapes=sizes)

    message = (
        "multi_scale_deformable_attention: value must have the pixels of all levels, "
        "S = sum of H*W of spatial_shapes, got S=45 and spatial_shapes [[5,7],[3,2],[1,5]]"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        function(tf.constant([[5, 7], [3, 2], [1, 5]]), _constants(Case(), tf.float32))


def test_wrong_sizes_of_levels_are_found_before_the_run() -> None:
    @compiled
    def function(value: tf.Tensor, arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        # Neither shape functions nor Python know them, but XLA does.
        hidden = tf.raw_ops.PlaceholderWithDefault(input=value, shape=None)
        sizes = tf.reshape(tf.shape(hidden)[1:3], [1, 2]) + 1
        return evaluate({**arguments}, spatial_shapes=sizes)

    arguments = _constants(Case(levels=((4, 6),)), tf.float32)
    message = "got S=24 and spatial_shapes [[5,7]]"
    with pytest.raises(ValueError, match=re.escape(message)):
        function.experimental_get_compiler_ir(tf.zeros([2, 4, 6]), arguments)(stage="hlo")


# --- Refusals ------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit() -> None:
    @compiled
    def function(value: tf.Tensor, arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        hidden = tf.raw_ops.PlaceholderWithDefault(input=value, shape=None)
        return evaluate({**arguments, "value": hidden}, **Case().attributes())

    arguments = _constants(Case(), tf.float32)
    value = arguments.pop("value")[:, :, :2]
    message = "multi_scale_deformable_attention: sampling_locations must have shape"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        function(value, arguments)


def test_a_number_of_queries_that_the_program_computes() -> None:
    @compiled
    def function(scores: tf.Tensor, arguments: dict[str, tf.Tensor]) -> tf.Tensor:
        kept = tf.where(scores > 0.5)[:, 0]
        names = ("sampling_locations", "attention_weights")
        chosen = {name: tf.gather(arguments[name], kept, axis=1) for name in names}
        return tf_deformable.multi_scale_deformable_attention(
            arguments["value"], Case().levels, **chosen
        )

    message = (
        r"multi_scale_deformable_attention: sampling_locations must have a shape that is known "
        r"when XLA compiles \(jit_compile=True\), got f32\[2,<=4,3,3,2,2\]"
    )
    with pytest.raises(tf.errors.UnimplementedError, match=message):
        function(tf.constant([0.2, 0.7, 0.9, 0.1]), _constants(Case(), tf.float32))
