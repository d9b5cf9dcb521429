"""Calls the compiled operators with random shapes and attributes, most of them wrong.

A script: `raw_calls.py FIRST COUNT` makes the calls of COUNT seeds, eager and in a graph that knows
a part of the shapes, and prints how they ended. Any Python exception is a good end. Before each
call its seed is printed, so that the last line of a process that died names it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import random
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_deformable import _native

SIZES = [0, 1, 2, 3, 4, 5, 8, 9, 18]
LARGE_SIZES = [2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63 - 1]
INTEGERS = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 1024, 1025, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
NUMBERS = [math.nan, math.inf, -1.0, 0.0, 1e-45, 0.5, 1.0, 3e38]
MOST_ELEMENTS = 2**18  # of a tensor that an eager call is given

Shape = list[int]


@dataclasses.dataclass
class Call:
    """One call: `shapes` and `dtypes` by argument; `counts`: how many tensors a list has."""

    operator: str
    shapes: dict[str, Shape]
    dtypes: dict[str, tf.DType]
    counts: dict[str, int]
    attributes: dict[str, Any]

    def make(self, tensor: Callable[[str, Shape, tf.DType], Any]) -> None:
        """Makes the call with what `tensor` makes of each argument's name, shape and dtype."""
        arguments: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            dtype = self.dtypes.get(name, self.dtypes["features"])
            if name in self.counts:
                arguments[name] = [tensor(name, shape, dtype) for _ in range(self.counts[name])]
            else:
                arguments[name] = tensor(name, shape, dtype)
        getattr(_native.load(), self.operator)(**arguments, **self.attributes)


