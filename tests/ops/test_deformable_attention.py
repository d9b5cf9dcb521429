"""The values and gradients of multi-scale deformable attention, on both backends."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tf_deformable
from tests.ops.deformable_attention_cases import Case, arrays_and_expected, evaluate
from tests.ops.deformable_conv2d_cases import assert_close
from tf_deformable import convert

pytestmark = pytest.mark.usefixtures("backend")

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("msda_*.npz"))

CASES = {
    "lopsided": Case(),
    "pixels": Case(coordinates="pixels"),
    "batch 0": Case(batch=0),
    "batch 9": Case(batch=9),
    "no queries": Case(queries=0),
    "no points": Case(points=0),
    "no heads": Case(heads=0),
    "one level": Case(levels=((4, 6),)),
    "maps of one pixel": Case(levels=((1, 1), (1, 1))),
    "an empty level": Case(levels=((3, 4), (0, 5), (2, 2))),
    "nothing but empty levels": Case(levels=((0, 5), (3, 0))),
    "17 levels": Case(levels=tuple((1 + i % 3, 1 + i % 5) for i in range(17)), points=1),
    "one head, one channel": Case(heads=1, depth=1),
    "a whole vector": Case(depth=16),
    "vectors and a rest": Case(depth=59, heads=2, queries=3),
    "one query, 9 points": Case(queries=1, points=9),
    "points of each level": Case(points=(3, 6, 1)),
    "points of each level, pixels": Case(points=(1, 2, 4), coordinates="pixels"),
    "levels without points": Case(points=(0, 5, 0)),
    "no points of any level": Case(points=(0, 0, 0)),
    "one level with points of its own": Case(levels=((4, 6),), points=(3,)),
}
# More channels and samples than are worked out at a time, and few heads.
LARGE = {
    "many channels": Case(batch=1, heads=1, depth=299, queries=3, levels=((3, 4),)),
    "many channels, 3 heads": Case(batch=1, heads=3, depth=70, queries=5),
    "many channels, no points": Case(batch=1, heads=1, depth=299, queries=3, points=0),
    "many samples": Case(batch=1, heads=2, depth=9, queries=2, points=90),
    "many samples and channels": Case(batch=1, heads=1, depth=260, queries=1, points=87),
    "many samples of one level": Case(batch=1, heads=2, depth=9, queries=2, points=(3, 270, 9)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_oracle(case: Case) -> None:
    arrays, expected = arrays_and_expected(case)

    assert_close(evaluate(arrays, **case.attributes()), expected)


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_agrees_with_the_oracle_on_large_cases(case: Case, dtype: tf.DType) -> None:
    arrays, expected = arrays_and_expected(case, dtype)

    assert_close(evaluate(arrays, **case.attributes()), expected, dtype)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize(
    "name", ["lopsided", "pixels", "batch 9", "vectors and a rest", "points of each level"]
)
def test_agrees_with_the_oracle_in_every_dtype(name: str, dtype: tf.DType) -> None:
    case = CASES[name]
    arrays, expected = arrays_and_expected(case, dtype)

    assert_close(evaluate(arrays, **case.attributes()), expected, dtype)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["lopsided", "batch 9", "vectors and a rest"])
def test_half_precision_with_sampling_in_float32(name: str, dtype: tf.DType) -> None:
    """Locations and weights that half precision does not have."""
    case = CASES[name]
    arrays = case.arrays(dtype)
    sampling = ("sampling_locations", "attention_weights")
    arrays |= {n: case.arrays(tf.float32)[n] + np.float32(1 / 8192) for n in sampling}

    got = evaluate(arrays, **case.attributes())

    expected = case.expected(arrays)
    in_half = ("output", "value")
    assert_close({n: got[n] for n in in_half}, {n: expected[n] for n in in_half}, dtype)
    for name in sampling:
        assert got[name].dtype == tf.float32
        error = np.abs(got[name].numpy() - expected[name]).max()
        assert error < 1e-4 * max(1.0, np.abs(expected[name]).max()), name  # not rounded to 16 bits


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32], ids=lambda d: d.name)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_agrees_with_recorded_results_of_deformable_detr(
    path: pathlib.Path, dtype: tf.DType
) -> None:
    with np.load(path) as file:
        data = dict(file)
    levels = json.loads(str(data["meta"]))["attrs"]["spatial_shapes"]
    names = ("value", "sampling_locations", "attention_weights")

    def load(name: str, to: np.dtype) -> np.ndarray:
        array = data[name]
        if name.endswith("sampling_locations"):
            array = convert.yx_from_xy(array).numpy()
        return array.astype(to)

    arrays = {name: load(name, dtype.as_numpy_dtype) for name in names}
    arrays["grad_output"] = load("grad_y", dtype.as_numpy_dtype)
    expected = {name: load(f"grad_{name}", np.float64) for name in names}
    expected["output"] = data["y"]

    got = evaluate(arrays, spatial_shapes=levels)

    if dtype == tf.float64:
        for name, want in expected.items():
            np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-9, err_msg=name)
    else:
        # The recorded locations are float64; rounded, they are not quite where they were.
        case = Case(levels=tuple(map(tuple, levels)))
        assert_close(got, case.expected(arrays), dtype)


def test_the_golden_vectors_are_there() -> None:
    assert len(GOLDEN) == 3


# --- Where a position lies ---

POSITIONS = [-np.inf, -1e30, -(2.0**31), -2, -1.5, -1, -1 + 2.0**-20, -0.5, 0, 0.75, 1]
MAP = Case(batch=1, levels=((2, 3), (3, 4)), heads=1, depth=2, points=1, coordinates="pixels")


def _at(positions: np.ndarray, dtype: tf.DType) -> tuple[Case, dict[str, np.ndarray]]:
    """A query for each position (y, x), which reads it on the second map, and the first nowhere."""
    case = dataclasses.replace(MAP, queries=len(positions))
    arrays = case.arrays(dtype)
    arrays["sampling_locations"][:] = -5
    arrays["sampling_locations"][0, :, 0, 1, 0] = positions
    return case, arrays


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda d: d.name)
def test_positions_at_and_beyond_the_border(dtype: tf.DType) -> None:
    height, width = MAP.levels[1]
    # Mirrored, so that H - 1, H, H + 0.5 and +inf are met as well.
    ys = POSITIONS + [height - 1 - q for q in POSITIONS]
    xs = POSITIONS + [width - 1 - q for q in POSITIONS]
    case, arrays = _at(np.array(list(itertools.product(ys, xs))), dtype)

    got = evaluate(arrays, **case.attributes())

    assert all(np.isfinite(tensor).all() for tensor in got.values())
    assert_close(got, case.expected(arrays), dtype)


def test_edges_in_normalised_coordinates() -> None:
    """0 and 1 are the outer edges; half a pixel further all has faded out."""
    levels = [(2, 4)]
    value = tf.ones([1, 8, 1, 1])
    locations = tf.constant([[0.25, 0.5], [0, 0.5], [1, 0.5], [-0.25, 0.5], [0.5, 1.125], [0, 0]])

    output = tf_deformable.multi_scale_deformable_attention(
        value, levels, tf.reshape(locations, [1, 6, 1, 1, 1, 2]), tf.ones([1, 6, 1, 1, 1])
    )

    np.testing.assert_array_equal(output[0, :, 0], [1, 0.5, 0.5, 0, 0, 0.25])


@pytest.mark.parametrize("size", [3, 7, 50, 152, 1000])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda d: d.name)
def test_locations_of_pixel_centres_have_the_slope_of_one_rounding_of_the_product(
    size: int, dtype: tf.DType
) -> None:
    """What an encoder's queries start with: a fused product would move some into another cell."""
    real = dtype.as_numpy_dtype
    value = (np.arange(size) ** 2).astype(real).reshape(1, size, 1, 1)
    locations = ((np.arange(size).astype(real) + real(0.5)) / real(size)).astype(real)
    pairs = np.stack([np.full_like(locations, 0.5), locations], axis=-1)
    arrays = {
        "value": value,
        "sampling_locations": pairs.reshape(1, size, 1, 1, 1, 2),
        "attention_weights": np.ones([1, size, 1, 1, 1], real),
        "grad_output": np.ones([1, size, 1], real),
    }

    got = evaluate(arrays, spatial_shapes=[(1, size)])["sampling_locations"][0, :, 0, 0, 0, 1]

    positions = locations * real(size) - real(0.5)  # rounded twice
    low = np.floor(positions).astype(int)
    padded = np.pad(value[0, :, 0, 0], [1, 1])
    slopes = padded[low + 2] - padded[low + 1]
    np.testing.assert_allclose(got, slopes * real(size), rtol=1e-6)


