"""The reference operators in LiteRT (TensorFlow Lite): they convert, run, and give the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests import litert
from tests.ops import deformable_conv2d_cases, roi_pool_cases

pytestmark = litert.ignore_deprecation

ConvCase = deformable_conv2d_cases.Case
PoolCase = roi_pool_cases.Case
Arrays = dict[str, np.ndarray]

PLAIN = ConvCase(
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    padding="SAME",
    groups=1,
    offset_groups=1,
    mask=False,
)


def _conv2d(
    case: ConvCase,
    specs: dict[str, tf.TensorSpec],
    weights: Arrays,
    data_format: str = "NHWC",
) -> Any:
    """The operator as a function of all but filters and bias."""

    @tf.function(input_signature=[specs], autograph=False)
    def function(arguments: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf_deformable.config.use_backend("reference"):
            attributes = case.attributes(data_format)
            return tf_deformable.deformable_conv2d(**arguments, **weights, **attributes)

    return function


def _conv2d_arrays(case: ConvCase, seed: int = 0) -> tuple[Arrays, Arrays]:
    arrays = case.arrays(tf.float32, seed)
    del arrays["grad_output"]
    weights = {name: arrays.pop(name) for name in ("filters", "bias") if name in arrays}
    return arrays, weights


def _specs(arrays: Arrays, unknown: tuple[int, ...]) -> dict[str, tf.TensorSpec]:
    """Specifications with these axes unknown."""
    specs = {}
    for name, array in arrays.items():
        shape = [None if axis in unknown else size for axis, size in enumerate(array.shape)]
        specs[name] = tf.TensorSpec(shape, array.dtype, name=name)
    return specs


@pytest.mark.parametrize("unknown", [(), (0,), (0, 1, 2)], ids=["known", "batch", "all sizes"])
@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        ConvCase(),
        dataclasses.replace(PLAIN, strides=(2, 1), dilations=(1, 3), offset_groups=2, mask=True),
        dataclasses.replace(PLAIN, kernel=(1, 2), padding="VALID", groups=2, bias=False),
        dataclasses.replace(PLAIN, strides=(3, 2), padding="VALID", dilations=(2, 1)),
        # each channel by itself
        dataclasses.replace(PLAIN, groups=6, filters=6, offset_groups=6, mask=True),
    ],
    ids=["plain", "lopsided", "same", "valid", "strides", "depthwise"],
)
def test_deformable_conv2d(case: ConvCase, unknown: tuple[int, ...]) -> None:
    arrays, weights = _conv2d_arrays(case)
    function = _conv2d(case, _specs(arrays, unknown), weights)

    model = litert.convert(function)

    litert.assert_is_plain(model)
    litert.assert_same(model, arrays, function(arrays))
    # the oracle of the operators, which shares no code with them
    float64 = {name: array.astype(np.float64) for name, array in (arrays | weights).items()}
    grad_output = np.zeros(case.output_shape())
    litert.assert_same(
        model,
        arrays,
        case.expected({**float64, "grad_output": grad_output})["output"].astype(np.float32),
    )


def test_deformable_conv2d_of_other_sizes_than_before() -> None:
    arrays, weights = _conv2d_arrays(PLAIN)
    function = _conv2d(PLAIN, _specs(arrays, (0, 1, 2)), weights)
    model = litert.convert(function)

    for batch, size in ((1, (3, 9)), (3, (1, 1)), (2, (12, 5))):
        arrays, _ = _conv2d_arrays(dataclasses.replace(PLAIN, batch=batch, size=size), seed=1)
        litert.assert_same(model, arrays, function(arrays))


def test_deformable_conv2d_at_positions_that_are_odd() -> None:
    case = dataclasses.replace(PLAIN, mask=True, offset_groups=2)
    arrays, weights = _conv2d_arrays(case)
    offsets = arrays["offsets"].reshape([-1, 18, 2, 2])
    offsets[0, 0] = [[np.nan, 0], [0, 0]]
    offsets[1, 3] = [[0, np.nan], [np.nan, 1e9]]
    offsets[2, 5] = [[np.inf, 0], [-np.inf, np.inf]]
    offsets[3] = 1e30
    offsets[4] = -1
    offsets[5] = 0
    function = _conv2d(case, _specs(arrays, (0,)), weights)
    expected = function(arrays).numpy()
    assert 0 < np.isnan(expected).sum() < expected.size

    litert.assert_same(litert.convert(function), arrays, expected)


def test_deformable_conv2d_channels_first() -> None:
    case = dataclasses.replace(PLAIN, offset_groups=2)
    arrays, weights = _conv2d_arrays(case)
    arrays = {name: np.moveaxis(array, 3, 1).copy() for name, array in arrays.items()}

    function = _conv2d(case, _specs(arrays, (0, 2, 3)), weights, "NCHW")
    model = litert.convert(function)

    litert.assert_is_plain(model)
    litert.assert_same(model, arrays, function(arrays))


def test_deformable_conv2d_is_a_small_graph() -> None:
    """What follows from known sizes is constant; what looks at unknown ones is little."""
    arrays, weights = _conv2d_arrays(PLAIN)

    known = litert.operators(litert.convert(_conv2d(PLAIN, _specs(arrays, ()), weights)))
    unknown = litert.operators(litert.convert(_conv2d(PLAIN, _specs(arrays, (0, 1, 2)), weights)))

    assert not {"SHAPE", "RANGE", "PACK", "FLOOR_DIV", "TRANSPOSE", "STRIDED_SLICE"} & set(known)
    assert known.count("GATHER_ND") == unknown.count("GATHER_ND") == 4
    assert known.count("FULLY_CONNECTED") == unknown.count("FULLY_CONNECTED") == 1
    assert len(known) <= 60
    assert len(unknown) <= 120


def _pool(case: PoolCase, specs: dict[str, tf.TensorSpec]) -> Any:
    @tf.function(input_signature=[specs], autograph=False)
    def function(arguments: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf_deformable.config.use_backend("reference"):
            return tf_deformable.deformable_psroi_pool(**arguments, **case.attributes())

    return function


def _pool_arrays(case: PoolCase, seed: int = 0) -> Arrays:
    arrays = case.arrays(tf.float32, seed)
    del arrays["grad_output"]
    return arrays


def _pool_specs(arrays: Arrays, unknown: bool) -> dict[str, tf.TensorSpec]:
    specs = _specs(arrays, (0,) if unknown else ())
    if unknown:
        channels = arrays["inputs"].shape[3]
        specs["inputs"] = tf.TensorSpec([None, None, None, channels], tf.float32, name="inputs")
    return specs


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "case",
    [
        PoolCase(),
        PoolCase(aligned=True),
        PoolCase(aligned=True, samples_per_bin=0),
        PoolCase(group_size=1, part_size=None, mask=False, classes=1),
        PoolCase(group_size=1, part_size=(4, 3), classes=1, aligned=True, samples_per_bin=2),
        PoolCase(part_size=None, mask=False, aligned=True, samples_per_bin=0),
        PoolCase(part_size=(4, 3), classes=6, samples_per_bin=1),
    ],
    ids=[
        "lopsided",
        "aligned",
        "aligned, as many samples as pixels",
        "plain",
        "deformable",
        "plain, as many samples as pixels",
        "every channel by itself",
    ],
)
def test_roi_pool(case: PoolCase, unknown: bool) -> None:
    arrays = _pool_arrays(case)
    function = _pool(case, _pool_specs(arrays, unknown))

    model = litert.convert(function)

    litert.assert_is_plain(model)
    expected = function(arrays)
    assert np.any(arrays["box_indices"] == -1)
    litert.assert_same(model, arrays, expected)


def test_roi_pool_of_other_sizes_than_before() -> None:
    case = PoolCase()
    function = _pool(case, _pool_specs(_pool_arrays(case), unknown=True))
    model = litert.convert(function)

    for boxes, batch, size in ((1, 1, (3, 9)), (9, 3, (1, 1)), (4, 2, (12, 5))):
        other = dataclasses.replace(case, boxes=boxes, batch=batch, size=size)
        arrays = _pool_arrays(other, seed=1)
        litert.assert_same(model, arrays, function(arrays))


def test_roi_pool_of_parts_that_are_unknown() -> None:
    case = PoolCase(output_size=(4, 6))
    arrays = _pool_arrays(case)
    specs = _pool_specs(arrays, unknown=True)
    specs["offsets"] = tf.TensorSpec([None, None, None, 3, 2], tf.float32, name="offsets")
    function = _pool(case, specs)
    model = litert.convert(function)

    litert.assert_is_plain(model)
    for part_size in ((2, 5), (4, 6), (1, 1), (7, 9)):
        arrays = _pool_arrays(dataclasses.replace(case, part_size=part_size))
        litert.assert_same(model, arrays, function(arrays))


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_pool_of_boxes_that_are_odd(aligned: bool) -> None:
    boxes = np.float32(
        [
            *roi_pool_cases.NOWHERE.values(),
            *roi_pool_cases.ODD.values(),
            *roi_pool_cases.HUGE.values(),
            *roi_pool_cases.NOT_FINITE.values(),
        ]
    )
    case = PoolCase(boxes=len(boxes), aligned=aligned)
    arrays = {**_pool_arrays(case), "boxes": boxes, "box_indices": np.zeros(len(boxes), np.int32)}
    arrays["offsets"][0, 0, 0, 0] = np.nan
    arrays["offsets"][7, 1, 1, 1, 1] = np.nan
    arrays["offsets"][8, 1, 1] = np.inf
    function = _pool(case, _pool_specs(arrays, unknown=True))
    expected = function(arrays).numpy()
    assert 0 < np.isnan(expected).sum() < expected.size

    litert.assert_same(litert.convert(function), arrays, expected)


def test_roi_pool_takes_a_box_of_no_image_as_padding() -> None:
    """LiteRT has no checks, as XLA."""
    case = PoolCase()
    arrays = _pool_arrays(case)
    function = _pool(case, _pool_specs(arrays, unknown=True))
    expected = function({**arrays, "box_indices": np.int32([-1, 0, 1, -1, -1])})
    arrays["box_indices"] = np.int32([-1, 0, 1, 2, -7])

    litert.assert_same(litert.convert(function), arrays, expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="box_indices must be"):
        function(arrays)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.uint32])
def test_roi_pool_with_indices_of_other_dtypes(dtype: type) -> None:
    case = PoolCase()
    arrays = _pool_arrays(case)
    arrays["box_indices"] = np.array([1, 0, 1, 1, 0], dtype)
    function = _pool(case, _pool_specs(arrays, unknown=True))

    litert.assert_same(litert.convert(function), arrays, function(arrays))
