"""Conversion to LiteRT (TensorFlow Lite), and what the tests ask of the result."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

# The package that the warning names in its place is not TensorFlow's.
ignore_deprecation = pytest.mark.filterwarnings(
    "ignore:\\s*Warning. tf.lite.Interpreter is deprecated"
)

# float32 sums of other orders, for values of some units.
RTOL = 1e-5
ATOL = 1e-5

# Kernels take at least as many axes, except for slices with strides, which take no more.
_MOST_AXES = 5


def convert(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    """Converts a function with an input signature, to builtin operators alone."""
    concrete = function.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], function).convert()


def convert_model(model: tf.keras.Model) -> bytes:
    """Converts a Keras model, to builtin operators alone."""
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def operators(model: bytes) -> list[str]:
    """The operators of a converted model, by name; those that LiteRT lacks are called CUSTOM."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    codes = [max(op.builtinCode, op.deprecatedBuiltinCode) for op in parsed.operatorCodes]
    graphs = parsed.subgraphs
    return [names[codes[op.opcodeIndex]] for graph in graphs for op in graph.operators]


def ranks(model: bytes) -> list[int]:
    """The number of axes of every tensor."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    tensors = [tensor for graph in parsed.subgraphs for tensor in graph.tensors]
    return [0 if tensor.shape is None else len(tensor.shape) for tensor in tensors]


def run(model: bytes, arguments: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs a converted model with the default delegate, resized to the arguments.

    Args:
        model: the model, of one output.
        arguments: by names of inputs.
    """
    interpreter = tf.lite.Interpreter(model_content=model)
    inputs = {}
    for details in interpreter.get_input_details():
        # "serving_default_boxes:0" in a model, "boxes" in a function
        name = details["name"].removeprefix("serving_default_").split(":")[0]
        inputs[name] = details["index"]
    assert inputs.keys() == arguments.keys()
    for name, array in arguments.items():
        # strict: sizes that the model knows do not change.
        interpreter.resize_tensor_input(inputs[name], array.shape, strict=True)
    interpreter.allocate_tensors()
    for name, array in arguments.items():
        interpreter.set_tensor(inputs[name], array)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    return interpreter.get_tensor(output["index"])


def assert_is_plain(model: bytes) -> None:
    """Nothing but builtin operators, on tensors of as many axes as their kernels take."""
    found = operators(model)
    assert "CUSTOM" not in found  # neither own operators nor TensorFlow's by way of Flex
    assert not {"IF", "WHILE", "CALL_ONCE"} & set(found)
    assert max(ranks(model)) <= _MOST_AXES


def assert_same(
    model: bytes, arguments: Mapping[str, np.ndarray], expected: tf.Tensor | np.ndarray
) -> None:
    """The converted model gives what TensorFlow gives, NaN included."""
    got, expected = run(model, arguments), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=ATOL * scale)
