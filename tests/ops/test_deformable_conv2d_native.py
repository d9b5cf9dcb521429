"""What only the compiled operators promise, and what only their gradient operator can be asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.deformable_conv2d_cases import Case
from tests.ops.processes import lines_with_threads
from tf_deformable import _native

_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.deformable_conv2d_cases import Case, evaluate

for case in (
    Case(batch=3, size=(24, 25), channels=24, filters=20, offset_groups=2, padding="SAME"),
    Case(batch=1, size=(96, 47), channels=12, groups=1, offset_groups=1, padding="SAME"),
):
    results = evaluate(case.arrays(tf.float32), **case.attributes())
    for name, tensor in results.items():
        print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    outputs = lines_with_threads(_DIGEST)
    assert outputs[0] == outputs[1]


def _call_gradient_operator(grad_output_shape: list[int]) -> list[tf.Tensor]:
    case = Case(bias=False)
    arguments = {name: tf.constant(array) for name, array in case.arrays().items()}
    arguments["mask"] = [arguments["mask"]]
    arguments["grad_output"] = tf.zeros(grad_output_shape, tf.float64)
    return _native.load().tf_deformable_conv2d_grad(
        **arguments,
        strides=case.strides,
        dilations=case.dilations,
        padding="EXPLICIT",
        explicit_paddings=[pad for axis in case.padding for pad in axis],
    )


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [[2, 3, 6, 5], [2, 3, 5, 4], [2, 2, 6, 4], [1, 3, 6, 4]], ids=str)
def test_the_gradient_operator_checks_the_upstream_gradient(shape, in_graph: bool) -> None:
    expected = list(Case().output_shape())
    function = tf.function(_call_gradient_operator) if in_graph else _call_gradient_operator
    got, rule = (str(s).replace(" ", "") for s in (shape, expected))
    message = f"grad_output must have shape [N,Ho,Wo,F] = {rule}, got shape {got}"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=re.escape(message)):
        function(shape)


def test_the_operators_are_documented() -> None:
    from tensorflow.python.framework import op_def_registry

    for name in ("DeformableConv2D", "DeformableConv2DGrad"):
        definition = op_def_registry.get(f"TFDeformable>{name}")
        assert definition is not None
    module = _native.load()
    for function in (
        module.tf_deformable_conv2d,
        module.tf_deformable_conv2d_grad,
    ):
        assert "offsets" in function.__doc__


def test_the_gradient_operator_gives_what_the_tape_gives() -> None:
    case = Case(bias=False)
    grads = _call_gradient_operator(list(case.output_shape()))

    assert not any(np.any(g) for g in tf.nest.flatten(grads))  # the upstream gradient is zero
    assert [g.shape for g in tf.nest.flatten(grads)] == [
        case.arrays()[name].shape for name in ("inputs", "filters", "offsets", "mask")
    ]
