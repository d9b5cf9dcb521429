"""Shapes that take every path of cc/kernels/roi_pool, on the CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.roi_pool_cases import Case, evaluate
from tf_deformable import config

CASES = {
    "channels in vectors, several blocks": Case(depth=300, classes=3, group_size=1),
    "channels that fill no vector": Case(depth=21, classes=1, group_size=1),
    "classes in lanes": Case(depth=21, classes=21, boxes=40),
    "classes in lanes, aligned": Case(depth=21, classes=21, aligned=True),
    "classes in lanes, two channels each": Case(depth=46, classes=23),
    "fewer classes than lanes": Case(depth=3, classes=3),
    "bins too large for the lanes": Case(
        size=(60, 70), depth=10, classes=10, samples_per_bin=2, output_size=(2, 2)
    ),
    "more samples than the lanes take": Case(depth=10, classes=10, samples_per_bin=9),
    "as many samples as pixels": Case(
        size=(60, 70), depth=10, classes=10, samples_per_bin=0, aligned=True
    ),
    "steps of boxes": Case(
        boxes=700, output_size=(7, 7), part_size=(7, 7), group_size=7, depth=21, classes=21
    ),
    "more maps than bins": Case(group_size=5, depth=2, classes=2),
}


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", CASES)
def test_blocks_add_up(name: str, dtype: tf.DType) -> None:
    case = CASES[name]
    if dtype == tf.float32 and case.boxes > 100:
        # The derivative by an offset jumps where a sample crosses a pixel: among millions of
        # samples some are so near to one that float32 and float64 see them on different sides.
        pytest.skip("float32 and float64 positions cannot agree on so many samples")
    arrays = case.arrays(dtype)
    # The reference in float64, from the same values.
    exact = {
        argument: array if argument == "box_indices" else array.astype("float64")
        for argument, array in arrays.items()
    }
    with config.use_backend("reference"):
        expected = evaluate(exact, **case.attributes())
    with config.use_backend("native"):
        got = evaluate(arrays, **case.attributes())
    for argument, want in expected.items():
        # Positions are sums of the box and the offset: float32 knows them to some 1e-6 of the map.
        tolerance = 1e-12 if dtype == tf.float64 else 1e-4
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(
            got[argument], want, rtol=0, atol=tolerance * scale, err_msg=argument
        )


@pytest.mark.parametrize("size", [(30, 50), (60, 70)], ids=["two images", "one image"])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
def test_gradients_of_16_bits_are_summed_some_images_at_a_time(
    dtype: tf.DType, size: tuple[int, int]
) -> None:
    case = Case(batch=5, size=size, depth=300, classes=3, group_size=1, boxes=30)
    arrays = case.arrays(dtype)
    wide = {
        argument: array if array.dtype == np.int32 else array.astype(np.float32)
        for argument, array in arrays.items()
    }
    assert len(set(arrays["box_indices"])) == 6  # padding, too
    with config.use_backend("native"):
        got = evaluate(arrays, **case.attributes())
        expected = evaluate(wide, **case.attributes())
    for argument, want in expected.items():
        # The same sums, rounded once.
        have = tf.cast(got[argument], tf.float32).numpy()
        np.testing.assert_array_equal(have, tf.cast(tf.cast(want, dtype), tf.float32), argument)
