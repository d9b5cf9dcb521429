"""What only the compiled operators promise, and what only their gradient operator can be asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_conv2d_cases import assert_close
from tests.ops.processes import lines_with_threads
from tests.ops.roi_pool_cases import HUGE, NOT_FINITE, NOWHERE, ODD, Case, evaluate
from tf_deformable import _native, config

_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.roi_pool_cases import Case, evaluate

for case in (
    Case(size=(20, 30), boxes=40, output_size=(7, 7), group_size=7, depth=21, classes=21),
    Case(size=(20, 30), boxes=40, output_size=(7, 7), group_size=1, depth=83, classes=1),
):
    results = evaluate(case.arrays(tf.float32), **case.attributes())
    for name, tensor in results.items():
        print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    outputs = lines_with_threads(_DIGEST)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 8


@pytest.mark.parametrize("aligned", [False, True])
def test_many_classes_of_odd_boxes_agree_with_the_reference(aligned: bool) -> None:
    boxes = [*NOWHERE.values(), *ODD.values(), *HUGE.values(), *NOT_FINITE.values()]
    case = Case(boxes=len(boxes), depth=2 * 37, classes=37, aligned=aligned)
    arrays = case.arrays()
    arrays["boxes"][:] = boxes
    arrays["offsets"][::3, :, :, ::5, 0] = np.nan
    arrays["offsets"][1::3, :, :, ::6, 1] = np.inf
    arrays["offsets"][2::3, :, :, ::7] = -1e30
    results = {}
    for backend in ("native", "reference"):
        with config.use_backend(backend):
            results[backend] = evaluate(arrays, **case.attributes())

    expected = {name: tensor.numpy() for name, tensor in results["reference"].items()}
    assert_close(results["native"], expected)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_the_last_of_many_pixels(axis: int, aligned: bool, classes: int) -> None:
    """float32 rounds their number up: to a pixel that there is not."""
    pixels = 2**24 + 4
    size = [pixels, 1] if axis == 0 else [1, pixels]
    inputs = tf.ones([1, *size, classes])
    box = [pixels - 4.0, 0, pixels, 1] if axis == 0 else [0, pixels - 4.0, 1, pixels]
    boxes = tf.constant([box])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = tf_deformable.deformable_psroi_pool(
            inputs,
            boxes,
            tf.constant([0]),
            tf.zeros([1, 1, 1, classes, 2]),
            output_size=1,
            group_size=1,
            spatial_scale=1.0,
            aligned=aligned,
        )
    np.testing.assert_array_equal(outputs, np.ones([1, 1, 1, classes]))
    assert tf.reduce_sum(tape.gradient(outputs, inputs)) == classes


def _call_gradient_operator(grad_output_shape: list[int]) -> list[tf.Tensor]:
    case = Case()
    arguments = {name: tf.constant(array) for name, array in case.arrays().items()}
    for name in ("offsets", "mask"):
        arguments[name] = [arguments[name]]
    arguments["grad_output"] = tf.zeros(grad_output_shape, tf.float64)
    return _native.load().tf_deformable_roi_pool_grad(**arguments, **case.attributes())


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [[5, 4, 3, 5], [5, 3, 4, 6], [4, 4, 3, 6], [5, 4, 1, 6]], ids=str)
def test_the_gradient_operator_checks_the_upstream_gradient(shape, in_graph: bool) -> None:
    function = tf.function(_call_gradient_operator) if in_graph else _call_gradient_operator
    got = str(shape).replace(" ", "")
    message = f"grad_output must have shape [R,ph,pw,D] = [5,4,3,6], got shape {got}"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=re.escape(message)):
        function(shape)


def test_the_gradient_operator_checks_the_rank_of_the_upstream_gradient() -> None:
    message = "grad_output must have rank 4 [R,ph,pw,D], got shape [5,4,3]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        _call_gradient_operator([5, 4, 3])


def test_the_gradient_operator_gives_what_the_tape_gives() -> None:
    grads = _call_gradient_operator(list(Case().output_shape()))

    assert not any(np.any(g) for g in tf.nest.flatten(grads))  # the upstream gradient is zero
    assert [g.shape for g in tf.nest.flatten(grads)] == [
        Case().arrays()[name].shape for name in ("inputs", "offsets", "mask")
    ]


def test_the_operators_are_documented() -> None:
    module = _native.load()
    for function in (
        module.tf_deformable_roi_pool,
        module.tf_deformable_roi_pool_grad,
    ):
        assert "box_indices" in function.__doc__
