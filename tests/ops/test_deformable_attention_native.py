"""What only the compiled operators promise, and what only their gradient operator can be asked."""

from __future__ import annotations

import re

import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_attention_cases import Case
from tests.ops.processes import lines_with_threads
from tf_deformable import _native

_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.deformable_attention_cases import Case, evaluate

levels = ((19, 30), (10, 15))
for dtype in (tf.float32, tf.bfloat16):
    for case in (
        Case(batch=3, levels=levels, heads=8, depth=20, queries=333, points=4),
        Case(batch=1, levels=levels, heads=1, depth=130, queries=999, points=3),
    ):
        for name, tensor in evaluate(case.arrays(dtype), **case.attributes()).items():
            print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    outputs = lines_with_threads(_DIGEST)
    assert outputs[0] == outputs[1]


def _call_gradient_operator(grad_output_shape: list[int]) -> list[tf.Tensor]:
    arguments = {name: tf.constant(array) for name, array in Case().arrays().items()}
    arguments["grad_output"] = tf.zeros(grad_output_shape, tf.float64)
    return _native.load().tf_deformable_multi_scale_deformable_attention_grad(
        spatial_shapes=Case().levels, **arguments
    )


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [[1, 4, 15], [2, 3, 15], [2, 4, 14]], ids=str)
def test_the_gradient_operator_checks_the_upstream_gradient(shape, in_graph: bool) -> None:
    function = tf.function(_call_gradient_operator) if in_graph else _call_gradient_operator
    got = str(shape).replace(" ", "")
    message = f"grad_output must have shape [N,Q,heads*D] = [2,4,15], got shape {got}"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=re.escape(message)):
        function(shape)


def test_the_operators_are_documented() -> None:
    module = _native.load()
    for function in (
        module.tf_deformable_multi_scale_deformable_attention,
        module.tf_deformable_multi_scale_deformable_attention_grad,
    ):
        assert "sampling_locations" in function.__doc__


def test_locations_of_another_dtype_are_refused() -> None:
    arrays = Case().arrays(tf.float16)
    del arrays["grad_output"]
    arrays |= {n: arrays[n].astype(float) for n in ("sampling_locations", "attention_weights")}
    message = (
        "sampling_locations and attention_weights must have dtype half or float beside a value of "
        "half, got double"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _native.load().tf_deformable_multi_scale_deformable_attention(
            spatial_shapes=Case().levels, **arrays
        )


def test_a_map_of_negative_height_is_refused_where_only_the_run_shows_it() -> None:
    """Though all of them have as many pixels as the value: 12 - 4."""

    @tf.function(input_signature=[tf.TensorSpec([2, 2], tf.int32)], autograph=False)
    def function(spatial_shapes: tf.Tensor) -> tf.Tensor:
        return tf_deformable.multi_scale_deformable_attention(
            tf.ones([1, 8, 1, 2]),
            spatial_shapes,
            tf.zeros([1, 3, 1, 2, 1, 2]),
            tf.ones([1, 3, 1, 2, 1]),
        )

    with pytest.raises(tf.errors.InvalidArgumentError, match="heights and widths of at least 0"):
        function(tf.constant([[-1, 4], [3, 4]]))
