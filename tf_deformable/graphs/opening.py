"""Custom layers opened: in their place, models of the layers that they call.

What a layer's `call` does is seen by calling it with symbolic tensors, as one would call layers to
make a functional model. It shows all that there is to see if `call` uses layers and `keras.ops`
alone, which keeps a layer independent of the backend; KerasHub's blocks do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, GraphCall, graph_calls, is_graph, sublayers
from tf_deformable.graphs.rebuild import rebuild

_PROBE_SIZE = 32  # of the axes of a layer's input that may have any size
_OWN = ("keras", "tf_keras", "tf_deformable")  # packages whose layers stay closed


def open_layers(model: Any, is_wanted: Callable[[Any], bool]) -> Any:
    """Returns a model of the same layers, in which custom layers are nested functional models.

    The layers inside are those of the model, not copies. A layer stays closed where its inside
    cannot be seen, or differs from what the layer computes: if it computes with weights of its own,
    takes several arguments, calls functions of the backend, or branches on `training`. With
    tf-keras all stay closed.

    Args:
        model: model that `is_graph`.
        is_wanted: is called with each custom layer that has layers inside, and says whether to
            open it, if that is possible.

    Returns:
        A new model, or the model itself if no layer is opened.
    """
    if not IS_KERAS_3:
        return model
    opened: dict[int, Any] = {}
    for call in graph_calls(model):
        layer, key = call.layer, id(call.layer)
        if is_graph(layer):
            if key not in opened:
                opened[key] = open_layers(layer, is_wanted)
        elif key in opened:  # It may do another thing in each of its calls.
            opened[key] = layer
        elif _is_custom(layer) and is_wanted(layer):
            inside = _inside(call)
            opened[key] = layer if inside is None else open_layers(inside, is_wanted)
    if all(opened.get(id(layer), layer) is layer for layer in model.layers):
        return model
    return rebuild(model, lambda layer: opened.get(id(layer), layer))


def _is_custom(layer: Any) -> bool:
    """Returns whether a layer is of a class outside of Keras and has layers inside."""
    return (
        isinstance(layer, tf.keras.layers.Layer)
        and type(layer).__module__.split(".")[0] not in _OWN
        and len(sublayers(layer)) > 1
    )


def _inside(call: GraphCall) -> Any:
    """Returns a model of what a layer does in a call, None where that cannot be seen."""
    layer, read = call.layer, call.only_argument
    if read is None:
        return None
    names = {id(tensor): key for key, tensor in read.items()} if isinstance(read, dict) else {}
    inputs = {
        id(t): tf.keras.Input(batch_shape=t.shape, dtype=t.dtype, name=names.get(id(t)))
        for t in call.inputs
    }
    argument = tf.nest.map_structure(lambda tensor: inputs.get(id(tensor), tensor), read)

    def model_of(**options: Any) -> Any:
        cast = tf.nest.map_structure(lambda tensor: _autocast(layer, tensor), argument)
        return tf.keras.Model(argument, layer.call(cast, **options), name=layer.name)

    try:
        model = model_of()
        if "training" in inspect.signature(layer.call).parameters:
            kinds = [
                [type(c.layer) for c in graph_calls(model_of(training=t))] for t in (False, True)
            ]
            if kinds[0] != kinds[1]:
                return None
        has_all = {id(w) for w in layer.weights} <= {id(w) for w in model.weights}
        return model if has_all and _computes_the_same(layer, model, argument) else None
    except Exception:  # Whatever is raised by code that was not written to be looked at.
        return None


def _autocast(layer: Any, tensor: Any) -> Any:
    """Casts a tensor as `__call__` of a layer does before `call`."""
    is_cast = getattr(layer, "autocast", True) and tf.as_dtype(tensor.dtype).is_floating
    if not is_cast or tensor.dtype == layer.compute_dtype:
        return tensor
    return tf.keras.ops.cast(tensor, layer.compute_dtype)


def _computes_the_same(layer: Any, model: Any, structure: Any) -> bool:
    rng = np.random.default_rng(0)

    def probe(tensor: Any) -> tf.Tensor:
        shape = [2, *(_PROBE_SIZE if size is None else size for size in tensor.shape[1:])]
        return tf.cast(rng.uniform(0.0, 1.0, shape), tensor.dtype)

    probes = tf.nest.map_structure(probe, structure)
    expected, found = tf.nest.flatten(layer(probes)), tf.nest.flatten(model(probes))
    return len(expected) == len(found) and all(
        np.allclose(tf.cast(one, tf.float32), tf.cast(other, tf.float32), rtol=1e-2, atol=1e-4)
        for one, other in zip(expected, found, strict=True)
    )
