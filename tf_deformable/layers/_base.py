"""What every layer of the package shares: the two Kerases, the backend, precision, validation."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import tensorflow as tf

from tf_deformable import config

# `tf.keras` is Keras 3, or tf-keras when TF_USE_LEGACY_KERAS=1 was set before TensorFlow's import.
# The name of neither's version attribute is the other's; `keras.ops` came with Keras 3.
IS_KERAS_3 = hasattr(tf.keras, "ops")


class OperatorLayer(tf.keras.layers.Layer):
    """A layer whose arithmetic is an operator of `tf_deformable.ops`."""

    built: bool  # Keras sets it.
    _supports_jit = True

    def __init__(self, **kwargs: Any) -> None:
        if tf.keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"{type(self).__name__} needs the TensorFlow backend of Keras (set "
                "KERAS_BACKEND=tensorflow before Keras is imported), got "
                f"{tf.keras.backend.backend()!r}"
            )
        super().__init__(**kwargs)

    @property
    def supports_jit(self) -> bool:
        """Whether Keras 3 may choose XLA for a model with this layer (`jit_compile="auto"`).

        The native operators have no XLA lowering; the reference is plain TensorFlow.
        """
        return self._supports_jit and config.get_backend() == "reference"

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:  # Keras assigns it in Layer.__init__.
        self._supports_jit = value

    def _cast(self, value: Any) -> tf.Tensor:
        """Returns a tensor or weight of the layer in the layer's compute dtype.

        Keras does so by itself inside `call` alone, and for floating-point inputs alone.
        """
        return tf.cast(value, self.compute_dtype)

    def _error(self, argument: str, rule: str, value: Any) -> ValueError:
        return ValueError(f"{type(self).__name__}: {argument} {rule}, got {value!r}")

    def _positive_integer(self, argument: str, value: Any) -> int:
        number = as_integer(value)
        if number is None or number < 1:
            raise self._error(argument, "must be a positive integer", value)
        return number

    def _finite_number(
        self,
        argument: str,
        value: Any,
        *,
        at_least: float | None = None,
        above: float | None = None,
    ) -> float:
        number = float(value) if isinstance(value, Real) else math.nan
        rule = "must be a finite number"
        is_valid = math.isfinite(number) and not isinstance(value, bool)
        if at_least is not None:
            rule += f" of at least {at_least}"
            is_valid &= number >= at_least
        if above is not None:
            rule += f" above {above}"
            is_valid &= number > above
        if not is_valid:
            raise self._error(argument, rule, value)
        return number

    def _boolean(self, argument: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._error(argument, "must be True or False", value)
        return value

    def _positive_pair(self, argument: str, value: Any) -> tuple[int, int]:
        pair = value if isinstance(value, (tuple, list)) else (value, value)
        numbers = [n for n in map(as_integer, pair) if n is not None and n >= 1]
        if len(pair) != 2 or len(numbers) != 2:
            raise self._error(argument, "must be a positive integer or two of them (y, x)", value)
        return numbers[0], numbers[1]


def as_output_shape(shape: tuple[int | None, ...]) -> Any:
    """Returns the shape as the layers of the Keras in use return theirs."""
    return shape if IS_KERAS_3 else tf.TensorShape(shape)


def as_integer(value: Any) -> int | None:
    """Returns the value of a Python or NumPy integer, None for everything else (bool included)."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
