"""Many calls as one: `tf.vectorized_map` and Jacobians, against the same calls one by one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_attention_cases import Case as AttentionCase
from tests.ops.deformable_conv2d_cases import Case as ConvCase
from tests.ops.roi_pool_cases import Case as RoICase
from tf_deformable import _native

CALLS = 3
CONV = ConvCase(size=(5, 4))
ROI = RoICase(boxes=4, output_size=(2, 3), depth=3)
ATTENTION = AttentionCase()

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    """Fails where TensorFlow says that it makes the calls in a loop."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = tf.get_logger()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not [message for message in messages if "while_loop" in message]


def _all_calls(
    function: Callable[..., Any], arrays: Arrays, own: tuple[str, ...], seed: int = 5
) -> tuple[Any, Any]:
    """What a vectorised map gives, and what a loop does; every call has `own` of its own."""
    random = np.random.default_rng(seed)
    stacked = {}
    for name in own:
        array = arrays[name]
        if name == "box_indices":
            values = [np.roll(array, shift) for shift in range(CALLS)]
        elif name == "boxes":
            values = [np.roll(array, shift, axis=0) for shift in range(CALLS)]
        elif name in ("offsets", "sampling_locations"):  # what they may be is another matter
            values = [random.permuted(array, axis=1) for _ in range(CALLS)]
        else:
            values = [random.normal(size=array.shape).astype(array.dtype) for _ in range(CALLS)]
        stacked[name] = tf.constant(np.stack(values))
    shared = {name: tf.constant(array) for name, array in arrays.items() if name not in own}

    def call(own: dict[str, tf.Tensor]) -> Any:
        return function({**shared, **own})

    got = tf.vectorized_map(call, stacked, fallback_to_while_loop=False)
    calls = [call({name: value[i] for name, value in stacked.items()}) for i in range(CALLS)]
    return got, tf.nest.map_structure(lambda *values: tf.stack(values), *calls)


def _assert_same(got: Any, expected: Any) -> None:
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, expected
    )


def _subsets(names: list[str]) -> list[tuple[str, ...]]:
    """All subsets but the empty one, of up to three; and all names."""
    small = [c for size in (1, 2, 3) for c in itertools.combinations(names, size)]
    return [*small, tuple(names)]


CONV_INPUTS = ["inputs", "filters", "offsets", "mask", "bias"]


def _conv(case: ConvCase) -> Callable[[dict[str, Any]], tf.Tensor]:
    def function(arguments: dict[str, Any]) -> tf.Tensor:
        arguments = {name: v for name, v in arguments.items() if name != "grad_output"}
        return tf_deformable.deformable_conv2d(**arguments, **case.attributes())

    return function


def _roi(case: RoICase) -> Callable[[dict[str, Any]], tf.Tensor]:
    def function(arguments: dict[str, Any]) -> tf.Tensor:
        arguments = {name: v for name, v in arguments.items() if name != "grad_output"}
        return tf_deformable.deformable_psroi_pool(**arguments, **case.attributes())

    return function


def _attention(case: AttentionCase) -> Callable[[dict[str, Any]], tf.Tensor]:
    def function(arguments: dict[str, Any]) -> tf.Tensor:
        arguments = {name: v for name, v in arguments.items() if name != "grad_output"}
        return tf_deformable.multi_scale_deformable_attention(**{**case.attributes(), **arguments})

    return function


def _gradient(
    function: Callable[[dict[str, Any]], tf.Tensor], wrt: list[str]
) -> Callable[..., Any]:
    def gradient(arguments: dict[str, Any]) -> Any:
        variables = {name: arguments[name] for name in wrt if name in arguments}
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs = function({**arguments, **variables})
        return tape.gradient(outputs, variables, output_gradients=arguments["grad_output"])

    return gradient


@pytest.mark.parametrize("own", _subsets(CONV_INPUTS), ids="-".join)
def test_deformable_conv2d(own: tuple[str, ...]) -> None:
    arrays = CONV.arrays()
    _assert_same(*_all_calls(_conv(CONV), arrays, own))


@pytest.mark.parametrize("own", _subsets([*CONV_INPUTS[:4], "grad_output"]), ids="-".join)
def test_gradients_of_deformable_conv2d(own: tuple[str, ...]) -> None:
    arrays = CONV.arrays()
    _assert_same(*_all_calls(_gradient(_conv(CONV), CONV_INPUTS), arrays, own))


