"""Sizes that may be known only when a graph runs, and checks of them.

Sizes that are known need no TensorFlow: those of JAX's arrays always are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import tensorflow as tf

# A size that is known while the graph is built, or a scalar int64 tensor.
Dim: TypeAlias = "int | tf.Tensor"
Pair: TypeAlias = tuple[int, int]

LARGEST_INTEGER = 2**31 - 1
AT_MOST_LARGEST = f", at most {LARGEST_INTEGER}"  # ends the rule of an integer attribute
_MOST_ELEMENTS = 2**48  # of an output: memory for more cannot be addressed


class Checks:
    """The checks of one operator, whose name begins every message."""

    def __init__(self, operator: str) -> None:
        self._operator = operator

    def error(self, rule: str) -> ValueError:
        """Returns the error that says which rule was broken."""
        return ValueError(f"{self._operator}: {rule}")

    def rank(self, name: str, layout: str, rank: int, tensor: Any) -> None:
        """Raises ValueError if the static rank of a tensor, if there is one, is another one."""
        shape = None if tensor is None else static_shape(tensor)
        if shape is not None and len(shape) != rank:
            raise self.error(f"{name} must have rank {rank} {layout}, got shape {text(shape)}")

    def output(self, *sizes: Dim) -> None:
        """Raises ValueError if the output is too large, as far as is known.

        No size counts for less than 1: where there are no boxes or images, one must be possible.
        """
        if math.prod(max(size, 1) for size in sizes if isinstance(size, int)) > _MOST_ELEMENTS:
            raise self.error(
                f"output must have at most {_MOST_ELEMENTS} elements, got shape {text(sizes)}"
            )

    def at_run_time(
        self, name: str, layout: str, got: Sequence[Dim], expected: Sequence[Dim]
    ) -> None:
        """Asserts sizes that cannot be checked statically."""
        if not known(*got, *expected):
            import tensorflow as tf

            tf.debugging.assert_equal(
                tf.stack([tf.cast(dim, tf.int64) for dim in got]),
                tf.stack([tf.cast(dim, tf.int64) for dim in expected]),
                message=f"{self._operator}: {name} must have shape {layout}",
            )


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
