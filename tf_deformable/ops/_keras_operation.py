"""The operation that stands in a model of Keras for a call of a function of the package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3

# tf-keras has no operations: a layer that casts nothing is one.
_Base: Any = tf.keras.Operation if IS_KERAS_3 else tf.keras.layers.Layer
_AS_IT_IS = {} if IS_KERAS_3 else {"autocast": False}


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class FunctionOperation(_Base):
    """A call of a function with a list of tensors of the model.

    Args:
        function: the function, or its name: those of `tf_deformable.ops` are saved by it.
        tensors: names of the arguments that the list holds, in its order.
        constants: all other arguments.
        name: of the operation.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        tensors: list[str],
        constants: dict[str, Any],
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, **_AS_IT_IS)
        self._function: Callable[..., Any] = (
            getattr(importlib.import_module("tf_deformable.ops"), function)
            if isinstance(function, str)
            else function
        )
        self._tensors, self._constants = tensors, constants

    def call(self, inputs: Any) -> Any:
        """Calls the function."""
        return self._function(**dict(zip(self._tensors, inputs, strict=True)), **self._constants)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments.

        Raises:
            NotImplementedError: the function is a layer's method, whose weights the model would
                hold a second time when it is loaded.
        """
        name = self._function.__name__
        public = importlib.import_module("tf_deformable.ops")
        if getattr(public, name, None) is not self._function:
            raise NotImplementedError(
                f"tf_deformable: a model that holds the operation {name} of a layer cannot be "
                "saved or cloned: build it anew from the layer, once the layer's model is loaded"
            )
        return {
            "function": name,
            "tensors": self._tensors,
            "constants": self._constants,
            "name": self.name,
        }
