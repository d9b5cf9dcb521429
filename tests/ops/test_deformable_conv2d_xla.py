"""The compiled operator inside of programs that XLA compiles (`jit_compile=True`)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_conv2d_cases import (
    Case,
    arrays_and_expected,
    assert_close,
    evaluate,
)
from tests.ops.processes import lines_with_threads
from tests.ops.test_deformable_conv2d_errors import BAD, SHAPES
from tests.xla import assert_same_bits, compiled, custom_calls, needs_lowering

pytestmark = needs_lowering

CASES = {
    "lopsided": Case(),
    "plain": Case(mask=False, bias=False, groups=1, offset_groups=1, padding="SAME"),
    "with bias": Case(mask=False, padding="VALID", size=(9, 8)),
    "modulated": Case(bias=False, groups=1, offset_groups=2),
    "depthwise": Case(groups=6, filters=6, offset_groups=1),
    "one pixel": Case(batch=1, size=(1, 1), kernel=(1, 1), padding="SAME"),
}
DTYPES = [tf.float32, tf.float64, tf.float16, tf.bfloat16]


def _both(case: Case, dtype: tf.DType) -> tuple[dict[str, Any], dict[str, Any]]:
    """Output and gradients of a call with XLA and without."""
    arrays, _ = arrays_and_expected(case, dtype)
    arguments = {name: tf.constant(array) for name, array in arrays.items()}

    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return evaluate(dict(arguments), **case.attributes())

    return compiled(function)(arguments), tf.function(function)(arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_xla_changes_no_bit(case: Case, dtype: tf.DType) -> None:
    got, expected = _both(case, dtype)
    if case.bias:  # Its gradient is a sum that XLA computes, in an order of its own.
        got_bias, expected_bias = (results.pop("bias") for results in (got, expected))
        assert_close({"bias": got_bias}, {"bias": np.float64(expected_bias)}, dtype)
    assert_same_bits(got, expected)


def test_the_oracle_agrees() -> None:
    got, _ = _both(Case(), tf.float64)
    assert_close(got, arrays_and_expected(Case())[1])


def test_the_kernels_are_inside() -> None:
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return evaluate(dict(arguments), **Case().attributes())

    arguments = {name: tf.constant(array) for name, array in Case().arrays(tf.float32).items()}
    assert custom_calls(function, arguments) == {
        "tf_deformable_conv2d",
        "tf_deformable_conv2d_grad",
    }


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
def test_float32_offsets_beside_half_precision(dtype: tf.DType) -> None:
    arguments = {name: tf.constant(a) for name, a in Case().arrays(dtype).items()}
    for name in ("offsets", "mask"):
        arguments[name] = tf.cast(arguments[name], tf.float32) + 0.3

    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        results = evaluate(dict(arguments), **Case().attributes())
        del results["bias"]
        return results

    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


def test_channels_first() -> None:
    arrays = Case(bias=False).arrays(tf.float32)
    del arrays["grad_output"]
    arguments = {
        name: tf.constant(a if name == "filters" else np.moveaxis(a, 3, 1))
        for name, a in arrays.items()
    }

    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        attributes = Case().attributes("NCHW")
        return {"output": tf_deformable.deformable_conv2d(**arguments, **attributes)}

    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


@pytest.mark.parametrize("size", [(0, 5), (7, 0)])
@pytest.mark.parametrize("batch", [0, 2])
def test_empty_tensors(batch: int, size: tuple[int, int]) -> None:
    got, expected = _both(Case(batch=batch, size=size, padding="SAME"), tf.float32)
    assert_same_bits(got, expected)


def test_results_may_be_read_transposed_and_reversed() -> None:
    """XLA may lay out what is around the call as it likes, but not the call's tensors."""
    case = Case(bias=False, padding="SAME")
    arguments = {name: tf.constant(a) for name, a in case.arrays(tf.float32).items()}

    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        arguments = dict(arguments)
        swapped = tf.transpose(arguments["inputs"], [0, 3, 2, 1])
        arguments["inputs"] = tf.transpose(swapped[:, :, ::-1, ::-1], [0, 3, 2, 1])
        results = evaluate(arguments, **case.attributes())
        return {name: tf.transpose(value, [3, 2, 1, 0]) for name, value in results.items()}

    assert_same_bits(compiled(function)(arguments), tf.function(function)(arguments))


