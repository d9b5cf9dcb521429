"""The way of coordinates from a model's image to its deformable convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.analysis import _calls
from tf_deformable.graphs.layer_calls import LayerCall, inlined_functions, listening
from tf_deformable.graphs.receptive_field import Mapping, ReceptiveFields, axes_of, size_of
from tf_deformable.layers.deformable_conv2d import DeformableConv2D


class Paths:
    """The way of coordinates between a model's image and its deformable convolutions.

    Args:
        model: as `layer_samples` takes it; it must have run before.
        inputs: a batch, for its shapes; the image is the largest tensor of rank 4, or any of those
            of its size.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        calls: list[LayerCall] = []
        images: list[tf.Tensor] = []

        def forward(inputs: Any) -> None:
            images.extend(t for t in tf.nest.flatten(inputs) if t.shape.rank == 4)
            with inlined_functions(), listening(calls.append):
                _calls.run_model(model, inputs)

        graph = tf.function(forward).get_concrete_function(_specifications(inputs)).graph
        if not images:
            raise ValueError("sampling_locations: the inputs must have an image of rank 4")
        # A model may have further inputs, of one value for each image, say.
        largest = max(images, key=lambda t: math.prod(t.shape[1:]))
        self._image_axes = _image_axes(largest, calls)
        size = size_of(largest, self._image_axes)
        self._images = [t for t in images if size_of(t, self._image_axes) == size]
        self.calls = [c for c in _calls.named(calls) if isinstance(c.layer, DeformableConv2D)]
        self._fields = ReceptiveFields(graph.get_operations(), self.calls)

    def from_image(self, call: int) -> Mapping:
        """Pixels of a call's input map to pixels of the image (the first, if it reads several)."""
        for image in self._images:
            field = self._fields.of(image, self._image_axes).get(self.calls[call].features.ref())
            mapping = None if field is None else field.middle()
            if mapping is not None:
                return mapping
        raise ValueError(
            f"sampling_locations: positions of layer {self.calls[call].name!r} cannot be followed "
            "to the image, there is an operator between them that moves pixels in no regular way; "
            f"got {self._fields.ends(self._images[0], self._image_axes)}"
        )

    def between(self, earlier: int, later: int) -> Mapping | None:
        """Pixels of a call's input map to cells of an earlier call's output map, if it reads it."""
        source = self.calls[earlier]
        reached = self._fields.of(source.outputs, axes_of(source.layer))
        field = reached.get(self.calls[later].features.ref())
        return None if field is None else field.middle()

    def before(self, call: int) -> int | None:
        """The last of the calls whose output this call's input depends on."""
        earlier = range(call - 1, -1, -1)
        return next((i for i in earlier if self.between(i, call) is not None), None)


def _image_axes(image: tf.Tensor, calls: Sequence[LayerCall]) -> tuple[int, int]:
    """Images come channels last, unless they look as if not and a layer reads channels first."""
    first = any(getattr(c.layer, "data_format", "") == "channels_first" for c in calls)
    few = (1, 3, 4)
    if image.shape[3] not in few and (first or image.shape[1] in few):
        return 2, 3
    return 1, 2


def _specifications(inputs: Any) -> Any:
    def specification(value: Any) -> tf.TensorSpec:
        tensor = tf.convert_to_tensor(value)
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    return tf.nest.map_structure(specification, inputs)
