"""Makes what the package adds known to TensorFlow and to Keras.

It runs when the package is imported, so that `import tf_deformable` is enough to load a model that
holds its layers or its operators, whatever loads it: Keras from a file, from JSON or by cloning, or
`tf.saved_model.load`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable import _native
from tf_deformable._calls import Calls


def register_all() -> None:
    """Registers the operators, their gradients, and the classes that Keras saves by name.

    What cannot be had here (the compiled library, or Keras) is passed over: the reference works
    without the one, the functions without the other, and what needs it says what is missing.
    """
    importlib.import_module("tf_deformable.ops")
    try:
        _native.load()
    except _native.NativeLibraryError:
        pass
    try:
        importlib.import_module("tf_deformable._keras")
    except ImportError:
        return
    importlib.import_module("tf_deformable.models")
    importlib.import_module("tf_deformable.ops._keras_operation")


def register_gradient(function: Callable[..., Any], op_types: Sequence[str]) -> None:
    """Registers a module's function as the gradient of operators.

    TensorFlow takes one gradient per operator and process. It gets one that looks the function up
    at each call, so that a module that is executed again, as notebooks do when they reload it,
    replaces the function. (So it is with the other registries.)
    """
    current = _looked_up(function)
    for op_type in op_types:
        try:
            tf.RegisterGradient(op_type)(current)
        except KeyError:  # It is there, from an earlier execution of the module.
            pass


def register_vectorization(function: Callable[..., Any], op_types: Sequence[str]) -> None:
    """Registers a module's function that makes many calls of an operator one.

    It is called with the operation and the `Calls`, and returns a list of the outputs, each with
    the axis of the calls before its own. `tf.vectorized_map`, `tf.GradientTape.jacobian` and
    `batch_jacobian` use it. The registry has no public name: a TensorFlow that lacks it, or has it
    otherwise, makes the calls in a loop, as it does with all operators that it does not know.
    """
    try:
        from tensorflow.python.ops.parallel_for import pfor
    except ImportError:
        return
    register, wrap = getattr(pfor, "RegisterPFor", None), getattr(pfor, "wrap", None)
    if register is None or wrap is None:
        return
    current = _looked_up(function)

    def converter(converted: Any) -> Any:
        tensors = [converted.input(number) for number in range(converted.num_inputs)]
        calls = Calls(
            tf.reshape(converted.pfor.loop_len_vector, []),
            [tensor.t for tensor in tensors],
            [tensor.is_stacked for tensor in tensors],
        )
        return [wrap(output, True) for output in current(converted.op, calls)]

    for op_type in op_types:
        try:
            register(op_type)(converter)
        except (AssertionError, TypeError):  # likewise; or it is called otherwise
            pass


# Takes an operator in a graph to a function of its inputs, one by one, that returns its outputs and
# leaves the operator itself alone.
AsFunction: TypeAlias = Callable[[tf.Operation], Callable[..., list[tf.Tensor]]]

_references: dict[str, AsFunction] = {}


def register_reference(function: AsFunction, op_types: Sequence[str]) -> None:
    """Registers what plain TensorFlow computes in place of operators, by their types."""
    for op_type in op_types:
        _references[op_type] = function


def references() -> dict[str, AsFunction]:
    """Returns what plain TensorFlow computes in place of every operator of the package."""
    return dict(_references)


def _looked_up(function: Callable[..., Any]) -> Callable[..., Any]:
    module, name = function.__module__, function.__name__

    def current(*args: Any) -> Any:
        return getattr(sys.modules[module], name)(*args)

    return current
