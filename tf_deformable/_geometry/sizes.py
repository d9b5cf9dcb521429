"""Sizes that may be known only when a graph runs, and checks of them.

Sizes that are known need no TensorFlow: those of JAX's arrays always are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tf_deformable._geometry.data_format import TO_NHWC, DataFormat, in_format

if TYPE_CHECKING:
    import tensorflow as tf

# A size that is known while the graph is built, or a scalar int64 tensor.
Dim: TypeAlias = "int | tf.Tensor"
Pair: TypeAlias = tuple[int, int]
T = TypeVar("T")

LARGEST_INTEGER = 2**31 - 1
AT_MOST_LARGEST = f", at most {LARGEST_INTEGER}"  # ends the rule of an integer attribute
_MOST_ELEMENTS = 2**48  # of an output: memory for more cannot be addressed


class Checks:
    """The checks of one operator, whose name begins every message.

    Maps are checked with their channels last. Messages show them as the caller gave them.

    Args:
        operator: its name.
        axes: of its arguments, by their names, as messages write them: `{"boxes": "[R,4]"}`.
        maps: names of the arguments that callers may give with channels second; their axes are
            written with channels last.
        data_format: in which order the caller has the axes of maps.
    """

    def __init__(
        self,
        operator: str,
        axes: Mapping[str, str] | None = None,
        maps: Collection[str] = (),
        data_format: DataFormat = "NHWC",
    ) -> None:
        self._operator = operator
        self._axes = axes or {}
        self._maps = maps
        self._data_format = data_format

    def error(self, rule: str) -> ValueError:
        """Returns the error that says which rule was broken."""
        return ValueError(f"{self._operator}: {rule}")

    def rank(self, name: str, tensor: Any) -> None:
        """Raises ValueError if a tensor is known to have other axes than the argument, or fewer.

        Args:
            name: of the argument.
            tensor: of TensorFlow or JAX, as the caller gave it; None if it was not given.
        """
        shape = None if tensor is None else static_shape(tensor)
        rank = self._axes[name].count(",") + 1
        if shape is not None and len(shape) != rank:
            raise self.error(
                f"{name} must have rank {rank} {self._axes_text(name)}, got shape {text(shape)}"
            )

    def channels_last(
        self, tensors: Mapping[str, Any], transpose: Callable[[Any, tuple[int, ...]], Any]
    ) -> dict[str, Any]:
        """Returns the arguments with their maps as the operator takes them.

        Args:
            tensors: as the caller gave them; those that are None stay so.
            transpose: that of TensorFlow or JAX.

        Raises:
            ValueError: a map that is to be transposed is known to have another rank.
        """
        if self._data_format == "NHWC":
            return dict(tensors)
        result = dict(tensors)
        for name, tensor in tensors.items():
            if name in self._maps and tensor is not None:
                self.rank(name, tensor)
                result[name] = transpose(tensor, TO_NHWC)
        return result

    def shape(self, name: str, tensor: Any) -> str:
        """Returns the static shape that the caller gave an argument: `[2,9,?,4]`."""
        shape = static_shape(tensor)
        return "?" if shape is None else text(self._as_given(name, shape))

    def wrong_shape(self, name: str, expected: Sequence[Dim | str], tensor: Any) -> ValueError:
        """Returns the error of an argument that has not the shape expected."""
        return self.error(
            f"{name} must have shape {self._axes_text(name)} = "
            f"{text(self._as_given(name, expected))}, got shape {self.shape(name, tensor)}"
        )

    def output(self, *sizes: Dim) -> None:
        """Raises ValueError if the output is too large, as far as is known.

        No size counts for less than 1: where there are no boxes or images, one must be possible.
        """
        if math.prod(max(size, 1) for size in sizes if isinstance(size, int)) > _MOST_ELEMENTS:
            raise self.error(
                f"output must have at most {_MOST_ELEMENTS} elements, got shape "
                f"{text(self._as_given('output', sizes))}"
            )

    def at_run_time(
        self, name: str, got: Sequence[Dim], expected: Sequence[Dim], axes: str | None = None
    ) -> None:
        """Asserts sizes that cannot be checked statically.

        Args:
            name: of the argument.
            got: some or all of its sizes.
            expected: what they must be.
            axes: in place of the argument's.
        """
        if not known(*got, *expected):
            import tensorflow as tf

            tf.debugging.assert_equal(
                tf.stack([tf.cast(dim, tf.int64) for dim in self._as_given(name, got)]),
                tf.stack([tf.cast(dim, tf.int64) for dim in self._as_given(name, expected)]),
                message=(
                    f"{self._operator}: {name} must have shape {axes or self._axes_text(name)}"
                ),
            )

    def _as_given(self, name: str, axes: Sequence[T]) -> list[T]:
        """What belongs to the axes of an argument in the caller's order, if it is all of them."""
        is_map = name in self._maps and len(axes) == 4
        return in_format(axes, self._data_format) if is_map else list(axes)

    def _axes_text(self, name: str) -> str:
        return text(self._as_given(name, self._axes[name].strip("[]").split(",")))


