"""Makes what the package adds known to TensorFlow and to Keras.

It runs when the package is imported, so that `import tf_deformable` is enough to load a model that
holds its layers or its operators, whatever loads it: Keras from a file, from JSON or by cloning, or
`tf.saved_model.load`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable import _native


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
    replaces the function.
    """
    module, name = function.__module__, function.__name__

    def current(op: tf.Operation, *upstream: tf.Tensor) -> Any:
        return getattr(sys.modules[module], name)(op, *upstream)

    for op_type in op_types:
        try:
            tf.RegisterGradient(op_type)(current)
        except KeyError:  # It is there, from an earlier execution of the module.
            pass