@pytest.mark.parametrize(
    "own", [("inputs",), ("filters",), ("grad_output",), ("inputs", "filters")]
)
def test_deformable_conv2d_without_mask_and_bias(own: tuple[str, ...]) -> None:
    case = dataclasses.replace(
        CONV, mask=False, bias=False, groups=1, offset_groups=1, padding="SAME"
    )
    arrays = case.arrays()
    if own != ("grad_output",):
        _assert_same(*_all_calls(_conv(case), arrays, own))
    _assert_same(*_all_calls(_gradient(_conv(case), CONV_INPUTS), arrays, own))


ROI_INPUTS = ["inputs", "boxes", "box_indices", "offsets", "mask"]


@pytest.mark.parametrize("own", _subsets(ROI_INPUTS), ids="-".join)
def test_roi_pooling(own: tuple[str, ...]) -> None:
    _assert_same(*_all_calls(_roi(ROI), ROI.arrays(), own))


@pytest.mark.parametrize("own", _subsets([*ROI_INPUTS, "grad_output"]), ids="-".join)
def test_gradients_of_roi_pooling(own: tuple[str, ...]) -> None:
    wrt = ["inputs", "offsets", "mask"]
    _assert_same(*_all_calls(_gradient(_roi(ROI), wrt), ROI.arrays(), own))


@pytest.mark.parametrize("own", [("inputs",), ("boxes",), ("grad_output",)])
def test_plain_roi_pooling(own: tuple[str, ...]) -> None:
    case = dataclasses.replace(ROI, mask=False, part_size=None)
    arrays = case.arrays()
    if own != ("grad_output",):
        _assert_same(*_all_calls(_roi(case), arrays, own))
    _assert_same(*_all_calls(_gradient(_roi(case), ["inputs"]), arrays, own))


ATTENTION_INPUTS = ["value", "sampling_locations", "attention_weights"]


@pytest.mark.parametrize("own", _subsets(ATTENTION_INPUTS), ids="-".join)
@pytest.mark.parametrize("points", [2, (2, 1, 3)], ids=str)
def test_attention(points: int | tuple[int, ...], own: tuple[str, ...]) -> None:
    case = dataclasses.replace(ATTENTION, points=points)
    _assert_same(*_all_calls(_attention(case), case.arrays(), own))


@pytest.mark.parametrize("own", _subsets([*ATTENTION_INPUTS, "grad_output"]), ids="-".join)
def test_gradients_of_attention(own: tuple[str, ...]) -> None:
    function = _gradient(_attention(ATTENTION), ATTENTION_INPUTS)
    _assert_same(*_all_calls(function, ATTENTION.arrays(), own))


def test_attention_over_maps_of_other_sizes() -> None:
    arguments = {name: tf.constant(array) for name, array in ATTENTION.arrays().items()}
    sizes = tf.constant([[[5, 7], [3, 2], [1, 4]], [[7, 5], [2, 3], [4, 1]]])
    for function in (_attention(ATTENTION), _gradient(_attention(ATTENTION), ATTENTION_INPUTS)):

        def call(sizes: tf.Tensor, function: Callable[..., Any] = function) -> Any:
            return function({**arguments, "spatial_shapes": sizes})

        got = tf.vectorized_map(call, sizes, fallback_to_while_loop=False)
        expected = tf.nest.map_structure(
            lambda *calls: tf.stack(calls), *[call(size) for size in sizes]
        )
        _assert_same(got, expected)


@pytest.mark.parametrize("index", [ROI.batch, -2])
def test_a_wrong_box_index_stays_wrong(index: int) -> None:
    """It does not become the image of another call."""
    arrays = {name: tf.constant(array) for name, array in ROI.arrays().items()}
    arrays["box_indices"] = tf.constant([0, index, 1, 0])
    images = tf.stack([arrays["inputs"]] * CALLS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="box_indices must be -1"):
        tf.vectorized_map(lambda inputs: _roi(ROI)({**arrays, "inputs": inputs}), images)


def test_no_call_at_all() -> None:
    arrays = {name: tf.constant(array) for name, array in CONV.arrays().items()}
    none = tf.zeros([0, *arrays["inputs"].shape], tf.float64)
    got = tf.vectorized_map(lambda inputs: _conv(CONV)({**arrays, "inputs": inputs}), none)
    assert got.shape == [0, *CONV.output_shape()]


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", CONV_INPUTS)
def test_jacobians_of_deformable_conv2d(name: str, in_graph: bool, backend: str) -> None:
    arguments = {key: tf.constant(array) for key, array in CONV.arrays().items()}
    _check_jacobian(_conv(CONV), arguments, name, in_graph)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["inputs", "offsets", "mask"])
def test_jacobians_of_roi_pooling(name: str, in_graph: bool, backend: str) -> None:
    arguments = {key: tf.constant(array) for key, array in ROI.arrays().items()}
    _check_jacobian(_roi(ROI), arguments, name, in_graph)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ATTENTION_INPUTS)
