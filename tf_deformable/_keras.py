"""The Keras in use: Keras 3, or tf-keras where `TF_USE_LEGACY_KERAS=1` was set in time."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf


def _check_that_keras_imports() -> None:
    """Raises an error that says why, if `tf.keras` cannot be used.

    TensorFlow itself says so only once, and without the cause; later it fails in other ways.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") in (
        "true",
        "True",
        "1",
    )  # as TensorFlow reads it
    name = "tf_keras" if legacy else "keras"
    try:
        importlib.import_module(name)
    except Exception as error:
        settings = ", ".join(
            f"{variable}={os.environ[variable]}"
            for variable in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")
            if variable in os.environ
        )
        raise ImportError(
            f"tf_deformable: layers and models need Keras, and {name} cannot be imported"
            f"{f' with {settings}' if settings else ''} ({type(error).__name__}: {error})"
        ) from error


_check_that_keras_imports()

# The name of neither's version attribute is the other's; `keras.ops` came with Keras 3.
IS_KERAS_3 = hasattr(tf.keras, "ops")


def as_output_shape(shape: tuple[int | None, ...]) -> Any:
    """Returns the shape as the layers of the Keras in use return theirs."""
    return shape if IS_KERAS_3 else tf.TensorShape(shape)


# What Keras does not document, and is called otherwise in each of the two.


class GraphCall(NamedTuple):
    """One call of a layer (or, in Keras 3, of an operation without weights) in a model's graph."""

    layer: Any
    inputs: list[Any]  # Keras tensors
    outputs: list[Any]
    node: Any

    @property
    def only_argument(self) -> Any:
        """What the layer is called with, Keras tensors in any structure, None if that is more.

        For Keras 3 alone.
        """
        arguments = self.node.arguments
        if len(arguments.args) != 1 or any(v is not None for v in arguments.kwargs.values()):
            return None
        return arguments.args[0]

    def run(self, values: dict[int, Any]) -> list[Any]:
        """Makes the call with tensors in place of Keras tensors, by the `id` of these."""
        if IS_KERAS_3:
            args, kwargs = self.node.arguments.fill_in(values)
        else:
            given: dict[str, list[Any]] = {}
            for tensor in self.inputs:
                given.setdefault(str(id(tensor)), []).append(values[id(tensor)])
            args, kwargs = self.node.map_arguments(given)
        return tf.nest.flatten(self.layer(*args, **kwargs))


def graph_calls(model: Any) -> Iterator[GraphCall]:
    """Yields the calls of a model that `is_graph`, each after those it reads from.

    The inputs are no calls. A nested model is one call.
    """
    nodes_by_depth = _function(model)._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            inputs = node.input_tensors if IS_KERAS_3 else node.keras_inputs
            if inputs:  # The node of an input has none.
                yield GraphCall(
                    layer=node.operation if IS_KERAS_3 else node.layer,
                    inputs=tf.nest.flatten(inputs),
                    outputs=tf.nest.flatten(node.output_tensors if IS_KERAS_3 else node.outputs),
                    node=node,
                )


def is_graph(layer: Any) -> bool:
    """Returns whether the calls inside can be seen: a functional, or a built Sequential model."""
    return _function(layer) is not None


def is_plain_model(model: Any) -> bool:
    """Returns whether a model that `is_graph` can be built again, as its class, from its graph.

    That is so of the classes of Keras, and of those derived from them that keep their constructor.
    """
    plain = (tf.keras.Sequential, _functional_class(), tf.keras.Model)
    return type(model) in plain or type(model).__init__ in [kind.__init__ for kind in plain]


def sublayers(layer: Any) -> list[Any]:
    """Returns the layer and all layers inside it, a layer before those that it holds."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def name_of_input(tensor: Any) -> str:
    """Returns the name that `tf.keras.Input` gave to an input of a model, for Keras 3 alone."""
    return str(tensor._keras_history.operation.name)


def composite_spec(tensor: Any) -> Any:
    """Returns the type of an input that is ragged or sparse, None for other inputs.

    Keras tensors know it in tf-keras alone.
    """
    spec = getattr(tensor, "type_spec", None)
    return None if isinstance(spec, tf.TensorSpec) else spec


def set_dtype_policy(model: Any, policy: Any) -> None:
    """Sets the dtype policy of a model, which takes none in its constructor."""
    if IS_KERAS_3:
        model.dtype_policy = policy
    else:
        model._set_dtype_policy(policy)


def is_compiled(model: Any) -> bool:
    """Returns whether `compile` has been called."""
    return bool(model.compiled if IS_KERAS_3 else model._is_compiled)


def lambda_output_shape(layer: Any) -> Any:
    """Returns the argument `output_shape` of a Lambda layer."""
    return layer._output_shape


@functools.cache
def _functional_class() -> Any:
    """Returns the class that `tf.keras.Model(inputs, outputs)` is of."""
    inputs = tf.keras.Input((1,))
    return type(tf.keras.Model(inputs, inputs))


def _function(layer: Any) -> Any:
    """Returns the object that holds the nodes, None for all other layers."""
    if isinstance(layer, tf.keras.Sequential) and IS_KERAS_3:
        return layer._functional
    if not isinstance(layer, tf.keras.Model) or not getattr(layer, "_nodes_by_depth", None):
        return None
    # A class may build a graph and compute something else.
    is_run = isinstance(layer, tf.keras.Sequential) or type(layer).call is _functional_class().call
    return layer if is_run else None