def test_second_derivatives() -> None:
    case = Case(batch=1, size=(4, 3), strides=(1, 1), bias=False)
    arrays = {name: tf.constant(a) for name, a in case.arrays().items()}
    del arrays["grad_output"]

    def penalty(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as outer:
            outer.watch(arguments)
            with tf.GradientTape() as inner:
                inner.watch(arguments["inputs"])
                output = tf_deformable.deformable_conv2d(**arguments, **case.attributes())
                loss = tf.reduce_sum(output**2)
            (slope,) = inner.gradient(loss, [arguments["inputs"]])
            value = tf.reduce_sum(slope**2)
        return outer.gradient(value, arguments)

    got, expected = compiled(penalty)(arrays), tf.function(penalty)(arrays)
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-9, err_msg=name)


def test_in_a_loop() -> None:
    filters = tf.random.stateless_normal([3, 3, 2, 2], [1, 2]) / 4
    offsets = tf.random.stateless_normal([1, 6, 5, 18], [3, 4])

    def function(inputs: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(
            lambda step, _: step < 3,
            lambda step, x: (step + 1, tf_deformable.deformable_conv2d(x, filters, offsets)),
            (0, inputs),
        )[1]

    inputs = tf.random.stateless_normal([1, 6, 5, 2], [5, 6])
    assert_same_bits({"": compiled(function)(inputs)}, {"": tf.function(function)(inputs)})


_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.deformable_conv2d_cases import Case, evaluate

case = Case(batch=3, size=(24, 25), channels=24, filters=20, padding="SAME", bias=False)
arguments = {name: tf.constant(a) for name, a in case.arrays(tf.float32).items()}
function = tf.function(lambda a: evaluate(dict(a), **case.attributes()), jit_compile=True)
for name, tensor in function(arguments).items():
    print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    outputs = lines_with_threads(_DIGEST)
    assert outputs[0] == outputs[1]


_LATE = """
import tensorflow as tf

assert tf.function(lambda x: x + 1, jit_compile=True)(tf.ones([])) == 2
import tf_deformable

function = tf.function(tf_deformable.deformable_conv2d, jit_compile=True)
print(function(tf.ones([1, 4, 4, 1]), tf.ones([1, 1, 1, 1]), tf.zeros([1, 4, 4, 2])).shape)
"""


def test_the_package_may_be_imported_after_xla_was_used() -> None:
    assert lines_with_threads(_LATE, counts=(1,)) == [["(1, 4, 4, 1)"]]


_CHOSEN = """
import numpy as np
import tensorflow as tf
import tf_deformable

tf.config.optimizer.set_jit("autoclustering")

@tf.function
def function(inputs, is_wanted):
    everywhere = tf_deformable.deformable_conv2d(inputs * 2, filters + 1, offsets) + 1
    wanted = tf.gather(inputs, tf.where(is_wanted)[:, 0]) * 2
    some = tf_deformable.deformable_conv2d(wanted, filters + 1, offsets[:1]) + 1
    return everywhere, some

filters, offsets = tf.ones([3, 3, 2, 2]), tf.zeros([2, 6, 5, 18])
inputs = tf.random.stateless_normal([2, 6, 5, 2], [5, 6])
for _ in range(3):
    everywhere, some = function(inputs, tf.constant([False, True]))
np.testing.assert_allclose(some, everywhere[1:], rtol=1e-5)
print("agrees")
"""


def test_where_tensorflow_chooses_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1")
    assert lines_with_threads(_CHOSEN, counts=(1,)) == [["agrees"]]


# --- Refusals ------------------------------------------------------------------------------------


@compiled
def _knows_nothing(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
    hidden = {
        name: tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=None)
        for name, tensor in tensors.items()
    }
    return tf_deformable.deformable_conv2d(**hidden)


@pytest.mark.parametrize("name", [name for name, bad in BAD.items() if bad.shapes])
def test_bad_input_gets_the_same_message(name: str) -> None:
    bad = BAD[name]
    tensors = {key: tf.zeros(shape) for key, shape in {**SHAPES, **bad.shapes}.items()}
    message = re.escape(f"deformable_conv2d: {bad.message}")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _knows_nothing(tensors)


def test_a_shape_that_the_program_computes() -> None:
    @compiled
    def function(inputs: tf.Tensor, is_wanted: tf.Tensor) -> tf.Tensor:
        wanted = tf.gather(inputs, tf.where(is_wanted)[:, 0])
        return tf_deformable.deformable_conv2d(wanted, filters, offsets)

    inputs, filters, offsets = (tf.zeros(SHAPES[n]) for n in ("inputs", "filters", "offsets"))
    message = (
        r"deformable_conv2d: inputs must have a shape that is known when XLA compiles "
        r"\(jit_compile=True\), got f32\[<=2,9,11,4\]"
    )
    with pytest.raises(tf.errors.UnimplementedError, match=message):
        function(inputs, tf.constant([True, False]))
