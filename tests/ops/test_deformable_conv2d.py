"""The deformable convolution's values and gradients, on both backends."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tf_deformable
from tests.ops.deformable_conv2d_cases import (
    Case,
    arrays_and_expected,
    assert_close,
    evaluate,
)

pytestmark = pytest.mark.usefixtures("backend")

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("dcn_*.npz"))

CASES = {
    "lopsided": Case(),
    "lopsided, 4 offset groups": Case(channels=8, offset_groups=4),
    "batch 0": Case(batch=0),
    "batch 1": Case(batch=1),
    "batch 5": Case(batch=5),
    "batch 33": Case(batch=33, size=(4, 3), padding="SAME"),
    "no mask": Case(mask=False),
    "no bias": Case(bias=False),
    "no mask, no bias": Case(mask=False, bias=False),
    "kernel 1x1": Case(kernel=(1, 1), padding="VALID"),
    "kernel 1x5": Case(kernel=(1, 5), strides=(1, 1), dilations=(1, 1), padding="SAME"),
    "kernel 5x1": Case(kernel=(5, 1), strides=(1, 2), dilations=(1, 3), padding="SAME"),
    "kernel 2x2, SAME": Case(kernel=(2, 2), strides=(1, 1), dilations=(1, 1), padding="SAME"),
    "kernel 4x4, stride 2, SAME": Case(
        kernel=(4, 4), strides=(2, 2), dilations=(1, 1), padding="SAME"
    ),
    "kernel 3x3, SAME": Case(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), padding="SAME"),
    "kernel 3x3, VALID": Case(kernel=(3, 3), strides=(2, 2), dilations=(1, 2), padding="VALID"),
    "kernel larger than the map": Case(size=(2, 3), kernel=(5, 5), padding="SAME"),
    "stride larger than the kernel": Case(size=(9, 8), strides=(4, 5), dilations=(1, 1)),
    "padding larger than the kernel": Case(padding=((0, 6), (5, 0))),
    "one pixel": Case(size=(1, 1), padding="SAME"),
    "one group": Case(groups=1, offset_groups=1, channels=5, filters=3),
    "depthwise": Case(groups=6, offset_groups=1, filters=12),
    "one offset group per channel": Case(groups=3, offset_groups=6, filters=3),
    "one channel": Case(channels=1, filters=1, groups=1, offset_groups=1),
}
# Enough channels and pixels for every path of a blocked kernel, remainders included.
WIDE = Case(
    batch=3, size=(9, 17), channels=2 * 3 * 11, filters=2 * 37, strides=(1, 1), dilations=(1, 2)
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_oracle(case: Case) -> None:
    arrays, expected = arrays_and_expected(case)

    assert_close(evaluate(arrays, **case.attributes()), expected)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["lopsided", "no mask, no bias", "batch 33", "one group"])
def test_agrees_with_the_oracle_in_every_dtype(name: str, dtype: tf.DType) -> None:
    case = CASES[name]
    arrays, expected = arrays_and_expected(case, dtype)

    assert_close(evaluate(arrays, **case.attributes()), expected, dtype)


HALVES = [tf.float16, tf.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["lopsided", "no mask, no bias", "batch 33", "one group"])
def test_half_precision_with_sampling_in_float32(name: str, dtype: tf.DType) -> None:
    """Offsets and mask that half precision does not have, some 100 pixels away and back."""
    case = CASES[name]
    arrays = case.arrays(dtype)
    fine = {n: a.astype(np.float32) for n, a in arrays.items() if n in ("offsets", "mask")}
    fine["offsets"] += np.float32(1 / 1024)
    if "mask" in fine:
        fine["mask"] += np.float32(1 / 4096)
    arrays |= fine

    got = evaluate(arrays, **case.attributes())

    expected = case.expected(arrays)
    in_half = [n for n in got if n not in ("offsets", "mask")]
    assert_close({n: got[n] for n in in_half}, {n: expected[n] for n in in_half}, dtype)
    for name in fine:
        assert got[name].dtype == tf.float32
        error = np.abs(got[name].numpy() - expected[name]).max()
        assert error < 1e-4 * max(1.0, np.abs(expected[name]).max()), name  # not rounded to 16 bits


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name)
def test_far_offsets_in_float32_are_not_rounded(dtype: tf.DType) -> None:
    """A ramp tells where it was read: 16 bits would be off by up to a quarter of a pixel."""
    ramp = tf.range(128, dtype=tf.float32)[None, None, :, None]  # exact in both
    offsets = np.zeros([1, 1, 128, 2], np.float32)
    offsets[..., 1] = np.linspace(32, 64, 128) + 1 / 128
    read = 40  # of the first pixels, whose samples stay on the map

    outputs = tf_deformable.deformable_conv2d(
        tf.cast(ramp, dtype), tf.ones([1, 1, 1, 1], dtype), offsets
    )

    expected = np.arange(128) + offsets[0, 0, :, 1]
    rounded = tf.cast(expected[:read], dtype)  # the output is in half precision
    np.testing.assert_array_equal(outputs[0, 0, :read, 0], rounded)


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name)
def test_half_precision_with_sampling_in_float32_twice_differentiated(dtype: tf.DType) -> None:
    arrays = {n: tf.constant(a) for n, a in Case().arrays(dtype).items() if n != "grad_output"}
    arrays |= {n: tf.cast(arrays[n], tf.float32) for n in ("offsets", "mask")}
    with tf.GradientTape() as outer:
        outer.watch(arrays)
        with tf.GradientTape() as inner:
            inner.watch(arrays)
            loss = tf.reduce_sum(
                tf_deformable.deformable_conv2d(**arrays, **Case().attributes()) ** 2
            )
        first = inner.gradient(loss, arrays)
        total = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32) ** 2) for g in first.values()])
    for name, second in outer.gradient(total, arrays).items():
        assert second.dtype == first[name].dtype == arrays[name].dtype, name
        assert np.isfinite(tf.cast(second, tf.float32)).all(), name


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16], ids=lambda d: d.name)
def test_agrees_with_the_oracle_on_many_channels(dtype: tf.DType) -> None:
    arrays, expected = arrays_and_expected(WIDE, dtype)

    assert_close(evaluate(arrays, **WIDE.attributes()), expected, dtype)


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32], ids=lambda d: d.name)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_agrees_with_recorded_results_of_other_packages(
    path: pathlib.Path, dtype: tf.DType
) -> None:
    with np.load(path) as file:
        data = dict(file)
    attributes = json.loads(str(data["meta"]))["attrs"]
    pad_y, pad_x = attributes["padding"]

    def convert(key: str, to: np.dtype) -> np.ndarray:
        if key.endswith("weight"):  # OIHW to HWIO
            return data[key].transpose(2, 3, 1, 0).astype(to)
        return (data[key].transpose(0, 2, 3, 1) if data[key].ndim == 4 else data[key]).astype(to)

    names = {
        "inputs": "x",
        "filters": "weight",
        "offsets": "offset",
        "mask": "mask",
        "bias": "bias",
    }
    names = {name: key for name, key in names.items() if key in data}
    arrays = {name: convert(key, dtype.as_numpy_dtype) for name, key in names.items()}
    arrays["grad_output"] = convert("grad_y", dtype.as_numpy_dtype)
    expected = {name: convert(f"grad_{key}", np.float64) for name, key in names.items()}
    expected["output"] = convert("y", np.float64)

    got = evaluate(
        arrays,
        strides=attributes["stride"],
        dilations=attributes["dilation"],
        padding=[[0, 0], [pad_y, pad_y], [pad_x, pad_x], [0, 0]],
    )

    assert_close(got, expected, dtype)


def test_the_golden_vectors_are_there() -> None:
    assert len(GOLDEN) == 10


# --- What it is without deformation ---


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
def test_zero_offsets_are_a_convolution(padding, strides, dilations, groups) -> None:
    case = Case(
        size=(9, 10),
        kernel=(3, 2),
        strides=strides,
        dilations=dilations,
        padding=padding,
        groups=groups,
        mask=False,
        bias=False,
    )
    arrays = case.arrays()
    arrays["offsets"][:] = 0
    got = evaluate(arrays, **case.attributes())

    inputs, filters = tf.constant(arrays["inputs"]), tf.constant(arrays["filters"])
    with tf.GradientTape() as tape:
        tape.watch([inputs, filters])
        padded = inputs if isinstance(padding, str) else tf.pad(inputs, [[0, 0], *padding, [0, 0]])
        # Neither groups nor dilations have gradients on the CPU: group by group, tap by tap.
        parts = [
            tf.nn.conv2d(x, w, strides, padding if isinstance(padding, str) else "VALID")
            for x, w in zip(
                tf.split(padded, groups, axis=-1),
                tf.split(_with_holes(filters, dilations), groups, axis=-1),
                strict=True,
            )
        ]
        output = tf.concat(parts, axis=-1)
    grads = tape.gradient(output, [inputs, filters], output_gradients=arrays["grad_output"])
    explicit = case.attributes()["padding"]
    np.testing.assert_allclose(
        got["output"],
        tf.nn.conv2d(inputs, filters, strides, explicit, dilations=dilations),
        atol=1e-12,
    )

    expected = {"output": output, "inputs": grads[0], "filters": grads[1]}
    expected = {name: tensor.numpy() for name, tensor in expected.items()}
    assert_close({name: got[name] for name in expected}, expected)


def _with_holes(filters: tf.Tensor, dilations: tuple[int, int]) -> tf.Tensor:
    """Dilated filters, as filters with zeros between the taps."""
    height, width, channels, count = filters.shape
    dy, dx = dilations
    filters = tf.reshape(filters, [height, 1, width, 1, channels, count])
    filters = tf.pad(filters, [[0, 0], [0, dy - 1], [0, 0], [0, dx - 1], [0, 0], [0, 0]])
    filters = tf.reshape(filters, [height * dy, width * dx, channels, count])
    return filters[: (height - 1) * dy + 1, : (width - 1) * dx + 1]


@pytest.mark.parametrize("shift", [(1, -2), (-3, 0), (2, 2), (0, 4)])
def test_integer_offsets_are_a_shifted_convolution(shift: tuple[int, int]) -> None:
    case = Case(groups=1, strides=(1, 2), mask=False, bias=False)
    arrays = case.arrays()
    arrays["offsets"][..., 0::2] = shift[0]
    arrays["offsets"][..., 1::2] = shift[1]

    output = evaluate(arrays, **case.attributes())["output"]

    # The infinite map, zero outside, seen through a window moved by the shift.
    margin = 8
    (top, bottom), (left, right) = case.padding
    everything = np.pad(arrays["inputs"], [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    y, x = margin - top + shift[0], margin - left + shift[1]
    height, width = case.size[0] + top + bottom, case.size[1] + left + right
    window = everything[:, y : y + height, x : x + width]
    expected = tf.nn.conv2d(
        window, arrays["filters"], case.strides, "VALID", dilations=case.dilations
    )
    assert_close({"output": output}, {"output": expected.numpy()})


# Tap and window lie far from the map, on its two sides, and only their sum is on it. Of float32,
# two terms beyond 2**24 would be rounded before they meet.
FAR = {
    "SAME": ((3, 5), "SAME", (1, 2)),
    "the last tap": ((2, 1), [[0, 0], [2**31 - 1, 0], [0, 0], [0, 0]], (1, 0)),
    "the first tap": ((2, 1), [[0, 0], [0, 2**31 - 1], [0, 0], [0, 0]], (0, 0)),
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", FAR)
def test_taps_beyond_what_float_counts(name: str, dtype: tf.DType, groups: int) -> None:
    kernel, padding, (row, column) = FAR[name]
    rng = np.random.default_rng(7)
    taps = kernel[0] * kernel[1]
    filters = tf.constant(rng.normal(size=[*kernel, 4 // groups, 4]), dtype)
    inputs = tf.constant(rng.normal(size=[2, 5, 6, 4]), dtype)
    offsets = tf.constant(rng.normal(size=[2, 5, 6, taps, 2]).round(1), tf.float32)
    offsets = tf.cast(offsets, dtype)
    variables = [inputs, filters, offsets]

    def far(inputs: tf.Tensor, filters: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(
            inputs,
            filters,
            tf.reshape(offsets, [2, 5, 6, taps * 2]),
            dilations=2**31 - 1,
            padding=padding,
        )

    def near(inputs: tf.Tensor, filters: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(
            inputs,
            filters[row : row + 1, column : column + 1],
            offsets[:, :, :, row * kernel[1] + column],
        )

    for got, expected in zip(
        evaluate_twice(far, variables), evaluate_twice(near, variables), strict=True
    ):
        np.testing.assert_allclose(
            tf.cast(got, tf.float64), tf.cast(expected, tf.float64), rtol=1e-5, atol=1e-5
        )


def evaluate_twice(function, variables) -> list[tf.Tensor]:
    """The output, its gradients, and gradients of these."""
    with tf.GradientTape() as outer:
        outer.watch(variables)
        with tf.GradientTape() as inner:
            inner.watch(variables)
            output = function(*variables)
            loss = tf.reduce_sum(tf.sin(output))
        first = inner.gradient(loss, variables)
        of_gradients = sum(tf.reduce_sum(tf.sin(gradient)) for gradient in first)
    return [output, *first, *outer.gradient(of_gradients, variables)]


def test_windows_beyond_what_float_counts() -> None:
    # Columns -2**24-1 and 0 of a map of one column: the second of them is on it.
    far = 2**24 + 1
    output = tf_deformable.deformable_conv2d(
        tf.fill([1, 1, 1, 1], 3.0),
        tf.ones([1, 2, 1, 1]),
        tf.zeros([1, 1, 2, 4]),
        strides=(1, far),
        dilations=(1, far),
        padding=[[0, 0], [0, 0], [far, far], [0, 0]],
    )
    np.testing.assert_array_equal(tf.squeeze(output), [3, 3])


def test_a_mask_of_ones_is_no_mask() -> None:
    case = Case(bias=False)
    arrays = case.arrays()
    arrays["mask"][:] = 1
    with_ones = evaluate(arrays, **case.attributes())
    del arrays["mask"], with_ones["mask"]

    assert_close(
        with_ones,
        {name: t.numpy() for name, t in evaluate(arrays, **case.attributes()).items()},
    )


# --- Where a position lies ---

POSITIONS = [-np.inf, -1e30, -(2.0**31), -2, -1.5, -1, -1 + 2.0**-20, -0.5, 0, 0.75, 1]
# A one-tap kernel and a stride that leaves one output pixel: the offset is the position.
AT = {"strides": 8, "padding": "VALID"}
HEIGHT, WIDTH = 3, 4


def _at(positions: np.ndarray, dtype: tf.DType) -> dict[str, np.ndarray]:
    """One image of the batch for each position (y, x)."""
    random = np.random.default_rng(1)
    count = len(positions)
    arrays = {
        "inputs": random.normal(size=(count, HEIGHT, WIDTH, 2)),
        "filters": random.normal(size=(1, 1, 2, 3)),
        "offsets": positions.reshape(count, 1, 1, 2),
        "mask": random.uniform(size=(count, 1, 1, 1)),
        "grad_output": random.normal(size=(count, 1, 1, 3)),
    }
    return {name: array.astype(dtype.as_numpy_dtype) for name, array in arrays.items()}


def _expected_at(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    case = Case(size=(HEIGHT, WIDTH), kernel=(1, 1), strides=(8, 8), padding="VALID")
    return case.expected(arrays)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda d: d.name)
def test_positions_at_and_beyond_the_border(dtype: tf.DType) -> None:
    # Mirrored, so that H - 1, H, H + 0.5 and +inf are met as well.
    ys = POSITIONS + [HEIGHT - 1 - q for q in POSITIONS]
    xs = POSITIONS + [WIDTH - 1 - q for q in POSITIONS]
    arrays = _at(np.array(list(itertools.product(ys, xs))), dtype)

    got = evaluate(arrays, **AT)

    assert all(np.isfinite(tensor).all() for tensor in got.values())
    assert_close(got, _expected_at(arrays), dtype)


@pytest.mark.parametrize("position", [np.inf, -np.inf, 1e30, -1e30, 2.0**31, -(2.0**63), 3e38])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
def test_far_positions_in_half_precision(dtype: tf.DType, position: float) -> None:
    with np.errstate(over="ignore"):  # float16 ends at 65504: the rest is infinite
        arrays = _at(np.array([[position, 1], [1, position], [position, position]]), dtype)

    for name, tensor in evaluate(arrays, **AT).items():
        assert not np.any(np.asarray(tensor)), name


@pytest.mark.parametrize("axis", [0, 1])
def test_the_offset_gradient_at_minus_one_is_that_of_the_cell_towards_the_map(axis: int) -> None:
    position = np.array([[1.0, 1.0]])
    position[0, axis] = -1
    arrays = _at(position, tf.float64)

    got = evaluate(arrays, **AT)

    first = arrays["inputs"][0, 0, 1] if axis == 0 else arrays["inputs"][0, 1, 0]
    upstream = arrays["filters"][0, 0] @ arrays["grad_output"][0, 0, 0]
    assert not got["output"].numpy().any()
    np.testing.assert_allclose(
        got["offsets"][0, 0, 0, axis], arrays["mask"].item() * (first @ upstream), rtol=1e-12
    )


@pytest.mark.parametrize(
    "position",
    [(np.nan, 1), (1, np.nan), (np.nan, np.nan), (np.nan, -7), (np.inf, np.nan), (np.nan, 1e30)],
    ids=str,
)
@pytest.mark.parametrize(
    "dtype", [tf.float64, tf.float32, tf.float16, tf.bfloat16], ids=lambda d: d.name
)
def test_a_nan_position_makes_nan_what_it_touches_and_nothing_else(position, dtype) -> None:
    with np.errstate(over="ignore"):
        arrays = _at(np.array([(1.5, 0.5), position, (0.25, 2.5)]), dtype)

    got = {name: np.asarray(t).astype(np.float64) for name, t in evaluate(arrays, **AT).items()}

    untouched = evaluate({**arrays, "offsets": np.nan_to_num(arrays["offsets"], nan=-7)}, **AT)
    for name in ("output", "offsets", "mask"):
        assert np.isnan(got[name][1]).all(), name
        for image in (0, 2):
            np.testing.assert_array_equal(got[name][image], untouched[name][image], name)
    assert np.isnan(got["filters"]).all()
    np.testing.assert_array_equal(got["inputs"], untouched["inputs"])
    assert not got["inputs"][1].any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize(
    "dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name
)
def test_a_nan_stays_one_whatever_its_bits(dtype: tf.DType, bits: int) -> None:
    """To round the bits of some would make infinity of them, or zero."""
    arrays = _at(np.array([(0.5, 0.5)]), dtype)
    offsets = np.full_like(arrays["offsets"], 0.25, np.float32)
    offsets.view(np.uint32)[:] = bits
    got = evaluate({**arrays, "offsets": offsets, "mask": arrays["mask"].astype("f4")}, **AT)
    assert np.isnan(tf.cast(got["output"], tf.float32)).all()
    assert np.isnan(got["offsets"]).all()
    assert np.isnan(tf.cast(got["filters"], tf.float32)).all()


def test_a_nan_position_stays_in_its_group() -> None:
    case = Case(groups=2, offset_groups=2, filters=4)
    arrays = case.arrays()
    taps = case.kernel[0] * case.kernel[1]
    arrays["offsets"][0, 1, 2, 2 * taps + 3] = np.nan  # second offset group, tap 1, dx

    got = evaluate(arrays, **case.attributes())

    is_nan = {name: np.isnan(tensor) for name, tensor in got.items()}
    assert np.argwhere(is_nan["output"]).tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]
    assert np.argwhere(is_nan["offsets"])[:, 3].tolist() == [2 * taps + 2, 2 * taps + 3]
    assert np.argwhere(is_nan["mask"]).tolist() == [[0, 1, 2, taps + 1]]
    assert is_nan["filters"][0, 1, :, 2:].all()
    assert is_nan["filters"].sum() == is_nan["filters"][0, 1, :, 2:].size
    assert not is_nan["inputs"].any()
    assert_close(got, case.expected(arrays))


def test_outside_is_zero_whatever_the_map_holds() -> None:
    arrays = _at(np.array([(-3.0, 1.0), (1.0, WIDTH + 1.0), (np.inf, -np.inf)]), tf.float64)
    arrays["inputs"][:] = np.nan

    for name, tensor in evaluate(arrays, **AT).items():
        assert not np.any(np.asarray(tensor)), name


# --- Gradients by finite differences ---

SMALL = Case(batch=1, size=(4, 3), channels=4, filters=2, offset_groups=2, padding=((1, 1), (1, 0)))


def _small_arguments() -> tuple[list[str], list[tf.Tensor], tf.Tensor]:
    arrays = SMALL.arrays()
    grad_output = tf.constant(arrays.pop("grad_output"))
    return list(arrays), [tf.constant(array) for array in arrays.values()], grad_output


def test_gradients_agree_with_finite_differences() -> None:
    names, values, _ = _small_arguments()

    @tf.function  # called once or twice for every element
    def function(*values: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(
            **dict(zip(names, values, strict=True)), **SMALL.attributes()
        )

    # Between integers the operator is linear in each argument: the step need not be small.
    jacobians = tf.test.compute_gradient(function, values, delta=2**-7)
    for name, theoretical, numerical in zip(names, *jacobians, strict=True):
        np.testing.assert_allclose(theoretical, numerical, atol=1e-11, err_msg=name)


def test_second_derivatives_agree_with_finite_differences() -> None:
    names, values, grad_output = _small_arguments()
    del names[-1], values[-1]  # the bias adds nothing

    @tf.function
    def function(*values: tf.Tensor) -> tf.Tensor:
        *values, upstream = values
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = tf_deformable.deformable_conv2d(
                **dict(zip(names, values, strict=True)), **SMALL.attributes()
            )
        grads = tape.gradient(output, values, output_gradients=upstream)
        # Weighted unequally, so that no two contributions can cancel.
        return tf.concat([tf.reshape(g, [-1])[::5] * (i + 1) for i, g in enumerate(grads)], axis=0)

    jacobians = tf.test.compute_gradient(function, [*values, grad_output], delta=2**-7)
    for name, theoretical, numerical in zip([*names, "grad_output"], *jacobians, strict=True):
        np.testing.assert_allclose(theoretical, numerical, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_third_derivatives_exist(in_graph: bool) -> None:
    names, values, _ = _small_arguments()

    def third(offsets: tf.Tensor) -> tf.Tensor:
        arguments = {**dict(zip(names, values, strict=True)), "offsets": offsets}
        result = offsets
        with tf.GradientTape() as t3, tf.GradientTape() as t2, tf.GradientTape() as t1:
            for tape in (t1, t2, t3):
                tape.watch(offsets)
            result = tf_deformable.deformable_conv2d(**arguments, **SMALL.attributes()) ** 3
            first = t1.gradient(result, offsets)
            second = t2.gradient(first, offsets)
        return t3.gradient(second, offsets)

    function = tf.function(third) if in_graph else third
    assert np.any(function(values[names.index("offsets")]))


# --- How it is called ---


def test_channels_first_is_a_transposition() -> None:
    case = Case()
    arrays, expected = arrays_and_expected(case)
    maps = {"inputs", "offsets", "mask", "grad_output", "output"}

    def first(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.transpose(value, (0, 3, 1, 2)) if name in maps else value
            for name, value in values.items()
        }

    assert_close(evaluate(first(arrays), **case.attributes("NCHW")), first(expected))


@pytest.mark.parametrize("name", ["lopsided", "kernel 4x4, stride 2, SAME"])
@pytest.mark.parametrize("known", ["shapes", "ranks", "channels", "map sizes", "nothing"])
def test_graphs_agree_with_eager_mode_whatever_they_know(name: str, known: str) -> None:
    case = CASES[name]
    arrays, expected = arrays_and_expected(case)

    def spec(argument: str, array: np.ndarray) -> tf.TensorSpec:
        shape: list[int | None] | None = list(array.shape)
        if known == "ranks":
            shape = [None] * array.ndim
        elif known == "channels" and array.ndim == 4 and argument != "filters":
            shape = [None, None, None, array.shape[3]]
        elif known == "map sizes" and array.ndim == 4 and argument != "filters":
            shape = [None, *array.shape[1:3], None]
        elif known == "nothing":
            shape = None
        return tf.TensorSpec(shape, array.dtype)

    signature = {argument: spec(argument, array) for argument, array in arrays.items()}
    function = tf.function(
        lambda arguments: evaluate(arguments, **case.attributes()), input_signature=[signature]
    )

    got = function({argument: tf.constant(array) for argument, array in arrays.items()})

    assert_close(got, expected)
    if known in ("ranks", "channels", "nothing"):  # one trace serves another size
        other = dataclasses.replace(case, batch=3, size=(8, 9))
        arrays, expected = arrays_and_expected(other)
        got = function({argument: tf.constant(array) for argument, array in arrays.items()})
        assert_close(got, expected)


def test_shapes_are_inferred_in_graphs() -> None:
    case = Case()
    arrays = case.arrays()
    del arrays["grad_output"]

    @tf.function
    def function(**arguments: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(**arguments, **case.attributes())

    def shape_for(**shapes: list[int | None]) -> list[int | None]:
        specs = {
            name: tf.TensorSpec(shapes.get(name, array.shape), array.dtype)
            for name, array in arrays.items()
        }
        return function.get_concrete_function(**specs).outputs[0].shape.as_list()

    batch, height, width, filters = case.output_shape()
    unknown = [None] * 4
    map_unknown = [None, None, None, arrays["offsets"].shape[3]]
    mask_unknown = [None, None, None, arrays["mask"].shape[3]]
    assert shape_for() == [batch, height, width, filters]
    # The offsets know the map as well as the inputs do.
    assert shape_for(inputs=unknown) == [batch, height, width, filters]
    assert shape_for(offsets=unknown, mask=unknown) == [batch, height, width, filters]
    assert shape_for(inputs=[None, None, None, 6], offsets=map_unknown, mask=mask_unknown) == [
        None,
        None,
        None,
        filters,
    ]
    assert shape_for(filters=unknown, bias=[None])[:3] == [batch, height, width]


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((0, 5), "SAME"),
        ((7, 0), "VALID"),
        ((0, 0), "VALID"),
        ((0, 5), ((1, 1), (2, 0))),
        ((0, 5), ((3, 4), (2, 0))),  # padding alone is enough for the kernel
    ],
    ids=str,
)
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_empty_maps(size, padding, in_graph: bool) -> None:
    case = Case(size=size, padding=padding)
    arrays = case.arrays()
    function = tf.function(evaluate) if in_graph else evaluate

    assert_close(function(arrays, **case.attributes()), case.expected(arrays))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32], ids=lambda d: d.name)
@pytest.mark.parametrize("size", [(0, 4), (3, 0), (3, 4)], ids=str)
def test_empty_batches_and_maps_in_every_dtype(size: tuple[int, int], dtype: tf.DType) -> None:
    case = Case(batch=0, size=size, padding="SAME")
    arrays = case.arrays(dtype)

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays), dtype)


def test_arguments_are_not_modified() -> None:
    arrays = Case().arrays()
    tensors = {name: tf.constant(array) for name, array in arrays.items()}

    evaluate(tensors, **Case().attributes())

    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def test_variables_get_gradients() -> None:
    arrays, expected = arrays_and_expected(Case())
    grad_output = arrays["grad_output"]
    variables = {n: tf.Variable(array) for n, array in arrays.items() if n != "grad_output"}

    with tf.GradientTape() as tape:
        output = tf_deformable.deformable_conv2d(**variables, **Case().attributes())
    got = tape.gradient(output, variables, output_gradients=tf.constant(grad_output))

    assert_close({"output": output, **got}, expected)


def test_the_operation_takes_the_name_given(backend: str) -> None:
    arrays = Case(mask=False, bias=False).arrays(tf.float32)
    with tf.Graph().as_default() as graph:
        tf_deformable.deformable_conv2d(
            arrays["inputs"],
            arrays["filters"],
            arrays["offsets"],
            **Case().attributes(),
            name="stage5",
        )
    names = [operation.name for operation in graph.get_operations()]
    assert names
    assert all(name.startswith("stage5") for name in names)


# --- Any sizes and attributes ---

_sizes = st.integers(0, 6)
_pads = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Case(
        batch=draw(st.integers(0, 2)),
        size=(draw(_sizes), draw(_sizes)),
        channels=np.lcm(groups, offset_groups).item() * draw(st.integers(1, 2)),
        filters=groups * draw(st.integers(1, 2)),
        kernel=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        strides=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        dilations=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=draw(st.sampled_from(["SAME", "VALID"]) | st.tuples(_pads, _pads)),
        groups=groups,
        offset_groups=offset_groups,
        mask=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@given(_cases())
def test_any_sizes_and_attributes(case: Case) -> None:
    arrays = case.arrays()
    if not case.kernel_fits():
        with pytest.raises(
            (ValueError, tf.errors.InvalidArgumentError), match="kernel must fit into the padded"
        ):
            evaluate(arrays, **case.attributes())
        return

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


@hypothesis.settings(max_examples=15)
@given(_cases(), st.sets(st.integers(0, 15)))
def test_any_known_sizes_infer_a_shape_that_holds(case: Case, hidden: set[int]) -> None:
    hypothesis.assume(case.kernel_fits())
    arrays = case.arrays(tf.float32)
    del arrays["grad_output"]
    position = itertools.count()
    with tf.Graph().as_default():
        placeholders = {
            name: tf.compat.v1.placeholder(
                array.dtype, [None if next(position) in hidden else size for size in array.shape]
            )
            for name, array in arrays.items()
        }
        inferred = tf_deformable.deformable_conv2d(**placeholders, **case.attributes()).shape

    assert inferred.is_compatible_with(case.output_shape())
    assert inferred.is_fully_defined() or hidden


# --- Rounding ---


@pytest.mark.parametrize(("dtype", "digits"), [(tf.float16, 10), (tf.bfloat16, 7)], ids=str)
def test_results_half_way_are_rounded_to_even(dtype: tf.DType, digits: int) -> None:
    ulp = 2.0**-digits
    # Each is the sum of two numbers of this type, in the middle between two others.
    sums = np.array([[1, ulp / 2], [1 + ulp, ulp / 2], [-1, -ulp / 2], [-1 - ulp, -ulp / 2]])
    rounded = [1, 1 + 2 * ulp, -1, -1 - 2 * ulp]
    inputs = tf.constant(sums[np.newaxis, np.newaxis], dtype)  # [1, 1, 4, 2]
    offsets = tf.zeros([1, 1, 4, 2], dtype)
    outputs = tf_deformable.deformable_conv2d(inputs, tf.ones([1, 1, 2, 1], dtype), offsets)
    np.testing.assert_array_equal(tf.cast(outputs, tf.float64)[0, 0, :, 0], rounded)

    # The gradients by the inputs and by the filters are such sums, too.
    def gradients(inputs: tf.Tensor, filters: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([inputs, filters])
            offsets = tf.zeros([*inputs.shape[:3], 2], dtype)
            outputs = tf_deformable.deformable_conv2d(inputs, filters, offsets)
        return tape.gradient(outputs, [inputs, filters], output_gradients=upstream)

    upstream = tf.constant(sums[np.newaxis, np.newaxis], dtype)  # of two filters
    by_inputs, _ = gradients(tf.ones([1, 1, 4, 1], dtype), tf.ones([1, 1, 1, 2], dtype), upstream)
    np.testing.assert_array_equal(tf.cast(by_inputs, tf.float64)[0, 0, :, 0], rounded)
    inputs = tf.constant(sums.T[np.newaxis, np.newaxis], dtype)  # two pixels of four channels
    ones = tf.ones([1, 1, 2, 1], dtype)
    _, by_filters = gradients(inputs, tf.ones([1, 1, 4, 1], dtype), ones)
    np.testing.assert_array_equal(tf.cast(by_filters, tf.float64)[0, 0, :, 0], rounded)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("factor", [1.0, 1.3125, 0.0051, 321.0, 6e-5])
def test_all_numbers_of_16_bits_are_read_and_rounded(dtype: tf.DType, factor: float) -> None:
    """Infinities, NaN and subnormals too; the product of two of them is exact in float32.

    Where float32 itself has but subnormals, TensorFlow's threads compute with zeros.
    """
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype.as_numpy_dtype)
    factor = np.array(factor, dtype.as_numpy_dtype)
    inputs = tf.constant(numbers.reshape(32, 1, 1, 2048))
    filters = tf.constant(np.full([1, 1, 1, 2048], factor))
    outputs = tf_deformable.deformable_conv2d(inputs, filters, tf.zeros([32, 1, 1, 2], dtype))

    def flushed(values: np.ndarray) -> np.ndarray:
        return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)

    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        products = flushed(numbers.astype(np.float32)) * factor.astype(np.float32)
        expected = flushed(products).astype(dtype.as_numpy_dtype)
    np.testing.assert_array_equal(
        outputs.numpy().ravel().astype(np.float32), expected.astype(np.float32)
    )
