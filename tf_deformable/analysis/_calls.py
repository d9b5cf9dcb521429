"""The calls of a model's deformable layers: which, in which order, with which tensors."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.layers._base import OperatorLayer
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.ops.sampling import sampling_positions

Array = NDArray[np.floating[Any]]

_patching = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one layer. A layer that a model calls twice has two."""

    layer: OperatorLayer
    inputs: Any
    outputs: Any
    name: str = ""  # of the layer, with #0, #1, ... if the model makes several calls of that name


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


def record(model: Any, inputs: Any) -> list[Call]:
    """Runs a model eagerly and returns the calls of the package's layers, in order."""
    calls: list[Call] = []
    # Inside a tf.function of the model's own there would be no values, or no call of Python at all.
    with inlined_functions(), listening(calls.append):
        run_model(model, inputs)
    return named(calls)


def named(calls: Sequence[Call]) -> list[Call]:
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


@contextlib.contextmanager
def listening(listener: Callable[[Call], None]) -> Iterator[None]:
    """Tells the listener of every call of the package's layers that this thread makes.

    For as long as the block runs, the layers' base class has a `__call__` of its own: so it works
    for layers that no model lists, and costs nothing at all other times.
    """
    thread = threading.get_ident()
    previous = OperatorLayer.__call__

    @tf.autograph.experimental.do_not_convert
    def call(layer: OperatorLayer, inputs: Any, *others: Any, **kwargs: Any) -> Any:
        inputs = layer._gather(inputs, others, kwargs)
        outputs = previous(layer, inputs, **kwargs)
        # Keras also calls layers with tensors of its own, that stand for shapes.
        if threading.get_ident() == thread and isinstance(outputs, tf.Tensor):
            listener(Call(layer, inputs, outputs))
        return outputs

    with _patching:
        OperatorLayer.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            OperatorLayer.__call__ = previous  # type: ignore[method-assign]


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
    """Makes what is a tf.function a plain Python function, in the block."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


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


def samples_of(call: Call) -> LayerSamples:
    """Where the convolution of an eager call sampled."""
    layer = call.layer
    assert isinstance(layer, DeformableConv2D)
    features, offsets, mask = layer._sampled(call.inputs)
    height, width = features.shape[1:3]

    def positions(of: tf.Tensor) -> Array:
        return to_numpy(
            sampling_positions(
                of,
                kernel_size=layer.kernel_size,
                input_size=(height, width),
                strides=layer.strides,
                padding=layer.padding.upper(),
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
