"""Normalisation of the arguments of operators: here of tensors, in `_geometry` of the others.

Here is checked what a tensor shape cannot tell: kinds, dtypes. Rules on shapes belong to the
compiled operator and to the reference, with one message each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable._geometry.attributes import (
    boolean,
    coordinates_of_maps,
    data_format,
    integer,
    number,
    padding,
    pair,
    points_of_levels,
    positive_pair,
)
from tf_deformable._geometry.sizes import shape_text

__all__ = [
    "boolean",
    "boxes",
    "coordinates",
    "coordinates_of_maps",
    "data_format",
    "indices",
    "integer",
    "number",
    "padding",
    "pair",
    "points_of_levels",
    "positive_pair",
    "real",
    "shape_text",
    "tensors",
]

_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


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


def real(op: str, argument: str, value: Any) -> tf.Tensor:
    """Converts to a tensor of real numbers, of any dtype.

    Raises:
        TypeError: the value cannot become a tensor.
        ValueError: no numbers, or complex ones.
    """
    tensor = _tensor(op, argument, value, None)
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise ValueError(f"{op}: {argument} must hold real numbers, got {tensor.dtype.name}")
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
