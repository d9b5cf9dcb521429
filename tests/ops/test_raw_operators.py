"""Shape functions and rules of the compiled operators, called without what Python checks before.

A graph tells the shapes of what an operator gives without running it: sizes may be so large that
no machine has the memory, and may be unknown. A model's file may hold any attribute.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import _native, config

pytestmark = pytest.mark.skipif(
    config.get_backend() != "native", reason="calls the compiled operators"
)

LARGEST = 2**31 - 1
Shape = list[int | None] | None


@dataclasses.dataclass(frozen=True)
class Operator:
    """A good call: shapes of tensors, attributes. Lists of tensors have their number in counts."""

    name: str
    shapes: dict[str, Shape]
    attributes: dict[str, Any]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    integers: tuple[str, ...] = ()

    def outputs(self, **changes: Any) -> list[Any]:
        """The shapes of all outputs in a graph, with some shapes, attributes or counts changed."""
        shapes = {name: changes.pop(name, shape) for name, shape in self.shapes.items()}
        counts = {name: changes.pop(f"{name}_count", n) for name, n in self.counts.items()}
        with tf.Graph().as_default():
            tensors: dict[str, Any] = {}
            for name, shape in shapes.items():
                dtype = tf.int32 if name in self.integers else tf.float32
                of_list = [
                    tf.compat.v1.placeholder(dtype, shape) for _ in range(counts.get(name, 1))
                ]
                tensors[name] = of_list if name in counts else of_list[0]
            function = getattr(_native.load(), self.name)
            outputs = tf.nest.flatten(function(**tensors, **{**self.attributes, **changes}))
        return [None if output.shape.rank is None else output.shape.as_list() for output in outputs]


_WINDOWS = {"strides": [2, 1], "dilations": [1, 2], "padding": "VALID"}
CONV2D = Operator(
    "tf_deformable_conv2d",
    {
        "inputs": [2, 9, 12, 6],
        "filters": [3, 2, 3, 4],
        "offsets": [2, 4, 10, 36],
        "mask": [2, 4, 10, 18],
        "bias": [4],
    },
    _WINDOWS,
    {"mask": 1, "bias": 1},
)
CONV2D_GRADIENT = Operator(
    "tf_deformable_conv2d_grad",
    {
        **{name: shape for name, shape in CONV2D.shapes.items() if name != "bias"},
        "grad_output": [2, 4, 10, 4],
    },
    _WINDOWS,
    {"mask": 1},
)
BRANCH = Operator(
    "tf_deformable_conv2d_branch",
    {"inputs": [2, 9, 12, 6], "filters": [3, 2, 6, 36], "bias": [36]},
    {**_WINDOWS, "num_masks": 1},
)
BRANCH_GRADIENT = Operator(
    "tf_deformable_conv2d_branch_grad",
    {
        "inputs": [2, 9, 12, 6],
        "filters": [3, 2, 6, 36],
        "mask": [2, 4, 10, 12],
        "grad_offsets": [2, 4, 10, 24],
        "grad_mask": [2, 4, 10, 12],
    },
    _WINDOWS,
    {"mask": 1, "grad_mask": 1},
)
ROI_POOL = Operator(
    "tf_deformable_roi_pool",
    {
        "inputs": [2, 9, 12, 24],
        "boxes": [5, 4],
        "box_indices": [5],
        "offsets": [5, 1, 3, 2, 2],
        "mask": [5, 4, 3],
    },
    {"output_size": [4, 3], "group_size": 2},
    {"offsets": 1, "mask": 1},
    ("box_indices",),
)
ROI_POOL_GRADIENT = dataclasses.replace(
    ROI_POOL,
    name="tf_deformable_roi_pool_grad",
    shapes={**ROI_POOL.shapes, "grad_output": [5, 4, 3, 6]},
)
ATTENTION = Operator(
    "tf_deformable_multi_scale_deformable_attention",
    {
        "value": [2, 35, 3, 4],
        "spatial_shapes": [2, 2],
        "sampling_locations": [2, 7, 3, 2, 5, 2],
        "attention_weights": [2, 7, 3, 2, 5],
    },
    {},
    integers=("spatial_shapes",),
)
ATTENTION_GRADIENT = dataclasses.replace(
    ATTENTION,
    name="tf_deformable_multi_scale_deformable_attention_grad",
    shapes={**ATTENTION.shapes, "grad_output": [2, 7, 12]},
)


# Of attention: each level has points of its own.
OWN_POINTS = {
    "sampling_locations": [2, 7, 3, 10, 2],
    "attention_weights": [2, 7, 3, 10],
    "num_points": [7, 3],
}


def _unknown(operator: Operator, *names: str) -> dict[str, Shape]:
    """Changes that hide all sizes of some tensors, but not their ranks."""
    return {name: [None] * len(operator.shapes[name] or []) for name in names}


# Of an operator: changes, and the shapes of all outputs.
SHAPES: dict[str, tuple[Operator, dict[str, Any], list[Shape]]] = {
    "convolution": (CONV2D, {}, [[2, 4, 10, 4]]),
    "convolution, without a batch": (
        CONV2D,
        {
            "inputs": [0, 9, 12, 6],
            "offsets": [None, 4, 10, 36],
            "mask": [None, None, None, None],
        },
        [[0, 4, 10, 4]],
    ),
    "convolution, inputs unknown": (CONV2D, _unknown(CONV2D, "inputs"), [[2, 4, 10, 4]]),
    "convolution, batch and size from the mask": (
        CONV2D,
        _unknown(CONV2D, "inputs", "offsets"),
        [[2, 4, 10, 4]],
    ),
    "convolution, filters from the bias": (CONV2D, _unknown(CONV2D, "filters"), [[2, 4, 10, 4]]),
    "convolution, nothing known": (CONV2D, dict.fromkeys(CONV2D.shapes), [[None] * 4]),
    "convolution, an empty map": (
        CONV2D,
        {"inputs": [2, 9, 0, 6], "offsets": [2, 4, 0, 36], "mask": [2, 4, 0, 18]},
        [[2, 4, 0, 4]],
    ),
    "convolution, an exact fit": (
        CONV2D,
        {"inputs": [2, 3, 3, 6], "offsets": [2, 1, 1, 36], "mask": [2, 1, 1, 18]},
        [[2, 1, 1, 4]],
    ),
    "convolution, explicit padding": (
        CONV2D,
        {
            "padding": "EXPLICIT",
            "explicit_paddings": [0, 2, 3, 1],
            "offsets": [2, 5, 14, 36],
            "mask": [2, 5, 14, 18],
        },
        [[2, 5, 14, 4]],
    ),
    "convolution, the largest stride": (
        CONV2D,
        {"strides": [LARGEST, LARGEST], "offsets": [2, 1, 1, 36], "mask": [2, 1, 1, 18]},
        [[2, 1, 1, 4]],
    ),
    "convolution, the largest map": (
        CONV2D,
        {
            "inputs": [1, LARGEST, 3, 6],
            "offsets": [1, 2**30 - 1, 1, 36],
            "mask": [1, 2**30 - 1, 1, 18],
        },
        [[1, 2**30 - 1, 1, 4]],
    ),
    "convolution, as many elements as may be": (
        CONV2D,
        {
            "inputs": [2**20, 2**13, 2**13, 6],
            "filters": [1, 1, 6, 4],
            "strides": [1, 1],
            "offsets": [2**20, 2**13, 2**13, 2],
            "mask_count": 0,
        },
        [[2**20, 2**13, 2**13, 4]],
    ),
    "convolution's gradient": (
        CONV2D_GRADIENT,
        {},
        [CONV2D.shapes[name] for name in ("inputs", "filters", "offsets", "mask")],
    ),
    "convolution's gradient, inputs unknown": (
        CONV2D_GRADIENT,
        _unknown(CONV2D_GRADIENT, "inputs"),
        [[2, None, None, None], [3, 2, 3, 4], [2, 4, 10, 36], [2, 4, 10, 18]],
    ),
    "convolution's gradient, filters, offsets and mask unknown": (
        CONV2D_GRADIENT,
        _unknown(CONV2D_GRADIENT, "filters", "offsets", "mask"),
        [[2, 9, 12, 6], [None, None, None, 4], [2, 4, 10, None], [2, 4, 10, None]],
    ),
    "convolution's gradient, offsets and mask unknown": (
        CONV2D_GRADIENT,
        _unknown(CONV2D_GRADIENT, "offsets"),
        [[2, 9, 12, 6], [3, 2, 3, 4], [2, 4, 10, 36], [2, 4, 10, 18]],
    ),
    "branch": (BRANCH, {}, [[2, 4, 10, 24], [2, 4, 10, 12]]),
    "branch, without a mask": (BRANCH, {"num_masks": 0}, [[2, 4, 10, 36]]),
    "branch, inputs unknown": (
        BRANCH,
        _unknown(BRANCH, "inputs"),
        [[None, None, None, 24], [None, None, None, 12]],
    ),
    "branch, a width of the kernel unknown": (
        BRANCH,
        {"filters": [3, None, 6, 36]},
        [[2, 4, None, None], [2, 4, None, None]],
    ),
    "branch's gradient": (BRANCH_GRADIENT, {}, [[2, 9, 12, 6], [3, 2, 6, 36], [36]]),
    "branch's gradient, filters unknown": (
        BRANCH_GRADIENT,
        _unknown(BRANCH_GRADIENT, "filters"),
        [[2, 9, 12, 6], [None, None, 6, None], [None]],
    ),
    "pooling": (ROI_POOL, {}, [[5, 4, 3, 6]]),
    "pooling, inputs unknown": (ROI_POOL, _unknown(ROI_POOL, "inputs"), [[5, 4, 3, None]]),
    "pooling, boxes from the mask": (
        ROI_POOL,
        _unknown(ROI_POOL, "boxes", "box_indices", "offsets"),
        [[5, 4, 3, 6]],
    ),
    "pooling, no boxes": (
        ROI_POOL,
        {
            "boxes": [0, 4],
            "box_indices": [0],
            "offsets": [0, 1, 1, 1, 2],
            "mask": [None, None, None],
        },
        [[0, 4, 3, 6]],
    ),
    "pooling, as many elements as may be": (
        ROI_POOL,
        {
            "inputs": [1, 2, 2, 4],
            "boxes": [2**16, 4],
            "box_indices": [None],
            "output_size": [2**16, 2**16],
            "offsets_count": 0,
            "mask_count": 0,
        },
        [[2**16, 2**16, 2**16, 1]],
    ),
    "pooling, as many samples as may be": (ROI_POOL, {"samples_per_bin": 1024}, [[5, 4, 3, 6]]),
    "pooling, as many samples as pixels": (
        ROI_POOL,
        {"samples_per_bin": 0, "aligned": True},
        [[5, 4, 3, 6]],
    ),
    "pooling's gradient": (
        ROI_POOL_GRADIENT,
        {},
        [ROI_POOL.shapes[name] for name in ("inputs", "offsets", "mask")],
    ),
    "pooling's gradient, without offsets": (
        ROI_POOL_GRADIENT,
        {"offsets_count": 0},
        [[2, 9, 12, 24], [5, 4, 3]],
    ),
    "pooling's gradient, inputs unknown": (
        ROI_POOL_GRADIENT,
        _unknown(ROI_POOL_GRADIENT, "inputs"),
        [[None] * 4, [5, 1, 3, 2, 2], [5, 4, 3]],
    ),
    "pooling's gradient, inputs of any rank": (
        ROI_POOL_GRADIENT,
        {"inputs": None},
        [None, [5, 1, 3, 2, 2], [5, 4, 3]],
    ),
    "attention": (ATTENTION, {}, [[2, 7, 12]]),
    "attention, value unknown": (ATTENTION, _unknown(ATTENTION, "value"), [[2, 7, None]]),
    "attention, locations unknown": (
        ATTENTION,
        _unknown(ATTENTION, "sampling_locations"),
        [[2, 7, 12]],
    ),
    "attention, heads from the locations": (
        ATTENTION,
        {"value": [2, 35, None, 4], "attention_weights": [None] * 5},
        [[2, 7, 12]],
    ),
    "attention, points of each level": (ATTENTION, OWN_POINTS, [[2, 7, 12]]),
    "attention, points of each level, locations unknown": (
        ATTENTION_GRADIENT,
        {**OWN_POINTS, "sampling_locations": [None] * 5},
        [[2, 35, 3, 4], [2, 7, 3, 10, 2], [2, 7, 3, 10]],
    ),
    "attention's gradient": (
        ATTENTION_GRADIENT,
        {},
        [ATTENTION.shapes[name] for name in ATTENTION.shapes if name != "spatial_shapes"],
    ),
    "attention's gradient, weights unknown": (
        ATTENTION_GRADIENT,
        _unknown(ATTENTION_GRADIENT, "attention_weights"),
        [[2, 35, 3, 4], [2, 7, 3, 2, 5, 2], [2, 7, 3, 2, 5]],
    ),
    "attention's gradient, locations unknown": (
        ATTENTION_GRADIENT,
        _unknown(ATTENTION_GRADIENT, "sampling_locations"),
        [[2, 35, 3, 4], [2, 7, 3, 2, 5, 2], [2, 7, 3, 2, 5]],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    operator, changes, expected = SHAPES[name]
    assert operator.outputs(**changes) == expected


def _integers(argument: str, rule: str) -> list[tuple[str, Any, str]]:
    """What is wrong with an attribute of two integers of at least 1."""
    return [
        (
            argument,
            value,
            f"{argument} must be 2 positive integers {rule}, at most {LARGEST}, "
            f"got [{','.join(map(str, value))}]",
        )
        for value in ([0, 1], [1, 0], [1, -1], [1], [1, 1, 1], [2**31, 1])
    ]


def _name(value: Any) -> str:
    return value.name if isinstance(value, Operator) else str(value)


# Of an operator: changes, and the message.
ERRORS: list[tuple[Operator, dict[str, Any], str]] = [
    *(
        (operator, {argument: value}, message)
        for operator in (CONV2D, CONV2D_GRADIENT, BRANCH, BRANCH_GRADIENT)
        for name in ("strides", "dilations")
        for argument, value, message in _integers(name, "(y, x)")
    ),
    *(
        (
            operator,
            {"padding": "EXPLICIT", "explicit_paddings": pads},
            "explicit padding must be 4 non-negative integers",
        )
        for operator in (CONV2D, BRANCH_GRADIENT)
        for pads in ([0, 0, 0, -1], [-1, 0, 0, 0], [0, 0, 0], [0] * 5, [], [2**31, 0, 0, 0])
    ),
    (CONV2D, {"mask_count": 2}, "num_masks must be 0 or 1, got 2"),
    (CONV2D, {"bias_count": 2}, "num_biases must be 0 or 1, got 2"),
    (CONV2D_GRADIENT, {"mask_count": 3}, "num_masks must be 0 or 1, got 3"),
    (CONV2D, {"inputs": [2**31, 9, 12]}, "inputs must have rank 4"),
    (CONV2D, {"inputs": [2, 2**31, 1, 6]}, "inputs height and width must be at most 2147483647"),
    (CONV2D, {"inputs": [2, 9, 2**31, 6]}, "inputs height and width must be at most 2147483647"),
    (CONV2D, {"filters": [2**31, 1, 3, 4]}, "filters height and width must be at most 2147483647"),
    (CONV2D, {"filters": [1, 2**31, 3, 4]}, "filters height and width must be at most 2147483647"),
    *(
        (CONV2D, {"filters": shape}, "filters must have kernel height, kernel width, input channel")
        for shape in ([0, 2, 3, 4], [3, 0, 3, 4], [3, 2, 0, 4], [3, 2, 3, 0])
    ),
    (CONV2D, {"inputs": [2, 9, 12, 0]}, "got C=0 and filters shape [3,2,3,4]"),
    (CONV2D, {"inputs": [2, 9, 12, 7]}, "inputs channels must be a multiple of the filters' input"),
    (CONV2D, {"filters": [3, 2, 3, 5]}, "filters output channels must be a multiple of groups"),
    (CONV2D, {"inputs": [2, 2, 12, 6]}, "the dilated kernel must fit into the padded inputs"),
    (CONV2D, {"inputs": [2, 9, 2, 6]}, "the dilated kernel must fit into the padded inputs"),
    *(
        (CONV2D, {"offsets": shape}, "offsets must have shape [N,Ho,Wo,G*kh*kw*2]")
        for shape in (
            *([3, 4, 10, 36], [2, 5, 10, 36], [2, 4, 9, 36]),
            *([2, 4, 10, 0], [2, 4, 10, 18], [2, 4, 10, 6]),
        )
    ),
    (
        CONV2D,
        {"offsets": [2, 4, 10, 48], "mask_count": 0},
        "inputs channels must be a multiple of the offset groups, got C=6 and G=4",
    ),
    *(
        (CONV2D, {"mask": shape}, "mask must have shape [N,Ho,Wo,G*kh*kw]")
        for shape in ([3, 4, 10, 18], [2, 5, 10, 18], [2, 4, 9, 18], [2, 4, 10, 17], [2, 4, 10, 0])
    ),
    *(
        (CONV2D, {**_unknown(CONV2D, "offsets"), "mask": [2, 4, 10, n]}, "mask must have shape")
        for n in (0, 17)
    ),
    (CONV2D, {"mask": [2, 4, 10]}, "mask must have rank 4"),
    (CONV2D, {"bias": [4, 1]}, "bias must have rank 1 [F], got shape [4,1]"),
    (CONV2D, {"bias": [5]}, "bias must have shape [F] = [4], got shape [5]"),
    (CONV2D, {"offsets": [2, 4, None, 35]}, "got shape [2,4,?,35]"),
    (CONV2D, {"offsets": [0, 4, None, 35]}, "offsets must have shape"),
    *(
        (CONV2D_GRADIENT, {"grad_output": shape}, "grad_output must have")
        for shape in ([3, 4, 10, 4], [2, 5, 10, 4], [2, 4, 9, 4], [2, 4, 10, 5])
    ),
    (
        CONV2D,
        {
            "inputs": [2**20, 2**14, 2**14, 3],
            "filters": [1, 1, 3, 3],
            "strides": [1, 1],
            **_unknown(CONV2D, "offsets", "mask", "bias"),
        },
        f"output must have at most {2**48} elements, got shape [1048576,16384,16384,3]",
    ),
    (BRANCH, {"filters": [3, 2, 3, 36]}, "filters must have the channels of inputs, got C=6"),
    (BRANCH, {"filters": [3, 2, 6, 24], "bias": [24]}, "filters output channels must be a multip"),
    (BRANCH, {"bias": [35]}, "bias must have shape [F] = [36], got shape [35]"),
    (BRANCH, {"num_masks": 2}, "num_masks must be 0 or 1, got 2"),
    *(
        (BRANCH, {"largest_mask": value}, "largest_mask must be positive, got ")
        for value in (0.0, -1.0, float("nan"))
    ),
    *(
        (BRANCH_GRADIENT, {name: shape}, f"{name} must have ")
        for name, channels in (("grad_offsets", 24), ("mask", 12), ("grad_mask", 12))
        for shape in (
            *([3, 4, 10, channels], [2, 5, 10, channels], [2, 4, 9, channels]),
            *([2, 4, 10, channels + 1], [2, 4, 10 * channels]),
        )
    ),
    *((ROI_POOL, {n: v}, m) for n, v, m in _integers("output_size", "(ph, pw)")),
    *(
        (ROI_POOL, {"group_size": value}, "group_size must be a positive integer, at most")
        for value in (0, -1, 2**31)
    ),
    *(
        (ROI_POOL, {"samples_per_bin": value}, "samples_per_bin must be a positive integer")
        for value in (0, -1, 1025)
    ),
    (ROI_POOL, {"samples_per_bin": -1, "aligned": True}, "samples_per_bin must be a positive in"),
    *(
        (ROI_POOL, {"spatial_scale": value}, "spatial_scale must be finite and positive, got ")
        for value in (0.0, -1.0, float("nan"), float("inf"))
    ),
    *(
        (ROI_POOL, {"gamma": value}, "gamma must be finite, got ")
        for value in (float("nan"), float("-inf"))
    ),
    (ROI_POOL, {"offsets_count": 2}, "num_offsets must be 0 or 1, got 2"),
    (ROI_POOL, {"mask_count": 2}, "num_masks must be 0 or 1, got 2"),
    (ROI_POOL, {"inputs": [2, 9, 12, 0]}, "inputs channels must be a positive multiple of group"),
    (ROI_POOL, {"inputs": [2, 9, 12, 26]}, "inputs channels must be a positive multiple of group"),
    (ROI_POOL, {"boxes": [5, 5]}, "boxes must have shape [R,4] = [5,4], got shape [5,5]"),
    (ROI_POOL, {"box_indices": [6]}, "box_indices must have shape [R] = [5], got shape [6]"),
    *(
        (ROI_POOL, {"offsets": shape}, "offsets must have ")
        for shape in (
            *([6, 1, 3, 2, 2], [5, 0, 3, 2, 2], [5, 1, 0, 2, 2], [5, 1, 3, 0, 2]),
            [5, 1, 3, 2, 3],
        )
    ),
    (ROI_POOL, {"offsets": [5, 1, 3, 2]}, "deformable_psroi_pool: offsets must have rank 5"),
    (ROI_POOL, {"mask": [5, 12]}, "deformable_psroi_pool: mask must have rank 3"),
    (ROI_POOL, {"group_size": 1, "mask": [5, 12]}, "deformable_roi_pool: mask must have rank 3"),
    (ROI_POOL_GRADIENT, {"grad_output": [5, 4, 18]}, "grad_output must have rank 4"),
    (CONV2D_GRADIENT, {"grad_output": [2, 4, 40]}, "grad_output must have rank 4"),
    (ATTENTION_GRADIENT, {"grad_output": [2, 7, 3, 4]}, "grad_output must have rank 3"),
    (ATTENTION, {"attention_weights": [2, 7, 3, 10]}, "attention_weights must have rank 5"),
    (ATTENTION, {"sampling_locations": [None] * 5}, "sampling_locations must have rank 6"),
    (ROI_POOL, {"offsets": [5, 1, 3, 4, 2]}, "output channels must be a multiple of the offset cl"),
    *(
        (ROI_POOL, {"mask": shape}, "mask must have ")
        for shape in ([6, 4, 3], [5, 3, 3], [5, 4, 4])
    ),
    *(
        (ROI_POOL_GRADIENT, {"grad_output": shape}, "grad_output must have ")
        for shape in ([6, 4, 3, 6], [5, 3, 3, 6], [5, 4, 4, 6], [5, 4, 3, 5])
    ),
    (
        ROI_POOL_GRADIENT,
        {**_unknown(ROI_POOL, "inputs"), "grad_output": [5, 4, 3, 7]},
        "output channels must be a multiple of the offset classes, got D=7 and classes=2",
    ),
    (
        ROI_POOL,
        {  # 2**48 + 1 elements
            "inputs": [1, 2, 2, 4],
            "boxes": [22253377, 4],
            "box_indices": [None],
            "output_size": [65537, 193],
            "offsets_count": 0,
            "mask_count": 0,
        },
        f"output must have at most {2**48} elements, got shape [22253377,65537,193,1]",
    ),
    (
        ROI_POOL,
        {
            "boxes": [0, 4],
            "box_indices": [0],
            "output_size": [LARGEST, LARGEST],
            "offsets_count": 0,
            "mask_count": 0,
        },
        f"output must have at most {2**48} elements, got shape [0,{LARGEST},{LARGEST},6]",
    ),
    (
        ROI_POOL,
        {
            "boxes": [LARGEST, 4],
            "box_indices": [LARGEST],
            "output_size": [LARGEST, LARGEST],
            "offsets_count": 0,
            "mask_count": 0,
        },
        f"output must have at most {2**48} elements",
    ),
    (ATTENTION, {"value": [2, 35, 3, 0]}, "value must have at least 1 channel in each head"),
    (ATTENTION, {"value": [2, 35, 12]}, "value must have rank 4"),
    (ATTENTION, {"spatial_shapes": [2, 3]}, "spatial_shapes must have shape [levels,2] = [2,2]"),
    *(
        (ATTENTION, {"sampling_locations": shape}, "sampling_locations must have ")
        for shape in (
            *([3, 7, 3, 2, 5, 2], [2, 7, 4, 2, 5, 2], [2, 7, 3, 3, 5, 2], [2, 7, 3, 2, 5, 3]),
        )
    ),
    *(
        (ATTENTION, {"attention_weights": shape}, "attention_weights must have ")
        for shape in (
            *([3, 7, 3, 2, 5], [2, 8, 3, 2, 5], [2, 7, 4, 2, 5], [2, 7, 3, 3, 5]),
            [2, 7, 3, 2, 6],
        )
    ),
    *(
        (ATTENTION_GRADIENT, {"grad_output": shape}, "grad_output must have ")
        for shape in ([3, 7, 12], [2, 8, 12], [2, 7, 13])
    ),
    (
        ATTENTION,
        {"value": [2, 35, 3, 2**47], **_unknown(ATTENTION, "attention_weights")},
        f"output must have at most {2**48} elements",
    ),
    (ATTENTION, {"coordinates": "points"}, "coordinates"),
    *(
        (ATTENTION, {**OWN_POINTS, "num_points": points}, "num_points must be integers of at least")
        for points in ([-1, 11], [10, -1, 1], [2**31, 1])
    ),
    *(
        (ATTENTION, {**OWN_POINTS, "num_points": points}, "spatial_shapes must have shape [levels")
        for points in ([10], [4, 4, 2])
    ),
    (ATTENTION, {**OWN_POINTS, "num_points": [4, 5]}, "sampling_locations must have shape [N,Q,he"),
    (
        ATTENTION,
        {**OWN_POINTS, "attention_weights": [2, 7, 3, 9]},
        "attention_weights must have shape [N,Q,heads,sum of num_points] = [2,7,3,10]",
    ),
    (ATTENTION, {"num_points": [5, 5]}, "sampling_locations must have rank 5"),
]


@pytest.mark.parametrize(("operator", "changes", "message"), ERRORS, ids=_name)
def test_errors(operator: Operator, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        operator.outputs(**changes)


_SIZES = "spatial_shapes must be heights and widths of at least 0"
_PIXELS = "value must have the pixels of all levels"


@pytest.mark.parametrize("pixels", [35, None], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[4, 8], [1, 3]], ""),
        ([[0, 8], [5, 7]], ""),
        ([[35, 1], [9, 0]], ""),
        ([[4, 8], [1, 4]], _PIXELS),
        ([[4, 8], [1, 2]], _PIXELS),
        ([[8, 8], [1, -29]], _SIZES),
        ([[-4, -8], [1, 3]], _SIZES),
        ([[LARGEST, LARGEST], [LARGEST, LARGEST]], _PIXELS),
        ([[LARGEST, LARGEST]] * 4, _PIXELS),
    ],
    ids=str,
)
def test_sizes_of_levels_that_a_graph_knows(
    sizes: list[list[int]], message: str, pixels: int | None
) -> None:
    levels = len(sizes)
    with tf.Graph().as_default():
        tensors = {
            "value": tf.compat.v1.placeholder(tf.float32, [2, pixels, 3, 4]),
            "spatial_shapes": tf.constant(sizes),
            "sampling_locations": tf.compat.v1.placeholder(tf.float32, [2, 7, 3, levels, 5, 2]),
            "attention_weights": tf.compat.v1.placeholder(tf.float32, [2, 7, 3, levels, 5]),
        }
        module = _native.load()

        def call() -> tf.Tensor:
            return module.tf_deformable_multi_scale_deformable_attention_grad(
                **tensors, grad_output=tf.zeros([2, 7, 12])
            )[0]

        if message == _SIZES or (message and pixels is not None):
            with pytest.raises(ValueError, match=message):
                call()
            return
        expected = min(sum(height * width for height, width in sizes), 2**61)
        assert call().shape == [2, expected, 3, 4]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("operator", ["conv2d", "roi_pool", "multi_scale_deformable_attention"])
def test_sampling_of_another_precision(operator: str, dtype: type) -> None:
    calls: dict[str, dict[str, Any]] = {
        "conv2d": {
            "inputs": tf.zeros([1, 2, 2, 1]),
            "filters": tf.zeros([1, 1, 1, 1]),
            "offsets": tf.zeros([1, 2, 2, 2], dtype),
            "mask": [],
            "bias": [],
            "strides": [1, 1],
            "dilations": [1, 1],
            "padding": "SAME",
        },
        "roi_pool": {
            "inputs": tf.zeros([1, 2, 2, 1]),
            "boxes": tf.zeros([1, 4]),
            "box_indices": [0],
            "offsets": [tf.zeros([1, 1, 1, 1, 2], dtype)],
            "mask": [],
            "output_size": [1, 1],
        },
        "multi_scale_deformable_attention": {
            "value": tf.zeros([1, 4, 1, 1]),
            "spatial_shapes": [[2, 2]],
            "sampling_locations": tf.zeros([1, 1, 1, 1, 1, 2], dtype),
            "attention_weights": tf.zeros([1, 1, 1, 1, 1], dtype),
        },
    }
    function = getattr(_native.load(), f"tf_deformable_{operator}")
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have dtype float beside"):
        function(**calls[operator])


@pytest.mark.parametrize(("index", "is_right"), [(-2, False), (-1, True), (1, True), (2, False)])
@pytest.mark.parametrize("place", [0, 2])
def test_box_indices(index: int, is_right: bool, place: int) -> None:
    indices = [0, 1, 0]
    indices[place] = index

    def call() -> tf.Tensor:
        return _native.load().tf_deformable_roi_pool(
            inputs=tf.ones([2, 4, 4, 1]),
            boxes=tf.constant([[0.0, 0, 4, 4]] * 3),
            box_indices=indices,
            offsets=[],
            mask=[],
            output_size=[1, 1],
            aligned=True,
        )

    if is_right:
        np.testing.assert_allclose(tf.squeeze(call()), [float(i >= 0) for i in indices])
        return
    message = re.escape(f"box_indices must be -1 (padding) or in [0,N) = [0,2), got {index} at ")
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{message}{place}"):
        call()