def static_shape(tensor: Any) -> list[int | str] | None:
    """Returns the sizes known now of a tensor of TensorFlow or JAX, "?" for others.

    None if not even the rank is known.
    """
    if isinstance(tensor.shape, tuple):
        return list(tensor.shape)
    if tensor.shape.rank is None:
        return None
    return ["?" if size is None else size for size in tensor.shape.as_list()]


def dims(tensor: Any, rank: int) -> list[Dim]:
    """Returns the sizes of a tensor that must have this rank."""
    static = static_shape(tensor)
    if static is not None and "?" not in static:
        return static
    import tensorflow as tf

    if static is None:
        # A wrong rank is then an error at run time rather than a wrong size.
        tensor = tf.ensure_shape(tensor, [None] * rank)
        static = ["?"] * rank
    dynamic = tf.shape(tensor, out_type=tf.int64)
    return [dynamic[axis] if size == "?" else size for axis, size in enumerate(static)]


def known(*sizes: Dim) -> bool:
    """Returns whether all sizes are known while the graph is built."""
    return all(isinstance(size, int) for size in sizes)


def differ(got: Sequence[Dim], expected: Sequence[Dim]) -> bool:
    """Returns whether two shapes are known to differ."""
    return any(known(a, b) and a != b for a, b in zip(got, expected, strict=True))


def first_known(*sizes: Dim) -> Dim:
    """Returns the first size that is known, or the first."""
    return next((size for size in sizes if known(size)), sizes[0])


def floor_divide(size: Dim, divisor: int) -> Dim:
    """Returns the quotient, rounded down, of a size that fits in int32."""
    if isinstance(size, int):
        return size // divisor
    import tensorflow as tf

    # LiteRT divides int32 alone.
    return size if divisor == 1 else tf.cast(tf.cast(size, tf.int32) // divisor, tf.int64)


def shape_of(*sizes: Dim) -> list[Dim]:
    """Returns a shape for `tf.reshape`, constant where it can be: it finds one size by itself."""
    unknown = [axis for axis, size in enumerate(sizes) if not known(size)]
    shape = list(sizes)
    if len(unknown) == 1 and 0 not in (size for size in sizes if known(size)):
        shape[unknown[0]] = -1
    return shape


def shape_text(tensor: Any) -> str:
    """Returns the static shape of a tensor as the compiled operator prints it: `[2,9,?,4]`."""
    shape = static_shape(tensor)
    return "?" if shape is None else text(shape)


def text(value: Dim | str | Sequence[Dim | str]) -> str:
    """Returns a size or a shape as the compiled operator prints it; "?" where it is not known."""
    if isinstance(value, (int, str)):
        return str(value)
    if not isinstance(value, (list, tuple)):
        return "?"
    return f"[{','.join(text(item) for item in value)}]"
