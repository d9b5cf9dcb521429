"""Normalisation of the arguments that are no tensors.

Here is checked what the operators cannot see any more: kinds and names. Rules on the values belong
to the compiled operator and to the reference, with one message each.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_deformable._geometry.data_format import DataFormat
from tf_deformable._geometry.padding import Padding
from tf_deformable._geometry.sizes import AT_MOST_LARGEST, LARGEST_INTEGER, Pair


def pair(op: str, argument: str, value: int | Sequence[int]) -> Pair:
    """Normalises an integer, meant for both axes, or two integers (y, x).

    Raises:
        TypeError: not integers.
        ValueError: not two of them.
    """
    rule = f"{op}: {argument} must be an integer or 2 integers (y, x), got {_text(value)}"
    values = _integers(value, rule)
    if isinstance(values, int):
        return values, values
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise ValueError(rule)
    return values[0], values[1]


def positive_pair(op: str, argument: str, value: int | Sequence[int]) -> Pair:
    """Normalises as `pair` does, and refuses numbers below 1 or beyond 32 bits.

    Raises:
        TypeError: not integers.
        ValueError: not two of them, or one is not positive, or is too large.
    """
    values = pair(op, argument, value)
    if min(values) < 1:
        raise ValueError(f"{op}: {argument} must be positive, got {_text(values)}")
    if max(values) > LARGEST_INTEGER:
        raise ValueError(f"{op}: {argument} must be{AT_MOST_LARGEST[1:]}, got {_text(values)}")
    return values


def integer(op: str, argument: str, value: int) -> int:
    """Normalises an integer.

    Raises:
        TypeError: not one.
    """
    rule = f"{op}: {argument} must be an integer, got {_text(value)}"
    result = _integers(value, rule)
    if not isinstance(result, int):
        raise TypeError(rule)
    return result


def integers(op: str, argument: str, value: Sequence[int], rule: str) -> tuple[int, ...]:
    """Normalises a list of integers that `rule` describes; an empty one is an error.

    Raises:
        TypeError: not integers.
        ValueError: no list of them.
    """
    message = f"{op}: {argument} must be {rule}, got {_text(value)}"
    values = _integers(value, message)
    if isinstance(values, int) or not values or not all(isinstance(v, int) for v in values):
        raise ValueError(message)
    return tuple(values)


def points_of_levels(op: str, value: Sequence[int] | None) -> tuple[int, ...]:
    """Normalises the points of each level; None, all levels having as many, becomes `()`.

    Raises:
        TypeError: not integers.
        ValueError: no list of them.
    """
    if value is None:
        return ()
    return integers(op, "num_points", value, "None or a list of integers, one for each level")


def number(op: str, argument: str, value: float) -> float:
    """Normalises a real number to the nearest float32, which is what operators' attributes are.

    Raises:
        TypeError: not one.
        ValueError: float32 has it as infinity, or as zero.
    """
    rule = f"{op}: {argument} must be a number, got {_text(value)}"
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise TypeError(rule)
    try:
        given = float(value)
    except (TypeError, ValueError):
        raise TypeError(rule) from None
    with np.errstate(over="ignore", under="ignore"):
        nearest = float(np.float32(given))
    if np.isfinite(given) and (not np.isfinite(nearest) or (nearest == 0) != (given == 0)):
        raise ValueError(f"{op}: {argument} must be in the range of float32, got {given:g}")
    return nearest


def boolean(op: str, argument: str, value: bool) -> bool:
    """Normalises True or False; numbers are neither.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {argument} must be True or False, got {_text(value)}")
    return bool(value)


def coordinates_of_maps(op: str, value: str) -> str:
    """Checks that the value is "normalized" or "pixels".

    Raises:
        ValueError: anything else.
    """
    if value not in ("normalized", "pixels"):
        raise ValueError(f'{op}: coordinates must be "normalized" or "pixels", got {_text(value)}')
    return value


def data_format(op: str, value: str) -> DataFormat:
    """Checks that the value is "NHWC" or "NCHW".

    Raises:
        ValueError: anything else.
    """
    if value == "NHWC":
        return "NHWC"
    if value == "NCHW":
        return "NCHW"
    raise ValueError(f'{op}: data_format must be "NHWC" or "NCHW", got {_text(value)}')


def padding(op: str, value: str | Sequence[Sequence[int]], layout: DataFormat) -> Padding:
    """Normalises "SAME", "VALID" (in any case), or one pair per axis of `layout`.

    The spelling is that of `tf.nn.conv2d`.

    Raises:
        TypeError: neither a string nor integers.
        ValueError: another string, another number of pairs, or padding of batch or channels.
    """
    explicit = "[[0,0],[top,bottom],[left,right],[0,0]]"
    if layout == "NCHW":
        explicit = "[[0,0],[0,0],[top,bottom],[left,right]]"
    rule = f'{op}: padding must be "SAME", "VALID" or {explicit}, got {_text(value)}'
    if isinstance(value, str):
        if value.upper() == "SAME":
            return "SAME"
        if value.upper() == "VALID":
            return "VALID"
        raise ValueError(rule)
    pads = _integers(value, rule)
    if isinstance(pads, int):
        raise TypeError(rule)
    if len(pads) != 4 or not all(isinstance(p, list) and len(p) == 2 for p in pads):
        raise ValueError(rule)
    if not all(isinstance(p, int) for axis in pads for p in axis):
        raise ValueError(rule)
    first = 1 if layout == "NHWC" else 2
    for axis in {0, 1, 2, 3} - {first, first + 1}:
        if pads[axis] != [0, 0]:
            raise ValueError(rule)
    (top, bottom), (left, right) = pads[first : first + 2]
    return (top, bottom), (left, right)


def _integers(value: Any, rule: str) -> Any:
    """The nested sequence as lists of Python integers; numpy's integers count.

    Attributes of operators have 64 bits. What these hold is for the operators to judge.
    """
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise TypeError(rule)
    try:
        number = operator.index(value)
    except TypeError:
        pass
    else:
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{rule}, which 64 bits do not hold")
        return number
    try:
        items = list(value)
    except TypeError:
        raise TypeError(rule) from None
    return [_integers(item, rule) for item in items]


def _text(value: Any) -> str:
    """Sequences without spaces, as the compiled operators print shapes."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_text(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) and value != "?" else str(value)
