"""How many operations the operators take, for TensorFlow's profiler (`tf.compat.v1.profiler`).

Multiply-adds count as two, as in TensorFlow's own convolutions. A bilinear sample of a channel is
four of them, five with a mask, as in `tf_deformable.models.compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_BILINEAR = 4


def register_statistics() -> None:
    """Tells the profiler of the operators, unless this process has done so."""
    from tensorflow.python.framework import ops  # no public name leads to it

    for op_type, count in (
        ("Conv2D", _conv2d),
        ("Conv2DBranch", _conv2d_branch),
        ("RoiPool", _roi_pool),
        ("MultiScaleDeformableAttention", _attention),
    ):
        try:
            ops.RegisterStatistics(f"TFDeformable>{op_type}", "flops")(_as_statistics(ops, count))
        except KeyError:  # It is there, from an earlier execution of the module.
            pass


def _as_statistics(ops: Any, count: Callable[[tf.Operation], int]) -> Callable[..., Any]:
    def statistics(graph: tf.Graph, node: Any) -> Any:
        return ops.OpStats("flops", 2 * count(graph.get_operation_by_name(node.name)))

    return statistics


def _conv2d(op: tf.Operation) -> int:
    inputs, filters, offsets = (_sizes(tensor) for tensor in op.inputs[:3])
    samples = math.prod(offsets) // 2 * inputs[3]  # if they all had one offset group
    taps = filters[0] * filters[1]
    samples //= offsets[3] // (2 * taps)
    per_sample = _BILINEAR + op.get_attr("num_masks")
    return samples * per_sample + math.prod(_sizes(op.outputs[0])) * math.prod(filters[:3])


def _conv2d_branch(op: tf.Operation) -> int:
    filters = _sizes(op.inputs[1])
    return math.prod(_sizes(op.outputs[0])[:3]) * math.prod(filters)


def _roi_pool(op: tf.Operation) -> int:
    samples = op.get_attr("samples_per_bin")
    if samples == 0:
        raise ValueError("samples_per_bin=0: the boxes decide how many samples there are")
    return math.prod(_sizes(op.outputs[0])) * samples**2 * _BILINEAR


def _attention(op: tf.Operation) -> int:
    value, _, _, weights = op.inputs
    depth = _sizes(value)[3]
    return math.prod(_sizes(weights)) * depth * (_BILINEAR + 1)


def _sizes(tensor: tf.Tensor) -> list[int]:
    """The sizes of a tensor; the profiler passes over an operation that raises ValueError."""
    tensor.shape.assert_is_fully_defined()
    return list(tensor.shape.as_list())
