"""The values and gradients of the RoI pooling family, on both backends."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tf_deformable
from tests.ops.deformable_conv2d_cases import assert_close
from tests.ops.roi_pool_cases import (
    HUGE,
    NOT_FINITE,
    NOWHERE,
    ODD,
    Arrays,
    Case,
    arrays_and_expected,
    evaluate,
)
from tests.oracles import roi_pool as oracle
from tf_deformable import convert

pytestmark = pytest.mark.usefixtures("backend")

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("psroi_*.npz"))

ALIGNED = [False, True]
DTYPES = [tf.float64, tf.float32, tf.float16, tf.bfloat16]

CASES = {
    "lopsided": Case(),
    "no boxes": Case(boxes=0),
    "one box": Case(boxes=1),
    "one image": Case(batch=1),
    "no mask": Case(mask=False),
    "no offsets": Case(part_size=None),
    "no mask, no offsets": Case(mask=False, part_size=None),
    "group size 1, one class": Case(group_size=1, classes=1),
    "group size 3 over 4x3 bins": Case(group_size=3),
    "group size larger than the bins": Case(group_size=5, output_size=(2, 3)),
    "one part cell": Case(part_size=(1, 1)),
    "parts as bins": Case(part_size=(4, 3)),
    "more parts than bins": Case(part_size=(7, 8)),
    "a class for each channel": Case(classes=6),
    "one channel": Case(depth=1, classes=1),
    "one bin": Case(output_size=(1, 1)),
    "7x7 bins": Case(boxes=2, output_size=(7, 7), group_size=1, classes=1, part_size=(7, 7)),
    "1 sample": Case(samples_per_bin=1),
    "2 samples": Case(samples_per_bin=2),
    "4 samples": Case(samples_per_bin=4),
    "the scale of stride 16": Case(spatial_scale=0.0625),
    "the scale 1": Case(spatial_scale=1.0),
    "the scale 0.3": Case(spatial_scale=0.3),
    "gamma 0.1": Case(gamma=0.1),
    "gamma 0": Case(gamma=0.0),
    "gamma negative": Case(gamma=-0.5),
    "a map of one pixel": Case(size=(1, 1)),
    "a map of one row": Case(size=(1, 6)),
}
# Enough channels for every path of a kernel that takes several at a time, remainders included.
WIDE = Case(group_size=1, depth=2 * 83, classes=2)


@pytest.mark.parametrize("aligned", ALIGNED)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_oracle(case: Case, aligned: bool) -> None:
    case = dataclasses.replace(case, aligned=aligned)
    arrays, expected = arrays_and_expected(case)

    assert_close(evaluate(arrays, **case.attributes()), expected)


@pytest.mark.parametrize(
    "name", ["lopsided", "no boxes", "no mask, no offsets", "the scale of stride 16", "one bin"]
)
def test_as_many_samples_as_pixels_agree_with_the_oracle(name: str) -> None:
    case = dataclasses.replace(CASES[name], aligned=True, samples_per_bin=0)
    arrays, expected = arrays_and_expected(case)

    assert_close(evaluate(arrays, **case.attributes()), expected)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: d.name)
@pytest.mark.parametrize("aligned", ALIGNED)
@pytest.mark.parametrize("name", ["lopsided", "no mask, no offsets", "7x7 bins"])
def test_agrees_with_the_oracle_in_every_dtype(name: str, aligned: bool, dtype: tf.DType) -> None:
    case = dataclasses.replace(CASES[name], aligned=aligned)
    arrays, expected = arrays_and_expected(case, dtype)

    assert_close(evaluate(arrays, **case.attributes()), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda d: d.name)
@pytest.mark.parametrize("aligned", ALIGNED)
@pytest.mark.parametrize("name", ["lopsided", "no mask", "no offsets", "a class for each channel"])
def test_half_precision_with_sampling_in_float32(name: str, aligned: bool, dtype: tf.DType) -> None:
    case = dataclasses.replace(CASES[name], aligned=aligned)
    arrays = case.arrays(dtype)
    fine = {n: a.astype(np.float32) for n, a in arrays.items() if n in ("offsets", "mask")}
    for array in fine.values():
        array += np.float32(1 / 4096)  # what half precision does not have
    arrays |= fine

    got = evaluate(arrays, **case.attributes())

    expected = case.expected(arrays)
    in_half = [n for n in got if n not in fine]
    assert_close({n: got[n] for n in in_half}, {n: expected[n] for n in in_half}, dtype)
    for name in fine:
        assert got[name].dtype == tf.float32
        error = np.abs(got[name].numpy() - expected[name]).max()
        assert error < 1e-4 * max(1.0, np.abs(expected[name]).max()), name  # not rounded to 16 bits


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_agrees_with_the_oracle_on_many_channels(dtype: tf.DType) -> None:
    arrays, expected = arrays_and_expected(WIDE, dtype)

    assert_close(evaluate(arrays, **WIDE.attributes()), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda d: d.name)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_agrees_with_recorded_results_of_the_authors_operator(
    path: pathlib.Path, dtype: tf.DType
) -> None:
    with np.load(path) as file:
        data = dict(file)
    recorded = json.loads(str(data["meta"]))["attrs"]

    def maps(key: str, to: tf.DType = tf.float64) -> tf.Tensor:
        nhwc = convert.nhwc_from_nchw(data[key].astype(to.as_numpy_dtype))
        return convert.psroi_channels_from_depth_major(nhwc, recorded["group_size"])

    def bins(key: str, to: tf.DType = tf.float64) -> tf.Tensor:
        return convert.nhwc_from_nchw(data[key].astype(to.as_numpy_dtype))

    def offsets(key: str, to: tf.DType = tf.float64) -> tf.Tensor:
        return convert.roi_offsets_from_planes(data[key].astype(to.as_numpy_dtype))

    boxes, box_indices = convert.boxes_from_rois(data["rois"])
    got = evaluate(
        {
            "inputs": maps("x", dtype),
            "boxes": boxes,
            "box_indices": box_indices,
            "offsets": offsets("trans", dtype),
            "grad_output": bins("grad_y", dtype),
        },
        output_size=recorded["pooled_size"],
        group_size=recorded["group_size"],
        spatial_scale=recorded["spatial_scale"],
        aligned=False,
        samples_per_bin=recorded["sample_per_part"],
        gamma=recorded["trans_std"],
    )

    expected = {
        "output": bins("y").numpy(),
        "inputs": maps("grad_x").numpy(),
        "offsets": offsets("grad_trans").numpy(),
    }
    assert_close(got, expected, dtype)


def test_the_golden_vectors_are_there() -> None:
    assert len(GOLDEN) == 7


# --- What it is without deformation ---


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize(("aligned", "samples"), [(False, 4), (True, 4), (True, 0)])
def test_zero_offsets_are_plain_pooling(aligned: bool, samples: int, dtype: tf.DType) -> None:
    case = Case(classes=1, aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(dtype)
    deformed = evaluate(
        {**arrays, "offsets": np.zeros_like(arrays["offsets"])}, **case.attributes()
    )
    del arrays["offsets"]

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        np.testing.assert_array_equal(deformed[name], tensor, name)


@pytest.mark.parametrize("samples", [1, 2, 3, 0])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_aligned_pooling_without_deformation_is_roi_align(with_offsets: bool, samples: int) -> None:
    case = Case(group_size=1, classes=1, mask=False, aligned=True, samples_per_bin=samples)
    arrays = case.arrays()
    arrays["box_indices"] %= case.batch
    offsets = np.zeros([case.boxes, 3, 2, 2]) if with_offsets else None

    output = tf_deformable.deformable_roi_pool(
        *(arrays[name] for name in ("inputs", "boxes", "box_indices")),
        offsets,
        output_size=case.output_size,
        spatial_scale=0.5,
        samples_per_bin=samples,
        aligned=True,
    )

    expected = oracle.roi_align(
        *(arrays[name] for name in ("inputs", "boxes", "box_indices")),
        output_size=case.output_size,
        spatial_scale=0.5,
        samples=samples,
    )
    np.testing.assert_allclose(output, expected, atol=1e-13)


def test_inside_the_map_aligned_pooling_averages_what_crop_and_resize_samples() -> None:
    height, width, samples, scale = 12, 15, 3, 0.5
    rows, columns = 2 * samples, 4 * samples  # of all samples of a box
    random = np.random.default_rng(1)
    inputs = tf.constant(random.normal(size=(2, height, width, 5)), tf.float32)
    boxes = tf.constant([[2, 2.5, 20, 28], [5, 3, 6, 4], [1, 1, 22, 11.7]], tf.float32)
    box_indices, upstream = [0, 1, 1], tf.constant(random.normal(size=(3, 2, 4, 5)), tf.float32)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        output = tf_deformable.deformable_roi_pool(
            inputs,
            boxes,
            box_indices,
            output_size=(2, 4),
            spatial_scale=scale,
            samples_per_bin=samples,
            aligned=True,
        )
        # Its boxes go from the first sample to the last, in units of the last pixel.
        y1, x1, y2, x2 = tf.unstack(boxes * scale - 0.5, axis=1)
        dy, dx = (y2 - y1) / rows / 2, (x2 - x1) / columns / 2
        sampled = tf.stack([y1 + dy, x1 + dx, y2 - dy, x2 - dx], axis=1)
        sampled /= [height - 1, width - 1, height - 1, width - 1]
        crops = tf.image.crop_and_resize(inputs, sampled, box_indices, [rows, columns])
        expected = tf.nn.avg_pool2d(crops, samples, samples, "VALID")

    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(output, inputs, output_gradients=upstream),
        tape.gradient(expected, inputs, output_gradients=upstream),
        atol=1e-5,
    )


def test_a_constant_map_pools_to_the_constant() -> None:
    case = Case(mask=False, boxes=3)
    arrays = case.arrays(tf.float32)
    arrays["inputs"][:] = 3.5
    arrays["boxes"] = np.float32([[0, 0, 13, 17], [-4, 2, 5, 40], [8, 8, 8, 8]])
    arrays["box_indices"][:] = 0
    arrays["offsets"][:] = 0

    output = evaluate(arrays, **case.attributes())["output"]

    # Samples off the map are left out of the mean; a bin that has no other is 0.
    assert set(np.unique(np.round(output, 4))) == {0.0, 3.5}
    np.testing.assert_allclose(output[0], 3.5, rtol=1e-6)


def test_pooling_is_position_sensitive() -> None:
    k, depth = 3, 2
    values = np.arange(k * k * depth, dtype=np.float32)
    inputs = np.broadcast_to(values, [1, 6, 6, k * k * depth])

    output = tf_deformable.deformable_psroi_pool(
        inputs, [[0, 0, 5, 5]], [0], output_size=(3, 6), group_size=k, aligned=False
    )

    maps = values.reshape(k, k, depth)
    np.testing.assert_array_equal(output[0], np.repeat(maps, 2, axis=1))


def test_roi_pooling_is_position_sensitive_pooling_of_one_map() -> None:
    case = Case(group_size=1, classes=1)
    arrays, expected = arrays_and_expected(case)
    attributes = case.attributes()
    del attributes["group_size"]

    output = tf_deformable.deformable_roi_pool(
        arrays["inputs"],
        arrays["boxes"],
        arrays["box_indices"],
        arrays["offsets"][:, :, :, 0],
        arrays["mask"],
        **attributes,
    )

    assert_close({"output": output}, {"output": expected["output"]})


# --- Odd boxes and offsets ---


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
def test_odd_boxes(aligned: bool, samples: int, dtype: tf.DType) -> None:
    boxes = {**NOWHERE, **ODD, **HUGE, **NOT_FINITE}
    case = Case(boxes=len(boxes), output_size=(2, 3), part_size=(2, 3), classes=2, aligned=aligned)
    arrays = case.arrays(dtype)
    arrays["boxes"][:] = list(boxes.values())
    arrays["box_indices"][:] = 1
    # Bins of the size of the map have many pixels, but huge ones have too many for an oracle.
    too_large = [name in HUGE and samples == 0 for name in boxes]
    expected = dataclasses.replace(case, samples_per_bin=samples).expected(
        {**arrays, "box_indices": np.where(too_large, -1, arrays["box_indices"])}
    )

    got = evaluate(arrays, **{**case.attributes(), "samples_per_bin": samples})

    assert_close(got, expected, dtype)
    assert np.isfinite(got["inputs"].numpy().astype(np.float32)).all()
    for name in ("output", "offsets", "mask"):
        values = dict(zip(boxes, got[name].numpy().astype(np.float32), strict=True))
        assert not any(values[box].any() for box in NOWHERE), name
        assert all(np.isnan(values[box]).all() for box in NOT_FINITE), name
        assert all(np.isfinite(values[box]).all() for box in ({*boxes} - {*NOT_FINITE})), name


@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
def test_a_box_larger_than_float32_is_nowhere(aligned: bool, samples: int) -> None:
    case = Case(boxes=3, spatial_scale=1.0, aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(tf.float32)
    largest = 3e38
    arrays["boxes"][:] = [
        [-largest, -largest, largest, largest],
        [-largest, 0, largest, 5],
        [0, largest, 5, -largest],
    ]
    arrays["box_indices"][:] = 0

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        assert not np.any(tensor), name


@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
def test_a_box_beyond_float32_on_the_map_is_nowhere(aligned: bool, samples: int) -> None:
    case = Case(boxes=2, spatial_scale=4.0, aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(tf.float32)
    arrays["boxes"][:] = [[2e38, 0, 3e38, 5], [0, -3e38, 5, -2e38]]
    arrays["box_indices"][:] = 0

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        assert not np.any(tensor), name


def test_boxes_of_less_than_a_tenth_of_a_pixel_are_a_tenth_wide() -> None:
    case = Case(spatial_scale=1 / 16)
    arrays = case.arrays()
    arrays["boxes"][:, :2] = arrays["boxes"][:, 2:] = [37, 58]

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


@pytest.mark.parametrize("aligned", ALIGNED)
def test_samples_on_the_borders_of_the_map_are_kept(aligned: bool) -> None:
    case = Case(
        boxes=2, output_size=(2, 2), part_size=None, samples_per_bin=2, spatial_scale=0.5,
        aligned=aligned,
    )  # fmt: skip
    arrays = case.arrays()
    height, width = np.array(case.size) / case.spatial_scale
    if aligned:  # The first samples lie at -1, the last of the second box at the map's size.
        boxes = [[-2, -2, 6, 6], [height - 6, width - 6, height + 2, width + 2]]
    else:  # They lie at -0.5, and the first of the second box half a pixel behind the last pixel.
        boxes = [[0, 0, 6, 8], [height, width, height + 5, width + 5]]
    arrays["boxes"][:] = boxes
    arrays["box_indices"][:] = [0, 1]

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


def test_a_box_of_too_many_pixels_weighs_each_with_nothing() -> None:
    box = [-(2.0**31), -(2.0**31), 2.0**31, 2.0**31]
    output = tf_deformable.deformable_roi_pool(
        tf.ones([1, 6, 7, 3], tf.float64),
        [box],
        [0],
        output_size=1,
        samples_per_bin=0,
        aligned=True,
    )
    assert not output.numpy().any()


@pytest.mark.parametrize("half_size", [10, 1000, 100000])
def test_a_large_box_with_as_many_samples_as_pixels_reads_each_pixel(half_size: int) -> None:
    inputs = np.random.default_rng(0).normal(size=(1, 6, 7, 3))
    box = [-half_size, -half_size, half_size, half_size]

    output = tf_deformable.deformable_roi_pool(
        inputs, [box], [0], output_size=1, samples_per_bin=0, aligned=True
    )

    # The samples lie on pixels. Those next to the map are moved to its border.
    expected = np.pad(inputs[0], [(1, 1), (1, 1), (0, 0)], mode="edge").sum(axis=(0, 1))
    np.testing.assert_allclose(output[0, 0, 0] * (2 * half_size) ** 2, expected, rtol=1e-9)


@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_far_offsets_read_nothing(dtype: tf.DType, aligned: bool, samples: int) -> None:
    case = Case(output_size=(4, 6), part_size=(2, 3), aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(dtype)
    with np.errstate(over="ignore"):  # float16 ends at 65504
        arrays["offsets"][2, 1, :, 0, 0] = [1e30, -1e30, np.inf]
        arrays["offsets"][2, 1, :, 1, 1] = [1e30, -np.inf, np.inf]

    got = evaluate(arrays, **case.attributes())

    assert_close(got, case.expected(arrays), dtype)
    assert not got["offsets"][2, 1, :, :2].numpy().any()
    assert not got["output"][2, 2:, :, :4].numpy().any()


@pytest.mark.parametrize("aligned", ALIGNED)
def test_infinite_offsets_without_effect_read_nothing_either(aligned: bool) -> None:
    # Infinity times nothing, be it gamma or the size of a box, is no number.
    case = Case(aligned=aligned, gamma=0.0)
    arrays = case.arrays()
    arrays["box_indices"][:] = 1
    arrays["boxes"][:2] = [5, 6, 5, 6]
    arrays["offsets"][:3] = np.inf

    got = evaluate(arrays, **case.attributes())

    assert_close(got, case.expected(arrays))
    assert not got["output"][:3].numpy().any()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_a_nan_offset_makes_nan_what_it_moves_and_nothing_else(
    dtype: tf.DType, coordinate: int, aligned: bool
) -> None:
    case = Case(output_size=(4, 6), part_size=(2, 3), aligned=aligned)
    arrays = case.arrays(dtype)
    arrays["offsets"][2, 1, 2, 1, coordinate] = np.nan

    got = evaluate(arrays, **case.attributes())

    is_nan = {name: np.isnan(tensor.numpy().astype(np.float32)) for name, tensor in got.items()}
    bins = list(itertools.product([2], [2, 3], [4, 5]))
    class_channels = [2, 3]  # of class 1
    assert np.argwhere(is_nan["output"]).tolist() == [[*b, d] for b in bins for d in class_channels]
    assert np.argwhere(is_nan["offsets"]).tolist() == [[2, 1, 2, 1, 0], [2, 1, 2, 1, 1]]
    assert np.argwhere(is_nan["mask"]).tolist() == [list(b) for b in bins]
    assert not is_nan["inputs"].any()
    assert_close(got, case.expected(arrays), dtype)


@pytest.mark.parametrize("samples", [3, 0])
def test_nan_reaches_the_output_where_there_are_no_samples(samples: int) -> None:
    # Empty boxes have no pixels, hence no samples, and yet are not finite.
    case = Case(aligned=True, samples_per_bin=samples)
    arrays = case.arrays()
    arrays["boxes"][:] = [3, 4, 3, 4]
    arrays["boxes"][2, 1] = np.nan
    arrays["offsets"][1, :, :, :, 0] = np.nan

    got = evaluate(arrays, **case.attributes())

    assert_close(got, case.expected(arrays))
    assert np.isnan(got["output"][1:3]).all()


@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_padding_is_zero_whatever_it_holds(dtype, aligned: bool, samples: int) -> None:
    case = Case(aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(dtype)
    padding = arrays["box_indices"] == -1
    assert padding.any() and not padding.all()
    expected = evaluate(arrays, **case.attributes())
    for name in ("boxes", "offsets", "mask", "grad_output"):
        arrays[name][padding] = np.nan

    got = evaluate(arrays, **case.attributes())

    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor, name)
        if name != "inputs":
            assert not tensor.numpy()[padding].any(), name


def test_only_padding_needs_no_images() -> None:
    case = Case(batch=0)
    arrays = case.arrays()
    assert (arrays["box_indices"] == -1).all()

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        shape = case.output_shape() if name == "output" else arrays[name].shape
        assert tensor.shape == shape
        assert not tensor.numpy().any()


@pytest.mark.parametrize("aligned", ALIGNED)
def test_pixels_that_no_sample_touches_do_not_matter(aligned: bool) -> None:
    case = Case(part_size=None, aligned=aligned)
    arrays = case.arrays()
    arrays["boxes"][:, :2] = [4, 4]
    arrays["boxes"][:, 2:] = [9, 9]
    expected = evaluate(arrays, **case.attributes())
    arrays["inputs"][:, [0, -1]] = np.nan
    arrays["inputs"][:, :, [0, -1]] = np.inf

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        np.testing.assert_array_equal(tensor, expected[name], name)


@pytest.mark.parametrize("aligned", ALIGNED)
@pytest.mark.parametrize("classes", [1, 3])
def test_pixels_that_have_no_weight_do_not_matter(classes: int, aligned: bool) -> None:
    """Classes are pooled side by side; what one of them reads may be another's NaN."""
    case = Case(classes=classes, aligned=aligned)
    arrays = case.arrays()
    arrays["grad_output"][:] = 1
    expected = evaluate(arrays, **case.attributes())
    no_weight = expected["inputs"].numpy() == 0
    assert 0 < no_weight.sum() < no_weight.size
    arrays["inputs"][no_weight] = np.nan

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        np.testing.assert_array_equal(tensor, expected[name], name)


