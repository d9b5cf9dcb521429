"""Calls with the symbolic tensors of Keras, which become operations of the model.

`keras.ops` do the same. Keras is not imported for it: without it there are no such tensors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf

Function = TypeVar("Function", bound=Callable[..., Any])


def accepts_keras_tensors(function: Function) -> Function:
    """Makes a call with symbolic tensors of Keras an operation of the model.

    For functions of the package, and for methods of its layers.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _any(_is_symbolic, [*args, *kwargs.values()]):
            return function(*args, **kwargs)
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()  # A saved model is to stay what it is, whatever they become.
        given = bound.arguments
        tensors = {name: value for name, value in given.items() if _any(_is_tensor, [value])}
        constants = {name: value for name, value in given.items() if name not in tensors}
        from tf_deformable.ops._keras_operation import FunctionOperation

        name = constants.pop("name", None)
        operation = FunctionOperation(call, list(tensors), constants, name=name)
        return operation(list(tensors.values()))

    return cast(Function, call)


def _is_symbolic(value: Any) -> bool:
    kind = type(value)
    return kind.__name__.endswith("KerasTensor") and kind.__module__.startswith(
        ("keras.", "tf_keras.")
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (tf.Tensor, tf.Variable, np.ndarray)) or _is_symbolic(value)


def _any(predicate: Callable[[Any], bool], values: Any) -> bool:
    """Tells whether one of the values, or of the elements of lists among them, fulfils it."""
    return any(
        _any(predicate, value) if isinstance(value, (list, tuple)) else predicate(value)
        for value in values
    )
