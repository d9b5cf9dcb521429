"""On the CPU the native operators give the same bits, again and for any number of threads."""

from __future__ import annotations

from tests.ops.processes import lines_with_threads

# First and second derivatives of all operators, and mapped calls, each of them twice.
_DIGEST = """
import hashlib
import tensorflow as tf
import tf_deformable
from tests.ops import deformable_attention_cases, deformable_conv2d_cases, roi_pool_cases

conv = deformable_conv2d_cases.Case(
    batch=3, size=(24, 25), channels=24, filters=20, groups=2, offset_groups=3
)
roi = roi_pool_cases.Case(size=(20, 30), boxes=40, output_size=(7, 7), group_size=1, depth=24)
cases = {"conv": (conv, tf_deformable.deformable_conv2d)}
cases["roi"] = (roi, tf_deformable.deformable_psroi_pool)
attention = deformable_attention_cases.Case(
    levels=((30, 20), (15, 10)), heads=4, depth=24, queries=700, points=4
)
cases["attention"] = (attention, tf_deformable.multi_scale_deformable_attention)


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
    features = next(iter(values))
    mapped = tf.vectorized_map(
        lambda factor: function(
            **{**values, features: factor * values[features]}, **fixed, **case.attributes()
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
    assert len(one) == 2 * (2 + 5 + 5 + 2 + 3 + 3 + 2 + 3 + 3)
    assert one == two == four


# Sums of 16-bit gradients are held for more channels at a time where there are more threads.
_PARTS_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.deformable_conv2d_cases import evaluate
from tests.ops.test_deformable_conv2d_blocks import CASES

for name, case in CASES.items():
    if name.startswith("parts"):
        for name, tensor in evaluate(case.arrays(tf.bfloat16), **case.attributes()).items():
            print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_same_bits_however_many_channels_are_summed_at_a_time() -> None:
    one, two, four = lines_with_threads(_PARTS_DIGEST, (1, 2, 4))
    assert len(one) == 3 * 6
    assert one == two == four
