"""What every layer of the package shares: the two Kerases, the backend, precision, validation."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._geometry.data_format import TO_NCHW, TO_NHWC
from tf_deformable._geometry.sizes import AT_MOST_LARGEST, LARGEST_INTEGER
from tf_deformable._keras import IS_KERAS_3, as_output_shape

__all__ = ["IS_KERAS_3", "OperatorLayer", "as_integer", "as_output_shape", "fresh"]

_AUTOCAST = "autocast" if IS_KERAS_3 else "experimental_autocast"


class OperatorLayer(tf.keras.layers.Layer):
    """A layer whose arithmetic is an operator of `tf_deformable.ops`.

    It may have several inputs. They come as a list, as a dictionary by name, or as arguments, and
    reach `call` as a list; a single one as it is.
    """

    built: bool  # Keras sets it.
    data_format: str  # of layers that take maps: "channels_last" or "channels_first"
    _supports_jit = True
    _reference_supports_jit = True

    def __init__(self, **kwargs: Any) -> None:
        if tf.keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"{type(self).__name__} needs the TensorFlow backend of Keras (set "
                "KERAS_BACKEND=tensorflow before Keras is imported), got "
                f"{tf.keras.backend.backend()!r}"
            )
        # Keras would cast every input, and round boxes and offsets by that. Layers cast what is to
        # be cast, whatever `autocast` says.
        kwargs["autocast"] = False
        super().__init__(**kwargs)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, inputs: Any, *others: Any, **kwargs: Any) -> Any:
        """Calls the layer, as every Keras layer is called."""
        inputs = self.gather_inputs(inputs, others, kwargs)
        return super().__call__(inputs, **kwargs)

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        raise NotImplementedError

    def gather_inputs(self, inputs: Any, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the inputs as `call` takes them; removes them from `kwargs`."""
        names = self.names_of_inputs
        if len(names) == 1:
            return inputs if not others else [inputs, *others]
        if isinstance(inputs, dict):
            if set(inputs) != set(names):
                raise self._error("inputs", f"must have the keys {list(names)}", list(inputs))
            return [inputs[name] for name in names]
        # Keras gives `mask` a meaning of its own.
        named = [kwargs.pop(name) for name in names[1:] if name != "mask" and name in kwargs]
        return [inputs, *others, *named] if others or named else inputs

    @property
    def _sampling_dtype(self) -> str:
        """The dtype of offsets, mask and positions: half precision would round them."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    @property
    def supports_jit(self) -> bool:
        """Whether XLA can compile the layer: Keras 3 asks for it (`jit_compile="auto"`).

        The reference is plain TensorFlow. The native operators can be compiled with TensorFlow 2.20
        or later; on a GPU, if the library has the CUDA kernels.
        """
        if config.get_backend() == "reference" and not self._reference_supports_jit:
            return False
        return self._supports_jit and self.operators_support_jit()

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:  # Keras assigns it in Layer.__init__.
        self._supports_jit = value

    @staticmethod
    def operators_support_jit() -> bool:
        """Whether XLA can compile the operators, as far as that does not depend on a layer."""
        return config.get_backend() == "reference" or _native.supports_xla()

    def _cast(self, value: Any) -> tf.Tensor:
        """Returns a tensor or weight of the layer in the layer's compute dtype.

        Keras does so by itself inside `call` alone, and for floating-point inputs alone.
        """
        return tf.cast(value, self.compute_dtype)

    def _cast_sampling(self, value: Any) -> tf.Tensor:
        """Returns offsets, a mask, or a weight of the branch in the dtype of positions."""
        return tf.cast(value, self._sampling_dtype)

    def _add_branch_weight(self, **arguments: Any) -> Any:
        """Adds a weight that Keras does not cast to the compute dtype."""
        return self.add_weight(**arguments, **{_AUTOCAST: False})

    def _check_is_built(self) -> None:
        if not self.built:
            raise ValueError(f"{type(self).__name__}: the layer must be built (called) first")

    def _data_format(self, value: str | None) -> str:
        return self._choice(
            "data_format",
            tf.keras.backend.image_data_format() if value is None else value,
            ("channels_last", "channels_first"),
        )

    def _channels_last(self, tensor: Any) -> tf.Tensor:
        """Returns a map, which a layer of this `data_format` is given, as operators take it."""
        if self.data_format == "channels_first":
            return tf.transpose(tensor, TO_NHWC)
        return tf.convert_to_tensor(tensor)

    def _in_data_format(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns a map, which an operator has made, as a layer of this `data_format` gives it."""
        return tf.transpose(tensor, TO_NCHW) if self.data_format == "channels_first" else tensor

    def _choice(self, argument: str, value: Any, choices: tuple[str, ...]) -> str:
        if not isinstance(value, str) or value.lower() not in choices:
            *others, last = map(repr, choices)
            raise self._error(argument, f"must be {', '.join(others)} or {last}", value)
        return value.lower()

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
        numbers = [n for n in map(as_integer, pair) if n is not None and 1 <= n <= LARGEST_INTEGER]
        if len(pair) != 2 or len(numbers) != 2:
            rule = f"must be a positive integer or two of them (y, x){AT_MOST_LARGEST}"
            raise self._error(argument, rule, value)
        return numbers[0], numbers[1]


def fresh(initializer: Any) -> Any:
    """A copy that draws numbers of its own: Keras' initializers repeat theirs when called again."""
    if hasattr(initializer, "get_config"):
        return type(initializer).from_config(initializer.get_config())
    return initializer


def as_integer(value: Any) -> int | None:
    """Returns the value of a Python or NumPy integer, None for everything else (bool included)."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
