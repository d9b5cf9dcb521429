"""Normalisation of the arguments that the operators share.

Here is checked what a tensor shape cannot tell: kinds, dtypes, names. Rules on shapes and on the
values of attributes belong to the compiled operator and to the reference, with one message each.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf

from tf_deformable._geometry.padding import Padding
from tf_deformable._geometry.sizes import Pair

DataFormat: TypeAlias = Literal["NHWC", "NCHW"]

_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


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


def tensors(
    op: str, values: Mapping[str, Any], sampling: Collection[str], optional: Collection[str] = ()
) -> dict[str, tf.Tensor | None]:
    """Converts arguments to tensors of one dtype, the one of the first.

    Those that say where and how strongly to sample may also be, all of them, float32 beside
    features in half precision, which would round positions.

    Python numbers and integer arrays take that dtype. What has a floating dtype of its own keeps
    it and must match: a silent cast would hide a loss of precision.

    Args:
        op: name of the operator, for messages.
        values: argument names to values.
        sampling: those that may be wider.
        optional: those that may be None, and then stay None.

    Raises:
        TypeError: a value cannot become a tensor.
        ValueError: the dtype is not supported, or differs from that of the first argument.
    """
    first, *others = values
    inputs = _tensor(op, first, values[first], None)
    if inputs.dtype not in _DTYPES:
        raise ValueError(
            f"{op}: {first} must have dtype float16, bfloat16, float32 or float64, "
            f"got {inputs.dtype.name}"
        )
    is_narrow = inputs.dtype in (tf.float16, tf.bfloat16)
    rule = f"the dtype of {first} ({inputs.dtype.name})"
    chosen: tuple[str, tf.DType] | None = None  # by the first of the sampling arguments

    converted: dict[str, tf.Tensor | None] = {first: inputs}
    for argument in others:
        value = values[argument]
        if value is None and argument in optional:
            converted[argument] = None
            continue
        allowed, its_rule = [inputs.dtype], rule
        if is_narrow and argument in sampling:
            if chosen is None:
                allowed, its_rule = [inputs.dtype, tf.float32], f"{rule} or float32"
            else:
                allowed, its_rule = [chosen[1]], f"the dtype of {chosen[0]} ({chosen[1].name})"
        tensor = _tensor(op, argument, value, allowed[0])
        if tensor.dtype not in allowed:
            raise ValueError(f"{op}: {argument} must have {its_rule}, got {tensor.dtype.name}")
        if argument in sampling and chosen is None:
            chosen = argument, tensor.dtype
        converted[argument] = tensor
    return converted


def coordinates(op: str, argument: str, value: Any, dtype: tf.DType) -> tf.Tensor:
    """Converts positions to a tensor that is float32 or float64.

    Python numbers and integers take the dtype given.

    Raises:
        TypeError: the value cannot become a tensor.
        ValueError: another dtype. Half precision would round positions by whole pixels.
    """
    tensor = _tensor(op, argument, value, dtype)
    if tensor.dtype.is_integer:
        return tf.cast(tensor, dtype)
    if tensor.dtype not in (tf.float32, tf.float64):
        raise ValueError(
            f"{op}: {argument} must have dtype float32, float64 or integers, "
            f"got {tensor.dtype.name}"
        )
    return tensor


def boxes(op: str, value: Any, dtype: tf.DType) -> tf.Tensor:
    """Converts boxes as `coordinates` does; an empty list or tuple has no boxes, `[0, 4]`.

    Raises:
        TypeError: the value cannot become a tensor.
        ValueError: another dtype.
    """
    if isinstance(value, (list, tuple)) and not value:
        return tf.zeros([0, 4], dtype)
    return coordinates(op, "boxes", value, dtype)


def indices(op: str, argument: str, value: Any) -> tf.Tensor:
    """Converts integers of any dtype to an int32 tensor; those beyond it become its limits.

    Raises:
        TypeError: the value cannot become a tensor.
        ValueError: not integers.
    """
    is_python = isinstance(value, (int, list, tuple))
    tensor = _tensor(op, argument, value, tf.int32 if is_python else None)
    if not tensor.dtype.is_integer:
        raise ValueError(f"{op}: {argument} must have an integer dtype, got {tensor.dtype.name}")
    if tensor.dtype.min >= tf.int32.min and tensor.dtype.max <= tf.int32.max:
        return tf.cast(tensor, tf.int32)
    wide = tf.cast(tensor, tf.int64)
    if tensor.dtype == tf.uint64:  # What int64 cannot hold came out negative.
        wide = tf.where(wide < 0, tf.int64.max, wide)
    # As tf.saturate_cast, which LiteRT cannot do to integers.
    return tf.cast(tf.maximum(tf.minimum(wide, tf.int32.max), tf.int32.min), tf.int32)


def check_rank(op: str, argument: str, layout: str, tensor: tf.Tensor) -> None:
    """Refuses a tensor that is known not to have the axes that `layout` names.

    Raises:
        ValueError: the rank differs.
    """
    rank = layout.count(",") + 1
    if tensor.shape.rank not in (None, rank):
        raise ValueError(
            f"{op}: {argument} must have rank {rank} {layout}, got shape {shape_text(tensor)}"
        )


def shape_text(tensor: tf.Tensor) -> str:
    """The static shape of a tensor as the compiled operators print it: `[2,9,?,4]`."""
    if tensor.shape.rank is None:
        return "?"
    return _text(["?" if size is None else size for size in tensor.shape.as_list()])


def _tensor(op: str, argument: str, value: Any, dtype: tf.DType | None) -> tf.Tensor:
    try:
        if value is None:
            raise TypeError("None is not a tensor")
        if isinstance(value, (np.ndarray, np.generic)):
            if tf.as_dtype(value.dtype).is_floating:
                return tf.convert_to_tensor(value)
            return tf.convert_to_tensor(value, dtype)
        if isinstance(value, (int, float, list, tuple)):
            return tf.convert_to_tensor(value, dtype)
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        kind = "None" if value is None else type(value).__name__
        raise TypeError(f"{op}: {argument} must be convertible to a tensor, got {kind}") from error


def _integers(value: Any, rule: str) -> Any:
    """The nested sequence as lists of Python integers; numpy's integers count."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise TypeError(rule)
    try:
        return operator.index(value)
    except TypeError:
        pass
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
