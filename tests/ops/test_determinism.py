"""On the CPU the native operators give the same bits, again and for any number of threads."""

from __future__ import annotations

from tests.ops.processes import lines_with_threads

# First and second derivatives of both operators, and mapped calls, each of them twice.
_DIGEST = """
import hashlib
import tensorflow as tf
import tf_deformable
from tests.ops import deformable_conv2d_cases, roi_pool_cases

conv = deformable_conv2d_cases.Case(
    batch=3, size=(24, 25), channels=24, filters=20, groups=2, offset_groups=3
)
roi = roi_pool_cases.Case(size=(20, 30), boxes=40, output_size=(7, 7), group_size=1, depth=24)
cases = {"conv": (conv, tf_deformable.deformable_conv2d)}
cases["roi"] = (roi, tf_deformable.deformable_psroi_pool)


def derivatives(case, function, dtype):
    values = {name: tf.constant(array) for name, array in case.arrays(dtype).items()}
    upstream = values.pop("grad_output")
    fixed = {name: values.pop(name) for name in list(values) if name.startswith("box")}
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            outputs = function(**values, **fixed, **case.attributes())
        first = inner.gradient(outputs, values, output_gradients=upstream)
    second = outer.gradient(first, values, output_gradients=first, unconnected_gradients="zero")
    mapped = tf.vectorized_map(
        lambda factor: function(
            **{**values, "inputs": factor * values["inputs"]}, **fixed, **case.attributes()
        ),
        tf.constant([1, -1], dtype),
    )
    second = {f"second {name}": tensor for name, tensor in second.items()}
    return {"outputs": outputs, **first, **second, "map": mapped}


for dtype in (tf.float32, tf.bfloat16):
    for name, (case, function) in cases.items():
        runs = [derivatives(case, function, dtype) for _ in range(2)]
        for key in runs[0]:
            first, again = (
                hashlib.sha256(run[key].numpy().tobytes()).hexdigest() for run in runs
            )
            assert first == again, (name, key)
            print(dtype.name, name, key, first)
"""


def test_the_same_bits() -> None:
    one, two, four = lines_with_threads(_DIGEST, (1, 2, 4))
    assert len(one) == 2 * (2 + 5 + 5 + 2 + 3 + 3)
    assert one == two == four