@pytest.mark.parametrize(
    "position", [(np.nan, 1), (1, np.nan), (np.nan, np.nan), (np.inf, np.nan)], ids=str
)
@pytest.mark.parametrize(
    "dtype", [tf.float64, tf.float32, tf.float16, tf.bfloat16], ids=lambda d: d.name
)
def test_a_nan_position_makes_nan_what_it_touches_and_nothing_else(position, dtype) -> None:
    case, arrays = _at(np.array([(1.5, 0.5), position, (0.25, 2.5)]), dtype)
    case = dataclasses.replace(case, coordinates="normalized")
    arrays["sampling_locations"] /= dtype.as_numpy_dtype(4)

    got = evaluate(arrays, **case.attributes())

    got = {name: np.asarray(t).astype(np.float64) for name, t in got.items()}
    calm = {**arrays, "sampling_locations": np.nan_to_num(arrays["sampling_locations"], nan=-7)}
    untouched = evaluate(calm, **case.attributes())
    for name in ("sampling_locations", "attention_weights"):
        assert np.isnan(got[name][0, 1, 0, 1]).all(), name
        assert np.isfinite(got[name]).sum() == got[name].size - got[name][0, 1, 0, 1].size
    assert np.isnan(got["output"][0, 1]).all()
    np.testing.assert_array_equal(got["output"][0, ::2], untouched["output"][0, ::2])
    np.testing.assert_array_equal(got["value"], untouched["value"])


