"""The operators on a GPU that TensorFlow sees: the same as on the CPU, where the oracles are."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops import deformable_attention_cases as attention
from tests.ops import deformable_conv2d_cases as conv2d
from tests.ops import roi_pool_cases as roi_pool
from tf_deformable import config

# Relative errors in the 2-norm: of 16-bit types, sampled values are rounded before the product.
TOLERANCES = {tf.float64: 1e-12, tf.float32: 1e-5, tf.float16: 2e-3, tf.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not config.build_info()["cuda"]:
        pytest.skip("the library was built without CUDA")
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU here; tests/native runs the kernels by an emulation")


@pytest.fixture
def without_tf32():
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


@pytest.fixture
def in_order():
    tf.config.experimental.enable_op_determinism()
    yield
    from tensorflow.python.framework import config as of_tensorflow

    of_tensorflow.disable_op_determinism()


def assert_near(got, expected, dtype: tf.DType) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        have = np.asarray(got[name], np.float64)
        want = np.asarray(want, np.float64)
        np.testing.assert_array_equal(np.isnan(have), np.isnan(want), err_msg=name)
        have, want = np.nan_to_num(have), np.nan_to_num(want)
        error = np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30)
        assert error <= TOLERANCES[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_deformable_conv2d(without_tf32, dtype: tf.DType, in_graph: bool) -> None:
    case = conv2d.Case()
    arrays, expected = conv2d.arrays_and_expected(case, dtype)
    evaluate = tf.function(conv2d.evaluate) if in_graph else conv2d.evaluate
    with tf.device("GPU:0"):
        got = evaluate(arrays, **case.attributes())
    assert "GPU" in got["output"].device
    assert_near(got, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.name)
def test_roi_pool(dtype: tf.DType) -> None:
    case = roi_pool.Case()
    arrays, expected = roi_pool.arrays_and_expected(case, dtype)
    with tf.device("GPU:0"):
        got = roi_pool.evaluate(arrays, **case.attributes())
    assert "GPU" in got["output"].device
    assert_near(got, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("kind", ["eager", "graph", "xla"])
def test_attention(dtype: tf.DType, kind: str) -> None:
    case = attention.Case()
    arrays, expected = attention.arrays_and_expected(case, dtype)
    evaluate = attention.evaluate
    if kind != "eager":
        if kind == "xla" and not config.build_info()["xla"]:
            pytest.skip("the headers of this TensorFlow lack XLA's FFI")
        evaluate = tf.function(evaluate, jit_compile=kind == "xla")
    with tf.device("GPU:0"):
        got = evaluate(arrays, **case.attributes())
    assert "GPU" in got["output"].device
    assert_near(got, expected, dtype)


def test_xla_must_know_sizes_of_levels() -> None:
    arrays = attention.Case().arrays(tf.float32)
    evaluate = tf.function(attention.evaluate, jit_compile=True)
    sizes = tf.constant(attention.Case().levels)
    message = "spatial_shapes must be known when XLA compiles for a GPU"
    with tf.device("GPU:0"), pytest.raises(tf.errors.UnimplementedError, match=message):
        evaluate(arrays, spatial_shapes=sizes)


def test_a_map_that_a_gpu_cannot_count_is_the_callers_argument() -> None:
    height = 1 << 25
    inputs, offsets = tf.zeros([1, height, 1, 1]), tf.zeros([1, 1, 1, 2])
    with tf.device("GPU:0"):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"at most 2\^30 pixels, and 2\^24"
        ):
            tf_deformable.deformable_conv2d(
                inputs, tf.ones([1, 1, 1, 1]), offsets, strides=(height, 1)
            )
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"at most 2\^24 pixels along"):
            tf_deformable.deformable_roi_pool(inputs, [[0.0, 0, 1, 1]], [0], output_size=1)


def test_tensor_float_32_is_as_tensorflow_says(without_tf32) -> None:
    case = conv2d.Case(channels=64, filters=64, groups=1, offset_groups=1)
    arrays = case.arrays(tf.float32)

    def output() -> np.ndarray:
        with tf.device("GPU:0"):
            return conv2d.evaluate(arrays, **case.attributes())["output"].numpy()

    exact = output()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    error = np.linalg.norm(output() - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < 1e-3


def test_determinism_gives_the_same_bits(in_order) -> None:
    case = conv2d.Case(size=(24, 25), channels=24, filters=20, offset_groups=2, padding="SAME")
    arrays = case.arrays(tf.float32)
    with tf.device("GPU:0"):
        first, again = (conv2d.evaluate(arrays, **case.attributes()) for _ in range(2))
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[name], err_msg=name)


def test_an_index_of_no_image_gives_nan() -> None:
    inputs = tf.ones([2, 8, 8, 4])
    boxes = tf.constant([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    with tf.device("GPU:0"):
        pooled = tf_deformable.deformable_roi_pool(inputs, boxes, [1, 2], output_size=2)
    assert np.isfinite(pooled[0]).all() and np.isnan(pooled[1]).all()


def test_training_step_of_a_layer() -> None:
    with tf.device("GPU:0"):
        model = tf.keras.Sequential(
            [tf.keras.Input((9, 9, 3)), tf_deformable.DeformableConv2D(8, 3, modulated=True)]
        )
        model.compile("adam", "mse")
        history = model.fit(tf.ones([4, 9, 9, 3]), tf.ones([4, 7, 7, 8]), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
