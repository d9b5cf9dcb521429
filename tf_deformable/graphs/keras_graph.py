"""A walk over the calls of layers that make up a functional or Sequential model.

The model is traced on the way, so that shapes and operators of every call are known.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable._keras import composite_spec, graph_calls, is_graph, sublayers
from tf_deformable.graphs.layer_calls import LayerCall, inlined_functions, listening
from tf_deformable.layers.deformable_conv2d import DeformableConv2D

Shape: TypeAlias = "tuple[int | None, ...]"


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer (or, in Keras 3, of an operation without weights) that is no model."""

    layer: Any
    path: str  # the layer's name, after those of the models that it is nested in
    inputs: list[Any]  # Keras tensors
    outputs: list[Any]
    read: list[tf.Tensor]  # the same in the traced graph
    made: list[tf.Tensor]

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of what the layer reads, () if not even the rank is known."""
        return [_known_shape(*pair) for pair in zip(self.inputs, self.read, strict=True)]

    @property
    def output_shapes(self) -> list[Shape]:
        """Shapes of what the layer makes, likewise."""
        return [_known_shape(*pair) for pair in zip(self.outputs, self.made, strict=True)]


@dataclasses.dataclass(frozen=True)
class Walk:
    """All calls of a model and its nested models, each after those it reads from."""

    calls: list[Call]
    inputs: list[Any]  # of the traced graph
    outputs: list[Any]
    convolutions: list[LayerCall]  # of the package's layers, those inside of custom layers too
    graph: tf.Graph


def walk(model: Any, input_size: tuple[int, int] | None = None) -> Walk:
    """Traces a model that `is_graph`, as it runs in inference.

    Args:
        model: functional or built Sequential model.
        input_size: (height, width) of the images, where the model takes any.
    """
    found: list[Call] = []
    convolutions: list[LayerCall] = []
    ends: list[list[Any]] = []

    def listener(call: LayerCall) -> None:
        if isinstance(call.layer, DeformableConv2D):
            convolutions.append(call)

    def forward(*values: Any) -> None:
        with inlined_functions(), listening(listener):
            ends.extend([list(values), _run(model, list(values), "", found)])

    rows = 2 if is_channels_first(model) else 1
    specifications = [_specification(tensor, input_size, rows) for tensor in model.inputs]
    graph = tf.function(forward).get_concrete_function(*specifications).graph
    inputs, outputs = ends
    return Walk(found, inputs, outputs, convolutions, graph)


def shape_of(tensor: Any) -> Shape:
    """Returns the static shape of a tensor, Keras' ones too, () if not even the rank is known."""
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


def _run(model: Any, values: list[Any], prefix: str, found: list[Call]) -> list[Any]:
    """Runs the calls of a model one by one and records them; returns the model's outputs."""
    tensors = dict(zip(map(id, model.inputs), values, strict=True))
    for call in graph_calls(model):
        path = prefix + call.layer.name
        read = [tensors[id(tensor)] for tensor in call.inputs]
        if is_graph(call.layer):
            made = _run(call.layer, read, path + "/", found)
        else:
            made = call.run(tensors)
            found.append(Call(call.layer, path, call.inputs, call.outputs, read, made))
        tensors.update(zip(map(id, call.outputs), made, strict=True))
    return [tensors[id(tensor)] for tensor in model.outputs]


def _specification(tensor: Any, input_size: tuple[int, int] | None, rows: int) -> Any:
    """What stands for an input of a model; `rows` is the axis of an image's height."""
    given = composite_spec(tensor)
    if given is not None:
        return given
    shape = list(shape_of(tensor))
    if input_size is not None and len(shape) == 4:
        for axis, size in zip((rows, rows + 1), input_size, strict=True):
            shape[axis] = size if shape[axis] is None else shape[axis]
    if getattr(tensor, "sparse", False):
        return tf.SparseTensorSpec(shape, tensor.dtype)
    return tf.TensorSpec(shape, tensor.dtype)


def _known_shape(tensor: Any, traced: Any) -> Shape:
    """The shape of a tensor, as Keras knows it or as it was traced."""
    shape = shape_of(tensor)
    return shape if shape and None not in shape[1:] else shape_of(traced)
