"""Models built again from their graphs, with other layers in the place of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, is_plain_model, name_of_input


def pyramid_of(model: Any) -> dict[str, Any]:
    """Returns the maps that a backbone of KerasHub has beside its outputs, by their names."""
    pyramid = getattr(model, "pyramid_outputs", None)
    return dict(pyramid) if isinstance(pyramid, dict) else {}


def rebuild(model: Any, replace: Callable[[Any], Any]) -> Any:
    """Returns a model of the same graph, of the layers that `replace` returns for those of it.

    It is of the model's class, if that keeps the constructor of Keras, and else a functional model
    without what the class adds; but for `pyramid_outputs`, which it has as the model does.

    Args:
        model: model that `is_graph`.
        replace: is called with each layer that is no input. It may return the layer itself.
    """
    if isinstance(model, tf.keras.Sequential):
        layers = [replace(layer) for layer in model.layers]
        shape, dtype = tuple(model.inputs[0].shape), model.inputs[0].dtype
        name = model.inputs[0].name.split(":")[0]
        inputs = tf.keras.Input(batch_shape=shape, dtype=dtype, name=name)
        plain = is_plain_model(model)
        return (type(model) if plain else tf.keras.Sequential)([inputs, *layers], name=model.name)
    pyramid = pyramid_of(model)
    original = model
    if IS_KERAS_3 or pyramid or not is_plain_model(model):
        # Keras 3 would compile the copy, and fail on a loss that it cannot load.
        outputs = (model.output, pyramid) if pyramid else model.output
        original = tf.keras.Model(model.input, outputs, name=model.name)
    inputs = tf.nest.map_structure(_input_like, model.input) if IS_KERAS_3 else None
    copy = tf.keras.models.clone_model(original, inputs, clone_function=replace)
    if pyramid:
        outputs, pyramid = copy.output
        copy = tf.keras.Model(copy.input, outputs, name=model.name)
    if is_plain_model(model) and type(copy) is not type(model):
        copy = type(model)(copy.input, copy.output, name=model.name)
    if pyramid:
        copy.pyramid_outputs = pyramid
    return copy


def _input_like(tensor: Any) -> Any:
    """Returns an input of Keras 3 as another one. `clone_model` would call it by another name."""
    return tf.keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=name_of_input(tensor),
    )
