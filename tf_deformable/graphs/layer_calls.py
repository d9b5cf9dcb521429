"""The calls of the package's layers that a running model makes, whatever kind of model it is."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import OperatorLayer

_patching = threading.RLock()


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of one layer. A layer that a model calls twice has two."""

    layer: OperatorLayer
    inputs: Any  # a tensor, or the list of all that the layer is called with
    outputs: tf.Tensor
    name: str = ""  # of the layer, with #0, #1, ... if the model makes several calls of that name

    @property
    def features(self) -> Any:
        """The map that the layer samples."""
        return self.inputs[0] if isinstance(self.inputs, (list, tuple)) else self.inputs


@contextlib.contextmanager
def listening(listener: Callable[[LayerCall], None]) -> Iterator[None]:
    """Tells the listener of every call of the package's layers that this thread makes.

    For as long as the block runs, the layers' base class has a `__call__` of its own: so it works
    for layers that no model lists, and costs nothing at all other times.
    """
    thread = threading.get_ident()
    previous = OperatorLayer.__call__

    @tf.autograph.experimental.do_not_convert
    def call(layer: OperatorLayer, inputs: Any, *others: Any, **kwargs: Any) -> Any:
        inputs = layer.gather_inputs(inputs, others, kwargs)
        outputs = previous(layer, inputs, **kwargs)
        # Keras also calls layers with tensors of its own, that stand for shapes.
        if threading.get_ident() == thread and isinstance(outputs, tf.Tensor):
            listener(LayerCall(layer, inputs, outputs))
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