def test_jacobians_of_attention(name: str, in_graph: bool, backend: str) -> None:
    arguments = {key: tf.constant(array) for key, array in ATTENTION.arrays().items()}
    _check_jacobian(_attention(ATTENTION), arguments, name, in_graph)


def _check_jacobian(
    function: Callable[..., tf.Tensor], arguments: dict[str, Any], name: str, in_graph: bool
) -> None:
    """Converted, in a loop, and its product with a direction against a difference."""

    def jacobian(value: tf.Tensor, is_converted: bool) -> tf.Tensor:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(value)
            outputs = function({**arguments, name: value})
        return tape.jacobian(outputs, value, experimental_use_pfor=is_converted)

    value = arguments[name]
    call = tf.function(jacobian) if in_graph else jacobian
    converted = call(value, is_converted=True)
    np.testing.assert_allclose(converted, call(value, is_converted=False), rtol=1e-12, atol=1e-12)

    direction = tf.constant(np.random.default_rng(1).uniform(-1, 1, value.shape) * 2**-12)
    # Between pixels the operators are linear in each argument, offsets but for a product.
    ends = [function({**arguments, name: value + sign * direction}) for sign in (1, -1)]
    along = tf.tensordot(converted, direction, axes=len(value.shape))
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2, atol=1e-12)


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("name", ["inputs", "offsets", "mask"])
def test_batch_jacobian(name: str, is_converted: bool, backend: str) -> None:
    arguments = {key: tf.constant(array) for key, array in CONV.arrays().items()}
    value = arguments[name]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(value)
        outputs = _conv(CONV)({**arguments, name: value})
    whole = tape.jacobian(outputs, value)
    got = tape.batch_jacobian(outputs, value, experimental_use_pfor=is_converted)
    for image in range(CONV.batch):
        own = whole[image][..., image, :, :, :]
        np.testing.assert_allclose(got[image], own, rtol=1e-12, atol=1e-12)


def _operations_behind(outputs: list[tf.Tensor]) -> list[str]:
    """The types of all operations that are run for these outputs of a graph."""
    seen, waiting = {}, [tensor.op for tensor in outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen[operation.name] = operation.type
            waiting += [tensor.op for tensor in operation.inputs]
    return list(seen.values())


@pytest.mark.parametrize("own", ["inputs", "filters", "offsets"])
def test_a_map_calls_the_operator_once(own: str) -> None:
    arrays = {name: tf.constant(array) for name, array in CONV.arrays().items()}

    @tf.function
    def mapped(values: tf.Tensor) -> tf.Tensor:
        return tf.vectorized_map(lambda value: _conv(CONV)({**arrays, own: value}), values)

    graph = mapped.get_concrete_function(tf.stack([arrays[own]] * CALLS)).graph
    types = _operations_behind(graph.outputs)
    assert types.count("TFDeformable>Conv2D") == 1
    assert not any("While" in op_type for op_type in types)


@pytest.mark.parametrize("name", ["inputs", "filters", "offsets", "mask"])
def test_a_jacobian_calls_the_gradient_once(name: str) -> None:
    arrays = {key: tf.constant(array) for key, array in CONV.arrays().items()}

    @tf.function
    def jacobian(value: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(value)
            outputs = _conv(CONV)({**arrays, name: value})
        return tape.jacobian(outputs, value)

    graph = jacobian.get_concrete_function(arrays[name]).graph
    types = _operations_behind(graph.outputs)
    assert types.count("TFDeformable>Conv2DGrad") == 1
    assert not any("While" in op_type for op_type in types)


def test_the_operators_of_0_1() -> None:
    """Models that it has exported are mapped as well."""
    case = dataclasses.replace(CONV, bias=False)
    arrays = {name: tf.constant(array) for name, array in case.arrays().items()}
    module = _native.load()
    inputs = tf.stack([arrays["inputs"], 2 * arrays["inputs"]])

    def call(inputs: tf.Tensor) -> tf.Tensor:
        return module.tf_deformable_deformable_conv2d(
            inputs=inputs,
            filters=arrays["filters"],
            offsets=arrays["offsets"],
            mask=[arrays["mask"]],
            bias=[],
            strides=case.strides,
            dilations=case.dilations,
            padding="EXPLICIT",
            explicit_paddings=[pad for axis in case.padding for pad in axis],
        )

    got = tf.vectorized_map(call, inputs, fallback_to_while_loop=False)
    _assert_same(got, tf.stack([call(inputs[0]), call(inputs[1])]))