# --- Where the derivative by an offset jumps ---


def _one_sample(y: float, x: float, dtype: tf.DType = tf.float64) -> tuple[Arrays, dict[str, Any]]:
    """One box with one sample at (y, x) of a map of 5 x 6 pixels, moved there by an offset."""
    random = np.random.default_rng(2)
    arrays = {
        "inputs": random.normal(size=(1, 5, 6, 2)),
        "offsets": np.array([y, x]).reshape(1, 1, 1, 1, 2) - [2, 3],
        "grad_output": random.normal(size=(1, 1, 1, 2)),
    }
    arrays = {name: array.astype(dtype.as_numpy_dtype) for name, array in arrays.items()}
    # One pixel in size, so that offsets are in pixels; its sample is at (2, 3).
    arrays["boxes"] = np.float32([[2, 3, 3, 4]])
    arrays["box_indices"] = np.int32([0])
    return arrays, {
        "output_size": 1,
        "group_size": 1,
        "spatial_scale": 1.0,
        "samples_per_bin": 1,
        "gamma": 1.0,
        "aligned": True,
    }


@pytest.mark.parametrize(
    ("axis", "position"),
    [
        *itertools.product([0, 1], [-1, -0.75, -0.25, 0, 1, 2]),
        *itertools.product([0], [4, 4.25, 5]),
        *itertools.product([1], [5, 5.75, 6]),
    ],
)
def test_clamped_samples_and_samples_on_a_pixel_do_not_move(axis: int, position: float) -> None:
    at = [1.25, 1.5]
    at[axis] = position
    arrays, attributes = _one_sample(*at)

    got = evaluate(arrays, **attributes)

    derivatives = got["offsets"].numpy().ravel()
    assert derivatives[axis] == 0
    assert derivatives[1 - axis] != 0
    at[axis] = min(max(position, 0), (4, 5)[axis])
    clamped, _ = _one_sample(*at)
    np.testing.assert_array_equal(got["output"], evaluate(clamped, **attributes)["output"])