def _spoil(choose: random.Random, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Changes a size here and there, or all that there is."""
    anew = choose.random() < 0.3
    large = choose.choice([0, 0.1, 0.3])
    spoiled = {}
    for name, shape in shapes.items():
        shape = list(shape)
        if anew and choose.random() < 0.1:
            shape = shape[1:] if choose.random() < 0.5 else [*shape, 1]
        for axis in range(len(shape)):
            if anew or choose.random() < 0.04:
                sizes = LARGE_SIZES if choose.random() < large else SIZES
                shape[axis] = choose.choice(sizes)
        spoiled[name] = shape
    return spoiled


def _spoil_list(choose: random.Random, values: list[int]) -> list[int]:
    if choose.random() < 0.7:
        return values
    length = len(values) if choose.random() < 0.8 else choose.choice([0, 1, 3, 5])
    return [choose.choice([*INTEGERS, 1, 1, 2, 2]) for _ in range(length)]


def _convolution(choose: random.Random, gradient: bool) -> tuple[dict[str, Shape], dict, dict]:
    batch, height, width, filters, kernel_height, kernel_width, groups = (
        choose.randint(1, 4) for _ in range(7)
    )
    channels = groups * choose.randint(1, 3)
    taps = kernel_height * kernel_width
    shapes = {
        "inputs": [batch, height, width, channels],
        "filters": [kernel_height, kernel_width, channels, filters],
        "offsets": [batch, height, width, groups * taps * 2],
        "mask": [batch, height, width, groups * taps],
    }
    counts = {"mask": choose.choice([0, 1, 1, 2, 3])}
    if gradient:
        shapes["grad_output"] = [batch, height, width, filters]
    else:
        shapes["bias"] = [filters]
        counts["bias"] = choose.choice([0, 1, 1, 2])
    return shapes, counts, _window(choose)


def _window(choose: random.Random) -> dict[str, Any]:
    return {
        "strides": _spoil_list(choose, [1, 1]),
        "dilations": _spoil_list(choose, [1, 1]),
        "padding": choose.choice(["SAME", "SAME", "VALID", "EXPLICIT"]),
        "explicit_paddings": _spoil_list(choose, []),
    }


def _branch(choose: random.Random, gradient: bool) -> tuple[dict[str, Shape], dict, dict]:
    batch, height, width, channels, kernel_height, kernel_width = (
        choose.randint(1, 4) for _ in range(6)
    )
    samples = choose.randint(1, 3) * kernel_height * kernel_width
    masks = choose.choice([0, 1, 1, 2])
    filters = samples * (3 if masks else 2)
    shapes = {
        "inputs": [batch, height, width, channels],
        "filters": [kernel_height, kernel_width, channels, filters],
    }
    attributes = {**_window(choose), "largest_mask": choose.choice([*NUMBERS, 1.0, 2.0])}
    if not gradient:
        shapes["bias"] = [filters]
        return shapes, {}, {**attributes, "num_masks": masks}
    shapes["mask"] = shapes["grad_mask"] = [batch, height, width, samples]
    shapes["grad_offsets"] = [batch, height, width, samples * 2]
    return shapes, {"mask": masks, "grad_mask": masks}, attributes


def _roi_pool(choose: random.Random, gradient: bool) -> tuple[dict[str, Shape], dict, dict]:
    batch, height, width, boxes = (choose.randint(0, 4) for _ in range(4))
    group_size, depth, pooled_height, pooled_width = (choose.randint(1, 3) for _ in range(4))
    shapes = {
        "inputs": [batch, height, width, group_size**2 * depth],
        "boxes": [boxes, 4],
        "box_indices": [boxes],
        "offsets": [boxes, choose.randint(1, 3), choose.randint(1, 3), 1, 2],
        "mask": [boxes, pooled_height, pooled_width],
    }
    if gradient:
        shapes["grad_output"] = [boxes, pooled_height, pooled_width, depth]
    counts = {name: choose.choice([0, 1, 1, 2]) for name in ("offsets", "mask")}
    attributes = {
        "output_size": _spoil_list(choose, [pooled_height, pooled_width]),
        "group_size": _spoil_list(choose, [group_size])[:1] or [group_size],
        "samples_per_bin": _spoil_list(choose, [choose.randint(0, 4)])[:1] or [4],
    }
    attributes = {
        **attributes,
        "group_size": attributes["group_size"][0],
        "samples_per_bin": attributes["samples_per_bin"][0],
        "spatial_scale": choose.choice([*NUMBERS, 1.0, 1.0]),
        "gamma": choose.choice(NUMBERS),
        "aligned": choose.random() < 0.5,
    }
    return shapes, counts, attributes


def _attention(choose: random.Random, gradient: bool) -> tuple[dict[str, Shape], dict, dict]:
    batch, queries, heads, depth, levels, points = (choose.randint(0, 3) for _ in range(6))
    shapes = {
        "value": [batch, 6 * levels, heads, depth],
        "spatial_shapes": [levels, 2],
        "sampling_locations": [batch, queries, heads, levels, points, 2],
        "attention_weights": [batch, queries, heads, levels, points],
    }
    if gradient:
        shapes["grad_output"] = [batch, queries, heads * depth]
    attributes: dict[str, Any] = {"coordinates": choose.choice(["normalized", "pixels"])}
    if choose.random() < 0.4:
        attributes["num_points"] = _spoil_list(choose, [points] * levels)
        for name, pairs in (("sampling_locations", [2]), ("attention_weights", [])):
            shapes[name] = [batch, queries, heads, levels * points, *pairs]
    return shapes, {}, attributes


OPERATORS = {
    "tf_deformable_conv2d": _convolution,
    "tf_deformable_conv2d_branch": _branch,
    "tf_deformable_roi_pool": _roi_pool,
    "tf_deformable_multi_scale_deformable_attention": _attention,
}


def call_of(seed: int) -> Call:
    """Returns the call of a seed."""
    choose = random.Random(seed)
    operator = choose.choice(list(OPERATORS))
    gradient = choose.random() < 0.5
    shapes, counts, attributes = OPERATORS[operator](choose, gradient)
    features = choose.choice([tf.float16, tf.bfloat16, tf.float32, tf.float64])
    dtypes = {
        "features": features,
        "boxes": choose.choice([tf.float32, tf.float64]),
        "box_indices": tf.int32,
        "spatial_shapes": tf.int32,
    }
    if OPERATORS[operator] is _branch:
        wide = tf.float64 if features == tf.float64 else tf.float32
        dtypes.update({name: wide for name in shapes if name != "inputs"})
    name = f"{operator}_grad" if gradient else operator
    return Call(name, _spoil(choose, shapes), dtypes, counts, attributes)


def _eager(seed: int, call: Call) -> None:
    choose = random.Random(seed)

    def tensor(name: str, shape: Shape, dtype: tf.DType) -> tf.Tensor:
        if name == "spatial_shapes":
            levels = shape[0] if len(shape) == 2 and shape[1] == 2 else 0
            sizes = [2, 3] if choose.random() < 0.9 else choose.choices(INTEGERS[1:-3], k=2)
            return tf.constant([sizes] * levels, dtype, [levels, 2])
        return tf.zeros(shape, dtype)

    call.make(tensor)


def _traced(seed: int, call: Call) -> None:
    choose = random.Random(seed)

    def tensor(_: str, shape: Shape, dtype: tf.DType) -> Any:
        known = [None if choose.random() < 0.3 else size for size in shape]
        return tf.compat.v1.placeholder(dtype, None if choose.random() < 0.05 else known)

    with tf.Graph().as_default():
        call.make(tensor)


def main(first: int, count: int) -> None:
    """Makes the calls of these seeds."""
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + count):
        call = call_of(seed)
        print(seed, call, flush=True)
        fits = all(math.prod(shape) <= MOST_ELEMENTS for shape in call.shapes.values())
        for make in [_eager, _traced] if fits else [_traced]:
            try:
                make(seed, call)
                ends["no error"] += 1
            except Exception as error:  # Any is a good end.
                ends[type(error).__name__] += 1
    print(dict(ends))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
