"""Copies of models, with some of their layers replaced or changed."""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, is_compiled, is_graph, lambda_output_shape, sublayers
from tf_deformable.graphs.rebuild import rebuild
from tf_deformable.models.surgery.replace import copy_convolution, deformable_of


class Copier:
    """Copies models layer by layer; what is copied once is found again (layers may be shared)."""

    def __init__(
        self, chosen: set[int], changes: dict[int, dict[str, Any]], arguments: dict[str, Any]
    ) -> None:
        self._chosen = chosen
        self._changes = changes
        self._arguments = arguments
        self._copies: dict[int, tuple[Any, Any]] = {}  # outer models before what is in them

    def copy_model(self, model: Any) -> Any:
        """Returns a copy with new weights."""
        return rebuild(model, self._copy)

    def copy_weights(self) -> None:
        """Gives the copies the weights and `trainable` flags of what they are copies of."""
        for old, new in self._copies.values():
            if is_graph(old):
                new.trainable = old.trainable
                continue
            if id(old) in self._chosen:
                copy_convolution(old, new)
                continue
            if not isinstance(old, tf.keras.layers.Layer):  # an operation without weights
                continue
            for one, other in zip(sublayers(old), sublayers(new), strict=True):
                other.trainable = one.trainable
            try:
                new.set_weights(old.get_weights())
            except ValueError as error:
                if not self._changes:
                    raise
                raise ValueError(
                    f"deformify: dilate_last_stage: layer {old.name!r} is made for feature maps of "
                    "another size; use the network without its classifier (include_top=False): "
                    f"{error}"
                ) from error
            if hasattr(new, "finalize_state"):  # Normalization computes with copies of its weights.
                new.finalize_state()

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            if is_graph(layer):
                self._copies[id(layer)] = (layer, None)  # its place is before its layers'
                new = self.copy_model(layer)
            elif id(layer) in self._chosen:
                change = self._changes.get(id(layer), {})
                new = deformable_of(layer, change, self._arguments)
            else:
                new = self._copy_layer(layer)
            self._copies[id(layer)] = (layer, new)
        return self._copies[id(layer)][1]

    def _copy_layer(self, layer: Any) -> Any:
        if IS_KERAS_3 and isinstance(layer, tf.keras.layers.Lambda):  # It loads no functions.
            return tf.keras.layers.Lambda(
                layer.function,
                output_shape=lambda_output_shape(layer),
                mask=layer.mask,
                arguments=layer.arguments,
                name=layer.name,
                dtype=layer.get_config()["dtype"],
            )
        if IS_KERAS_3 and type(layer) is tf.keras.layers.Identity:
            # It does not tell its configuration, if it was made with a policy.
            return tf.keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
        try:
            return from_own_config(layer, self._changes.get(id(layer), {}))
        except Exception as error:  # That of a class of anybody's.
            raise ValueError(
                f"deformify: layer {layer.name!r} ({type(layer).__name__}) cannot be copied: its "
                f"class does not build it again from its get_config(): {error}"
            ) from error


def from_own_config(layer: Any, changes: dict[str, Any] | None = None) -> Any:
    """Returns a new layer from a layer's configuration, with some of the arguments changed."""
    config = {**layer.get_config(), **(changes or {})}
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    if not isinstance(layer, tf.keras.layers.Layer):  # an operation without weights
        return type(layer).from_config(config)
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if not takes_all:  # The constructor does not take what those of all layers do.
        names = {each.name for each in parameters}
        config = {name: value for name, value in config.items() if name in names}
    new = type(layer).from_config(config)
    if IS_KERAS_3:
        new.name = layer.name
        if not takes_all:
            new.dtype_policy = layer.dtype_policy
    return new


def is_copied(layer: Any) -> bool:
    """Returns whether a layer can be built again from its configuration."""
    try:
        from_own_config(layer)
    except Exception:
        return False
    return True


def compile_like(model: Any, copy: Any) -> None:
    """Compiles a copy as the model is, if Keras can do that from the configuration."""
    if not is_compiled(model) or type(copy) is not type(model):  # A class trains in its own way.
        return
    try:
        copy.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError):  # A loss or metric that is not registered.
        return