# --- Gradients by finite differences ---

SMALL = Case(
    batch=1,
    size=(3, 3),
    boxes=1,
    output_size=(2, 2),
    group_size=1,
    depth=2,
    part_size=(1, 2),
    classes=2,
    samples_per_bin=2,
)
SMALL_CASES = {
    "not aligned": SMALL,
    "aligned": dataclasses.replace(SMALL, aligned=True),
    "as many as pixels": dataclasses.replace(
        SMALL, aligned=True, samples_per_bin=0, spatial_scale=1.0
    ),
}


def _small_arguments(case: Case) -> tuple[Arrays, Arrays, tf.Tensor]:
    """Boxes, what is differentiated, and the upstream gradient."""
    arrays = case.arrays(seed=3)
    arrays["box_indices"][:] = 0
    boxes = {name: arrays.pop(name) for name in ("boxes", "box_indices")}
    return boxes, arrays, arrays.pop("grad_output")


@pytest.mark.parametrize("case", SMALL_CASES.values(), ids=SMALL_CASES.keys())
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    boxes, arrays, _ = _small_arguments(case)

    @tf.function  # called once or twice for every element
    def function(*values: tf.Tensor) -> tf.Tensor:
        arguments = dict(zip(arrays, values, strict=True))
        return tf_deformable.deformable_psroi_pool(**arguments, **boxes, **case.attributes())

    # The operator is linear in each argument until a sample crosses a pixel: none does.
    jacobians = tf.test.compute_gradient(function, list(arrays.values()), delta=2**-14)
    for name, theoretical, numerical in zip(arrays, *jacobians, strict=True):
        assert theoretical.any()
        np.testing.assert_allclose(theoretical, numerical, atol=1e-10, err_msg=name)


