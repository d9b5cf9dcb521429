"""The dense convolution that the branch's reference is made of, beside one of single steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.reference.conv2d_branch import convolution

PAIRS = [(1, 1), (2, 2), (1, 3), (3, 2), (4, 6)]
PADDINGS = {
    "SAME": "SAME",
    "VALID": "VALID",
    "none": ((0, 0), (0, 0)),
    "after": ((0, 1), (0, 1)),
    "before": ((1, 0), (1, 0)),
    "around": ((1, 1), (1, 1)),
    "more": ((2, 3), (4, 0)),
}


def _pads(size: int, extent: int, stride: int, padding: Any) -> tuple[int, int]:
    """What is added before and after an axis."""
    if padding == "VALID":
        return 0, 0
    if padding != "SAME":
        return padding
    missing = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return missing // 2, missing - missing // 2


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 2), (3, 2)], ids=str)
def test_is_every_nth_of_the_convolution_of_padded_inputs(
    kernel: tuple[int, int], padding: Any
) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=[2, 23, 26, 2]).astype(np.float32)
    filters = random.normal(size=[*kernel, 2, 3]).astype(np.float32)
    for strides, dilations in itertools.product(PAIRS, PAIRS):
        extents = [(k - 1) * rate + 1 for k, rate in zip(kernel, dilations, strict=True)]
        each = [padding] * 2 if isinstance(padding, str) else padding
        pads = [_pads(*of) for of in zip((23, 26), extents, strides, each, strict=True)]
        padded = np.pad(inputs, [(0, 0), *pads, (0, 0)])
        every = tf.nn.conv2d(padded, filters, 1, "VALID", dilations=dilations)
        expected = every[:, :: strides[0], :: strides[1]]

        got = convolution(inputs, filters, strides=strides, padding=padding, dilations=dilations)

        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f"{strides}, {dilations}")


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
def test_of_no_images(padding: Any) -> None:
    arguments = {"strides": (2, 1), "padding": padding, "dilations": (1, 1)}
    filters = tf.ones([3, 3, 2, 4])
    some = convolution(tf.ones([1, 9, 8, 2]), filters, **arguments)
    none = convolution(tf.ones([0, 9, 8, 2]), filters, **arguments)
    assert none.shape == [0, *some.shape[1:]]
