"""The calls of a model's deformable layers: which, in which order, with which tensors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable._geometry.padding import explicit_padding
from tf_deformable.graphs.layer_calls import LayerCall, inlined_functions, listening
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.ops.sampling import sampling_positions

Array = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class LayerSamples:
    """Where one deformable convolution sampled a batch.

    Positions are (y, x) in pixels of the map that the layer reads, (0, 0) the centre of its first
    pixel. Sizes: `N` images, `Ho`, `Wo` outputs, `G` offset groups, `kh`, `kw` taps.
    """

    name: str  # of the layer, with #0, #1, ... if it was called several times
    layer: DeformableConv2D
    input_size: tuple[int, int]
    positions: Array  # [N, Ho, Wo, G, kh, kw, 2]
    regular: Array  # [Ho, Wo, kh, kw, 2], without offsets
    mask: Array | None  # [N, Ho, Wo, G, kh, kw], None if the layer is not modulated

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the layer's output."""
        return self.regular.shape[0], self.regular.shape[1]

    @property
    def offsets(self) -> Array:
        """By how much the layer moves its samples: `[N, Ho, Wo, G, kh, kw, 2]`, (dy, dx)."""
        return self.positions - self.regular[:, :, np.newaxis]


def layer_samples(model: Any, inputs: Any) -> list[LayerSamples]:
    """Runs a model and returns where each of its deformable convolutions sampled.

    Args:
        model: a Keras model of any kind (functional, Sequential, subclassed, nested), or any
            callable that calls `DeformableConv2D` layers.
        inputs: a batch, as the model is called with. It runs in inference mode.

    Returns:
        One for each call of a `DeformableConv2D`, in the order of execution.

    Raises:
        ValueError: the model called no such layer.
    """
    calls = [c for c in record(model, inputs) if isinstance(c.layer, DeformableConv2D)]
    if not calls:
        raise ValueError(f"layer_samples: the model must call a DeformableConv2D, {_text(model)}")
    return [samples_of(call) for call in calls]


def record(model: Any, inputs: Any) -> list[LayerCall]:
    """Runs a model eagerly and returns the calls of the package's layers, in order."""
    calls: list[LayerCall] = []
    # Inside a tf.function of the model's own there would be no values, or no call of Python at all.
    with inlined_functions(), listening(calls.append):
        run_model(model, inputs)
    return named(calls)


def named(calls: Sequence[LayerCall]) -> list[LayerCall]:
    """Gives calls names that tell them apart."""
    count = collections.Counter(call.layer.name for call in calls)
    seen: collections.Counter[str] = collections.Counter()
    result = []
    for call in calls:
        name = call.layer.name
        unique = f"{name}#{seen[name]}" if count[name] > 1 else name
        seen[name] += 1
        result.append(dataclasses.replace(call, name=unique))
    return result


def select(calls: Sequence[Any], layers: Sequence[Any], argument: str) -> list[int]:
    """Returns the indices of the calls that are meant by names of calls or layers, or layers.

    Raises:
        ValueError: no call is meant, or several.
    """
    indices = []
    for wanted in layers:
        found = [
            i
            for i, call in enumerate(calls)
            if wanted is call.layer or wanted in (call.name, call.layer.name)
        ]
        if len(found) != 1:
            names = ", ".join(repr(call.name) for call in calls)
            shown = wanted if isinstance(wanted, str) else getattr(wanted, "name", wanted)
            number = "several calls" if found else "no call"
            raise ValueError(
                f"{argument} must name one call each of a DeformableConv2D of the model ({names}), "
                f"got {shown!r}: {number}"
            )
        indices.append(found[0])
    return indices


def run_model(model: Any, inputs: Any) -> Any:
    """Calls a model in inference mode."""
    if isinstance(model, tf.keras.layers.Layer):
        return model(inputs, training=False)
    return model(inputs)


def split_taps(layer: DeformableConv2D, channels: tf.Tensor, *last: int) -> tf.Tensor:
    """`[N, Ho, Wo, G*kh*kw*...]` to `[N, Ho, Wo, G, kh, kw, ...]`."""
    shape = [layer.offset_groups, *layer.kernel_size, *last]
    return tf.reshape(channels, tf.concat([tf.shape(channels)[:3], shape], axis=0))


def to_numpy(tensor: tf.Tensor) -> Array:
    """Returns float32 (or float64) values."""
    return tf.cast(tensor, tf.float64 if tensor.dtype == tf.float64 else tf.float32).numpy()


def samples_of(call: LayerCall) -> LayerSamples:
    """Where the convolution of an eager call sampled."""
    layer = call.layer
    assert isinstance(layer, DeformableConv2D)
    features, offsets, mask = layer.sampled(call.inputs)
    height, width = features.shape[1:3]

    def positions(of: tf.Tensor) -> Array:
        return to_numpy(
            sampling_positions(
                of,
                kernel_size=layer.kernel_size,
                input_size=(height, width),
                strides=layer.strides,
                padding=explicit_padding(layer.padding_of_both_axes),
                dilations=layer.dilation_rate,
            )
        )

    per_group = offsets.shape[-1] // layer.offset_groups
    return LayerSamples(
        name=call.name,
        layer=layer,
        input_size=(height, width),
        positions=positions(offsets),
        regular=positions(tf.zeros([1, *offsets.shape[1:3], per_group], offsets.dtype))[0, :, :, 0],
        mask=None if mask is None else to_numpy(split_taps(layer, mask)),
    )


def _text(model: Any) -> str:
    return f"got {getattr(model, 'name', type(model).__name__)!r}"