def test_second_derivatives_agree_with_finite_differences() -> None:
    case = SMALL
    boxes, arrays, grad_output = _small_arguments(case)

    @tf.function
    def function(*values: tf.Tensor) -> tf.Tensor:
        *values, upstream = values
        arguments = dict(zip(arrays, values, strict=True))
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = tf_deformable.deformable_psroi_pool(**arguments, **boxes, **case.attributes())
        grads = tape.gradient(output, values, output_gradients=upstream)
        # Weighted unequally, so that no two contributions can cancel.
        return tf.concat([tf.reshape(g, [-1])[::5] * (i + 1) for i, g in enumerate(grads)], axis=0)

    values = [*arrays.values(), grad_output]
    jacobians = tf.test.compute_gradient(function, values, delta=2**-14)
    for name, theoretical, numerical in zip([*arrays, "grad_output"], *jacobians, strict=True):
        assert theoretical.any()
        np.testing.assert_allclose(theoretical, numerical, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("mask", "part_size"), [(True, (1, 2)), (False, (1, 2)), (True, None)])
def test_third_derivatives_exist(mask: bool, part_size: tuple[int, int] | None) -> None:
    case = dataclasses.replace(SMALL, mask=mask, part_size=part_size)
    boxes, arrays, _ = _small_arguments(case)

    def third(inputs: tf.Tensor) -> tf.Tensor:
        arguments = {**arrays, "inputs": inputs}
        with tf.GradientTape() as t3, tf.GradientTape() as t2, tf.GradientTape() as t1:
            for tape in (t1, t2, t3):
                tape.watch(inputs)
            result = (
                tf_deformable.deformable_psroi_pool(**arguments, **boxes, **case.attributes()) ** 3
            )
            first = t1.gradient(result, inputs)
            second = t2.gradient(first, inputs)
        return t3.gradient(second, inputs)

    assert np.any(third(tf.constant(arrays["inputs"])))


