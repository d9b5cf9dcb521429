"""Sizes that may be known only when a graph runs, and checks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

# A size that is known while the graph is built, or a scalar int64 tensor.
Dim: TypeAlias = "int | tf.Tensor"
Pair: TypeAlias = tuple[int, int]

LARGEST_INTEGER = 2**31 - 1
AT_MOST_LARGEST = f", at most {LARGEST_INTEGER}"  # ends the rule of an integer attribute


class Checks:
    """The checks of one operator, whose name begins every message."""

    def __init__(self, operator: str) -> None:
        self._operator = operator

    def error(self, rule: str) -> ValueError:
        """Returns the error that says which rule was broken."""
        return ValueError(f"{self._operator}: {rule}")

    def rank(self, name: str, layout: str, rank: int, tensor: tf.Tensor | None) -> None:
        """Raises ValueError if the static rank is another one."""
        if tensor is not None and tensor.shape.rank not in (None, rank):
            raise self.error(
                f"{name} must have rank {rank} {layout}, got shape {text(tensor.shape)}"
            )

    def at_run_time(
        self, name: str, layout: str, got: Sequence[Dim], expected: Sequence[Dim]
    ) -> None:
        """Asserts sizes that cannot be checked statically."""
        if not known(*got, *expected):
            tf.debugging.assert_equal(
                tf.stack([tf.cast(dim, tf.int64) for dim in got]),
                tf.stack([tf.cast(dim, tf.int64) for dim in expected]),
                message=f"{self._operator}: {name} must have shape {layout}",
            )


def dims(tensor: tf.Tensor, rank: int) -> list[Dim]:
    """Returns the sizes of a tensor that must have this rank."""
    if tensor.shape.rank is None:
        # A wrong rank is then an error at run time rather than a wrong size.
        tensor = tf.ensure_shape(tensor, [None] * rank)
    static = tensor.shape.as_list()
    if None not in static:
        return static
    dynamic = tf.shape(tensor, out_type=tf.int64)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


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
    # LiteRT divides int32 alone.
    return size if divisor == 1 else tf.cast(tf.cast(size, tf.int32) // divisor, tf.int64)


def shape_of(*sizes: Dim) -> list[Dim]:
    """Returns a shape for `tf.reshape`, constant where it can be: it finds one size by itself."""
    unknown = [axis for axis, size in enumerate(sizes) if not known(size)]
    shape = list(sizes)
    if len(unknown) == 1 and 0 not in (size for size in sizes if known(size)):
        shape[unknown[0]] = -1
    return shape


def text(value: Dim | str | tf.TensorShape | Sequence[Dim | str]) -> str:
    """Returns a size or a shape as the compiled operator prints it: `[2,9,?,4]`."""
    if isinstance(value, (int, str)):
        return str(value)
    if isinstance(value, tf.TensorShape):
        value = ["?" if size is None else size for size in value.as_list()]
    elif not isinstance(value, (list, tuple)):
        return "?"
    return f"[{','.join(text(item) for item in value)}]"