def test_outside_is_zero_whatever_the_map_holds() -> None:
    case, arrays = _at(np.array([(-3.0, 1.0), (1.0, 5.0), (np.inf, -np.inf)]), tf.float64)
    arrays["value"][:] = np.nan

    for name, tensor in evaluate(arrays, **case.attributes()).items():
        assert not np.any(np.asarray(tensor)), name


def test_infinities_in_the_value_reach_what_is_within_a_pixel() -> None:
    case, arrays = _at(np.array([(0.0, 0.0), (0.0, 1.5), (2.0, 3.0)]), tf.float64)
    arrays["value"][0, 6 + 1, 0] = np.inf  # (0, 1) of the second map

    output = evaluate(arrays, **case.attributes())["output"].numpy()

    assert np.isnan(output[0, 0]).all()  # its cell has a corner there, of weight zero
    assert np.isinf(output[0, 1]).all()
    assert np.isfinite(output[0, 2]).all()


# --- Gradients by finite differences ---

SMALL = Case(batch=1, levels=((4, 3), (2, 2)), heads=2, depth=3, queries=2, points=2)
of_small_cases = pytest.mark.parametrize(
    "case", [SMALL, dataclasses.replace(SMALL, points=(1, 3))], ids=["same points", "own points"]
)


def _small_arguments(case: Case) -> tuple[list[str], list[tf.Tensor], tf.Tensor]:
    arrays = case.arrays()
    grad_output = tf.constant(arrays.pop("grad_output"))
    return list(arrays), [tf.constant(array) for array in arrays.values()], grad_output


@of_small_cases
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    names, values, _ = _small_arguments(case)

    @tf.function  # called once or twice for every element
    def function(*values: tf.Tensor) -> tf.Tensor:
        return tf_deformable.multi_scale_deformable_attention(
            **dict(zip(names, values, strict=True)), **case.attributes()
        )

    # Between pixels' centres the operator is linear in each argument.
    jacobians = tf.test.compute_gradient(function, values, delta=2**-8)
    for name, theoretical, numerical in zip(names, *jacobians, strict=True):
        np.testing.assert_allclose(theoretical, numerical, atol=1e-11, err_msg=name)