def test_boxes_are_not_differentiated() -> None:
    case = Case()
    arrays = case.arrays()
    boxes = tf.constant(arrays.pop("boxes"))
    del arrays["grad_output"]

    with tf.GradientTape() as tape:
        tape.watch(boxes)
        output = tf_deformable.deformable_psroi_pool(boxes=boxes, **arrays, **case.attributes())

    assert tape.gradient(output, boxes) is None


# --- How it is called ---


PLAIN = Case(mask=False, part_size=None, aligned=True)
AS_MANY_AS_PIXELS = Case(aligned=True, samples_per_bin=0)


@pytest.mark.parametrize(
    ("case", "known"),
    [
        (Case(), "shapes"),
        (Case(), "ranks"),
        (Case(), "channels"),
        (Case(), "nothing"),
        (PLAIN, "nothing"),
        (AS_MANY_AS_PIXELS, "nothing"),
    ],
)
def test_graphs_agree_with_eager_mode_whatever_they_know(case: Case, known: str) -> None:
    arrays, expected = arrays_and_expected(case)

    def spec(argument: str, array: np.ndarray) -> tf.TensorSpec:
        shape: list[int | None] | None = list(array.shape)
        if known == "ranks":
            shape = [None] * array.ndim
        elif known == "channels" and argument == "inputs":
            shape = [None, None, None, array.shape[3]]
        elif known == "channels":
            shape = [None, *array.shape[1:]]
        elif known == "nothing":
            shape = None
        return tf.TensorSpec(shape, array.dtype)

    signature = {argument: spec(argument, array) for argument, array in arrays.items()}
    function = tf.function(
        lambda arguments: evaluate(arguments, **case.attributes()), input_signature=[signature]
    )

    got = function({argument: tf.constant(array) for argument, array in arrays.items()})

    assert_close(got, expected)
    if known == "shapes":
        return
    # The same trace, for other numbers of boxes.
    for boxes in (0, 3):
        arrays, expected = arrays_and_expected(dataclasses.replace(case, boxes=boxes))
        got = function({argument: tf.constant(array) for argument, array in arrays.items()})
        assert_close(got, expected)


