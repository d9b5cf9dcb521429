"""Calls large enough that the kernels cut them into steps, against the reference.

Here some case exceeds every limit of cc/kernels/deformable_attention/cpu_plan.cc.
"""

from __future__ import annotations

import pytest
import tensorflow as tf

from tests.ops.deformable_attention_cases import Case, evaluate
from tests.ops.deformable_conv2d_cases import assert_close
from tf_deformable import config

CASES = {
    "steps of queries, the last one with fewer": (
        Case(batch=1, levels=((3, 4),), heads=1, depth=33, queries=470, points=200),
        tf.float64,
    ),
    "steps of images, the last one with fewer": (Case(batch=4), tf.bfloat16),
    "units of rows, the last one with fewer": (Case(batch=1, queries=701, depth=40), tf.float32),
    "blocks of channels": (Case(heads=1, depth=700), tf.float32),
    "blocks of channels, in 16 bits": (Case(heads=1, depth=700), tf.bfloat16),
    "gradients of many pieces": (
        Case(batch=1, levels=((90, 91),), heads=2, depth=9, queries=3, points=1),
        tf.float16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_add_up(name: str) -> None:
    case, dtype = CASES[name]
    arrays = case.arrays(dtype)
    # The reference in float64, from the same (rounded) values.
    exact = {argument: array.astype("float64") for argument, array in arrays.items()}
    with config.use_backend("reference"):
        expected = evaluate(exact, **case.attributes())
    with config.use_backend("native"):
        got = evaluate(arrays, **case.attributes())
    assert_close(got, {n: t.numpy() for n, t in expected.items()}, dtype)