@of_small_cases
def test_second_derivatives_agree_with_finite_differences(case: Case) -> None:
    names, values, grad_output = _small_arguments(case)

    @tf.function
    def function(*values: tf.Tensor) -> tf.Tensor:
        *values, upstream = values
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = tf_deformable.multi_scale_deformable_attention(
                **dict(zip(names, values, strict=True)), **case.attributes()
            )
        grads = tape.gradient(output, values, output_gradients=upstream)
        # Weighted unequally, so that no two contributions can cancel.
        return tf.concat([tf.reshape(g, [-1])[::3] * (i + 1) for i, g in enumerate(grads)], axis=0)

    jacobians = tf.test.compute_gradient(function, [*values, grad_output], delta=2**-8)
    for name, theoretical, numerical in zip([*names, "grad_output"], *jacobians, strict=True):
        np.testing.assert_allclose(theoretical, numerical, atol=1e-10, err_msg=name)


# --- How it is called ---


@pytest.mark.parametrize("known", ["shapes", "ranks", "channels", "nothing"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant sizes", "sizes as a tensor"])
def test_graphs_agree_with_eager_mode_whatever_they_know(known: str, constant: bool) -> None:
    case = CASES["lopsided"]
    arrays, expected = arrays_and_expected(case)

    def spec(array: np.ndarray) -> tf.TensorSpec:
        shape: list[int | None] | None = list(array.shape)
        if known == "ranks":
            shape = [None] * array.ndim
        elif known == "channels":
            shape = [None] * (array.ndim - 1) + [array.shape[-1]]
        elif known == "nothing":
            shape = None
        return tf.TensorSpec(shape, array.dtype)

    signature = {argument: spec(array) for argument, array in arrays.items()}
    sizes = tf.TensorSpec([None, 2] if known != "nothing" else None, tf.int64)

    @tf.function(input_signature=[signature, sizes])
    def function(arguments: dict[str, tf.Tensor], sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        return evaluate(arguments, spatial_shapes=case.levels if constant else sizes)

    def call(arrays: dict[str, np.ndarray], case: Case) -> dict[str, tf.Tensor]:
        return function(
            {argument: tf.constant(array) for argument, array in arrays.items()},
            tf.constant(case.levels, tf.int64),
        )

    assert_close(call(arrays, case), expected)
    if known != "shapes":  # one trace serves another size, and other maps if they are not constant
        levels = case.levels if constant else ((2, 3), (6, 1))
        other = dataclasses.replace(case, batch=3, queries=7, levels=levels)
        arrays, expected = arrays_and_expected(other)
        assert_close(call(arrays, other), expected)


@pytest.mark.parametrize("points", [0, (0, 0, 0), 2], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_graphs_without_images_or_points_take_any_number_of_queries(
    batch: int, points: int | tuple[int, ...]
) -> None:
    """A size of 0 leaves open what the unknown one is: it cannot be found by division."""
    case = Case(batch=batch, points=points)
    arrays, expected = arrays_and_expected(case)
    signature = {}
    for name, array in arrays.items():
        shape = [None if name != "value" and i == 1 else n for i, n in enumerate(array.shape)]
        signature[name] = tf.TensorSpec(shape, array.dtype)

    function = tf.function(
        lambda arguments: evaluate(arguments, **case.attributes()), input_signature=[signature]
    )

    assert_close(function({name: tf.constant(a) for name, a in arrays.items()}), expected)


def test_shapes_are_inferred_in_graphs() -> None:
    arrays = Case().arrays()
    del arrays["grad_output"]

    @tf.function
    def function(**arguments: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            output = tf_deformable.multi_scale_deformable_attention(
                spatial_shapes=Case().levels, **arguments
            )
        return [output, tape.gradient(output, arguments)["value"]]

    def shapes_for(**shapes: list[int | None]) -> list[list[int | None]]:
        specs = {
            name: tf.TensorSpec(shapes.get(name, array.shape), array.dtype)
            for name, array in arrays.items()
        }
        return [t.shape.as_list() for t in function.get_concrete_function(**specs).outputs]

    assert shapes_for()[0] == [2, 4, 15]
    assert shapes_for(sampling_locations=[None] * 6)[0] == [2, 4, 15]
    assert shapes_for(attention_weights=[None] * 5)[0] == [2, 4, 15]
    assert shapes_for(value=[None, None, None, 5])[0] == [2, 4, 15]


@pytest.mark.parametrize(
    "sizes",
    [
        [[5, 7], [3, 2], [1, 4]],
        ((5, 7), (3, 2), (1, 4)),
        np.array([[5, 7], [3, 2], [1, 4]], np.int16),
    ],
    ids=["lists", "tuples", "array"],
)
@pytest.mark.parametrize("kind", [lambda sizes: sizes, tf.constant], ids=["as it is", "tensor"])
def test_sizes_of_levels_of_any_kind(sizes: Any, kind: Callable[[Any], Any]) -> None:
    arrays, expected = arrays_and_expected(Case())

    assert_close(evaluate(arrays, spatial_shapes=kind(sizes)), expected)


def test_arguments_are_not_modified() -> None:
    arrays = Case().arrays()
    tensors = {name: tf.constant(array) for name, array in arrays.items()}

    evaluate(tensors, **Case().attributes())

    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def test_the_operation_takes_the_name_given() -> None:
    arrays = Case().arrays(tf.float32)
    del arrays["grad_output"]
    with tf.Graph().as_default() as graph:
        tf_deformable.multi_scale_deformable_attention(
            **arrays, **Case().attributes(), name="encoder"
        )
    names = [operation.name for operation in graph.get_operations()]
    assert names
    assert all(name.startswith("encoder") for name in names)


class _Module(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3, 5], tf.float64),
            tf.TensorSpec([None, 2], tf.int32),
            tf.TensorSpec([None, None, 3, None, 2, 2], tf.float64),
            tf.TensorSpec([None, None, 3, None, 2], tf.float64),
        ]
    )
    def __call__(
        self, value: tf.Tensor, sizes: tf.Tensor, locations: tf.Tensor, weights: tf.Tensor
    ) -> tf.Tensor:
        return tf_deformable.multi_scale_deformable_attention(value, sizes, locations, weights)


def test_a_saved_model_computes_and_learns(tmp_path: pathlib.Path) -> None:
    tf.saved_model.save(_Module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for case in (Case(), Case(levels=((2, 2),), queries=9)):
        arrays, expected = arrays_and_expected(case)
        names = ("value", "sampling_locations", "attention_weights")
        value, locations, weights = (tf.constant(arrays[name]) for name in names)
        with tf.GradientTape() as tape:
            tape.watch([value, locations, weights])
            output = loaded(value, tf.constant(case.levels), locations, weights)
        grads = tape.gradient(
            output, [value, locations, weights], output_gradients=tf.constant(arrays["grad_output"])
        )
        assert_close({"output": output, **dict(zip(names, grads, strict=True))}, expected)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    size = st.integers(0, 5)
    return Case(
        batch=draw(st.integers(0, 3)),
        levels=tuple(draw(st.lists(st.tuples(size, size), min_size=1, max_size=4))),
        heads=draw(st.integers(1, 4)),
        depth=draw(st.integers(1, 20)),
        queries=draw(st.integers(0, 5)),
        points=draw(st.integers(1, 5)),
        coordinates=draw(st.sampled_from(["normalized", "pixels"])),
    )


@given(_cases(), st.integers(0, 99))
def test_any_sizes(case: Case, seed: int) -> None:
    arrays = case.arrays(seed=seed)

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


@hypothesis.settings(max_examples=15)
@given(_cases(), st.sets(st.integers(0, 15)))
def test_any_known_sizes_infer_a_shape_that_holds(case: Case, hidden: set[int]) -> None:
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
        inferred = tf_deformable.multi_scale_deformable_attention(
            **placeholders, **case.attributes()
        ).shape

    assert inferred.is_compatible_with([case.batch, case.queries, case.heads * case.depth])
    assert inferred.is_fully_defined() or hidden