def test_shapes_are_inferred_in_graphs() -> None:
    case = Case()
    arrays = case.arrays()
    del arrays["grad_output"]

    @tf.function
    def function(**arguments: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_psroi_pool(**arguments, **case.attributes())

    def shape_for(**shapes: list[int | None] | None) -> list[int | None]:
        specs = {
            name: tf.TensorSpec(shapes.get(name, array.shape), array.dtype)
            for name, array in arrays.items()
        }
        return function.get_concrete_function(**specs).outputs[0].shape.as_list()

    boxes, height, width, depth = case.output_shape()
    # Every argument knows the number of boxes.
    unknown: dict[str, Any] = {"boxes": [None, 4], "box_indices": [None]}
    unknown["offsets"] = None
    assert shape_for(**unknown) == [boxes, height, width, depth]
    unknown["mask"] = None
    assert shape_for(inputs=[None] * 4, **unknown) == [None, height, width, None]
    assert shape_for(inputs=None)[:3] == [boxes, height, width]


@pytest.mark.parametrize("aligned", ALIGNED)
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty_maps(size: tuple[int, int], aligned: bool) -> None:
    case = Case(size=size, aligned=aligned)
    arrays = case.arrays()
    arrays["boxes"][:] = [0, 0, 3, 4]
    # Half a pixel before the first one there would be a sample.
    arrays["offsets"][:] = np.where(arrays["box_indices"][:, None, None, None, None] == 0, 0, 1)

    got = evaluate(arrays, **case.attributes())

    assert_close(got, case.expected(arrays))
    assert not got["output"].numpy().any()


@pytest.mark.parametrize(
    ("batch", "aligned", "samples"), [(2, False, 3), (2, True, 3), (2, True, 0), (0, False, 3)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_no_boxes(batch: int, dtype: tf.DType, aligned: bool, samples: int) -> None:
    case = Case(batch=batch, boxes=0, aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays(dtype)

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("boxes_dtype", DTYPES[:2], ids=lambda d: d.name)
def test_boxes_may_have_either_precision(dtype: tf.DType, boxes_dtype: tf.DType) -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case, dtype)
    # What both represent.
    arrays = {**arrays, "boxes": arrays["boxes"].astype(np.float32)}
    expected = case.expected(arrays)
    arrays["boxes"] = arrays["boxes"].astype(boxes_dtype.as_numpy_dtype)

    assert_close(evaluate(arrays, **case.attributes()), expected, dtype)


def test_arguments_are_not_modified() -> None:
    arrays = Case().arrays()
    tensors = {name: tf.constant(array) for name, array in arrays.items()}

    evaluate(tensors, **Case().attributes())

    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def test_variables_get_gradients() -> None:
    arrays, expected = arrays_and_expected(Case())
    grad_output = arrays["grad_output"]
    variables = {name: tf.Variable(arrays[name]) for name in ("inputs", "offsets", "mask")}

    with tf.GradientTape() as tape:
        output = tf_deformable.deformable_psroi_pool(
            **variables,
            boxes=tf.Variable(arrays["boxes"]),
            box_indices=arrays["box_indices"],
            **Case().attributes(),
        )
    got = tape.gradient(output, variables, output_gradients=tf.constant(grad_output))

    assert_close({"output": output, **got}, expected)


@pytest.mark.parametrize("function_name", ["deformable_roi_pool", "deformable_psroi_pool"])
def test_the_operation_takes_the_name_given(function_name: str) -> None:
    case = Case(group_size=1)
    arrays = case.arrays(tf.float32)
    attributes = case.attributes()
    if function_name == "deformable_roi_pool":
        del attributes["group_size"]
        arrays["offsets"] = arrays["offsets"][:, :, :, 0]
    del arrays["grad_output"]
    with tf.Graph().as_default() as graph:
        getattr(tf_deformable, function_name)(**arrays, **attributes, name="head")
    names = [operation.name for operation in graph.get_operations()]
    assert names
    assert all(name.startswith("head") for name in names)


# --- Any sizes and attributes ---


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    few = st.integers(1, 4)
    classes = draw(st.integers(1, 3))
    aligned = draw(st.booleans())
    return Case(
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(0, 7)), draw(st.integers(0, 7))),
        boxes=draw(st.integers(0, 4)),
        output_size=(draw(few), draw(few)),
        group_size=draw(st.integers(1, 3)),
        depth=classes * draw(st.integers(1, 3)),
        part_size=draw(st.none() | st.tuples(few, few)),
        classes=classes,
        mask=draw(st.booleans()),
        spatial_scale=draw(st.sampled_from([0.1, 0.25, 0.7, 1.5])),
        samples_per_bin=draw(st.integers(0 if aligned else 1, 3)),
        gamma=draw(st.sampled_from([0.1, 0.5, 2.0])),
        aligned=aligned,
    )


@given(_cases(), st.integers(0, 10))
def test_any_sizes_and_attributes(case: Case, seed: int) -> None:
    arrays = case.arrays(seed=seed)

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


@given(_cases(), st.sets(st.integers(0, 14)))
@hypothesis.settings(max_examples=6)
def test_any_known_sizes_infer_a_shape_that_holds(case: Case, hidden: set[int]) -> None:
    arrays = case.arrays(tf.float32)
    del arrays["grad_output"]
    position = itertools.count()
    specs = {
        name: tf.TensorSpec(
            [None if next(position) in hidden else size for size in array.shape], array.dtype
        )
        for name, array in arrays.items()
    }

    @tf.function
    def function(**arguments: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_psroi_pool(**arguments, **case.attributes())

    concrete = function.get_concrete_function(**specs)
    inferred = concrete.outputs[0].shape
    output = concrete(**{name: tf.constant(array) for name, array in arrays.items()})

    assert inferred.is_compatible_with(case.output_shape())
    assert output.shape == case.output_shape()
