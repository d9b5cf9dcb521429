"""Loads and runs SavedModels in which attributes of our operators have been changed at random.

A script: `saved_models.py FOLDER FIRST COUNT` writes a model into the folder, changes it for each
of COUNT seeds, and prints how that ended. Any Python exception is a good end. Before each model its
seed is printed, so that the last line of a process that died names it.
"""

from __future__ import annotations

import collections
import pathlib
import random
import sys
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import tf_deformable
from tests.hostile.raw_calls import INTEGERS, NUMBERS

SHAPES = [[1, 5, 6, 4], [1, 5, 6, 18], [1, 5, 6, 9], [2, 4]]
STRINGS = [b"", b"SAME", b"VALID", b"EXPLICIT", b"pixels", b"x" * 1000, b"\xff"]
# How many tensors a list has. Of more TensorFlow itself would make a list, before it asks us.
COUNTS = [-1, 0, 1, 2, 3, 1000]


class _Module(tf.Module):
    """All operators and their gradients."""

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in SHAPES])
    def gradients(
        self, inputs: tf.Tensor, offsets: tf.Tensor, mask: tf.Tensor, boxes: tf.Tensor
    ) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, offsets, mask])
            maps = tf_deformable.deformable_conv2d(
                inputs, tf.ones([3, 3, 4, 4]), offsets, mask, bias=tf.ones([4])
            )
            pooled = tf_deformable.deformable_psroi_pool(
                maps, boxes, [0, 0], tf.zeros([2, 1, 1, 1, 2]), tf.ones([2, 2, 2]),
                output_size=2, group_size=2,
            )  # fmt: skip
            attended = tf_deformable.multi_scale_deformable_attention(
                tf.reshape(maps, [1, 30, 2, 2]), tf.constant([[5, 6]]),
                tf.fill([1, 3, 2, 1, 2, 2], 0.5), tf.ones([1, 3, 2, 1, 2]),
            )  # fmt: skip
            loss = tf.reduce_sum(pooled) + tf.reduce_sum(attended)
        return tape.gradient(loss, [inputs, offsets, mask])


def _change(choose: random.Random, node: Any) -> str:
    """Changes one attribute, or one input, of a node; returns what was changed."""
    if choose.random() < 0.15:
        index = choose.randrange(len(node.input))
        node.input[index] = choose.choice(node.input)
        return f"{node.op}: input {index}"
    name = choose.choice([name for name in node.attr if not name.startswith("_")])
    value = node.attr[name]
    kind = value.WhichOneof("value")
    if kind == "i":
        value.i = choose.choice(COUNTS if name.startswith("num_") else INTEGERS)
    elif kind == "f":
        value.f = choose.choice(NUMBERS)
    elif kind == "b":
        value.b = not value.b
    elif kind == "s":
        value.s = choose.choice(STRINGS)
    elif kind == "type":
        value.type = choose.choice([0, 1, 2, 3, 7, 14, 19])
    else:
        values = list(value.list.i) + [choose.choice(INTEGERS)] * choose.choice([0, 0, 1, 1000])
        if values:
            values[choose.randrange(len(values))] = choose.choice(INTEGERS)
        del value.list.i[:]
        value.list.i.extend(values[choose.randrange(2) :])
    return f"{node.op}: {name} = {str(value)[:100]!r}"


def main(folder: pathlib.Path, first: int, count: int) -> None:
    """Changes, loads and runs the models of these seeds."""
    tf.saved_model.save(_Module(), str(folder))
    file = folder / "saved_model.pb"
    original = file.read_bytes()
    tensors = [tf.ones(shape) for shape in SHAPES]
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + count):
        choose = random.Random(seed)
        model = saved_model_pb2.SavedModel.FromString(original)
        nodes = [
            node
            for function in model.meta_graphs[0].graph_def.library.function
            for node in function.node_def
            if node.op.startswith("TFDeformable>")
        ]
        changes = [_change(choose, choose.choice(nodes)) for _ in range(choose.choice([1, 1, 2]))]
        print(seed, changes, flush=True)
        file.write_bytes(model.SerializeToString())
        try:
            tf.saved_model.load(str(folder)).gradients(*tensors)
            ends["no error"] += 1
        except Exception as error:  # Any is a good end.
            ends[type(error).__name__] += 1
    print(dict(ends))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
