"""The calls of layers that make up a functional or Sequential model, the same in both Kerases."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import IS_KERAS_3


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer (or, in Keras 3, of an operation without weights)."""

    layer: Any
    inputs: list[Any]  # Keras tensors
    outputs: list[Any]


def is_graph(layer: Any) -> bool:
    """Returns whether the calls inside can be seen: a functional, or a built Sequential model."""
    return _function(layer) is not None


def calls(model: Any) -> Iterator[Call]:
    """Yields the calls of a model that `is_graph`, each after those it reads from.

    The inputs are no calls. A nested model is one call.
    """
    function = _function(model)
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            inputs = node.input_tensors if IS_KERAS_3 else node.keras_inputs
            if inputs:  # The node of an input has none.
                yield Call(
                    layer=node.operation if IS_KERAS_3 else node.layer,
                    inputs=tf.nest.flatten(inputs),
                    outputs=tf.nest.flatten(node.output_tensors if IS_KERAS_3 else node.outputs),
                )


def shape_of(tensor: Any) -> tuple[int | None, ...]:
    """Returns the static shape of a Keras tensor, () if not even the rank is known."""
    shape = tf.TensorShape(tensor.shape)
    return () if shape.rank is None else tuple(shape.as_list())


def is_channels_first(model: Any) -> bool:
    """Returns whether a model's maps have their channels first, as its convolutions and pools say.

    If these differ, or there are none, what is set for all of Keras counts.
    """
    formats = {
        layer.data_format
        for layer in sublayers(model)
        if hasattr(layer, "data_format")
        and (hasattr(layer, "kernel_size") or hasattr(layer, "pool_size"))
    }
    (found,) = formats if len(formats) == 1 else (tf.keras.backend.image_data_format(),)
    return bool(found == "channels_first")


def sublayers(layer: Any) -> list[Any]:
    """Returns the layer and all layers inside it, a layer before those that it holds."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def _function(layer: Any) -> Any:
    """Returns the object that holds the nodes, None for all other layers."""
    if isinstance(layer, tf.keras.Sequential) and IS_KERAS_3:
        return layer._functional
    if not isinstance(layer, tf.keras.Model):
        return None
    return layer if getattr(layer, "_nodes_by_depth", None) else None
