"""The handlers of XLA, driven by JAX: a second client of theirs, which knows no TensorFlow."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_deformable import NativeLibraryError, _native

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy
if not (_native._FOLDER / _native._HANDLERS).exists():
    pytest.skip("the library of the handlers was not built", allow_module_level=True)

from tests import jax_checks  # noqa: E402
from tests.gpu import deformable_conv2d_checks as conv2d  # noqa: E402
from tests.gpu import roi_pool_checks as roi_pool  # noqa: E402
from tf_deformable import jax as for_jax  # noqa: E402

DTYPES = ("float64", "float32", "float16", "bfloat16")


@pytest.fixture(autouse=True)
def with_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", conv2d.GOLDEN, ids=lambda p: p.stem)
def test_convolution_agrees_with_recorded_results(path, dtype):
    jax_checks.check_golden_conv2d(path, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", jax_checks.ROI_POOL_GOLDEN, ids=lambda p: p.stem)
def test_roi_pooling_agrees_with_recorded_results(path, dtype):
    jax_checks.check_golden_roi_pool(path, dtype)


def test_the_golden_vectors_are_there():
    assert len(conv2d.GOLDEN) == 10
    assert len(jax_checks.ROI_POOL_GOLDEN) == 7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["lopsided", "vectors", "groups", "depthwise", "empty batch"])
def test_convolution_agrees_with_the_oracle(name, dtype):
    jax_checks.check_conv2d(conv2d.CASES[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["lopsided", "aligned", "adaptive", "plain", "no boxes"])
def test_roi_pooling_agrees_with_the_oracle(name, dtype):
    jax_checks.check_roi_pool(roi_pool.CASES[name], dtype)


# --- What JAX does with functions ----------------------------------------------------------------


def tensors(dtype="float32"):
    random = np.random.default_rng(0)
    shapes = ([2, 6, 5, 4], [3, 3, 4, 3], [2, 6, 5, 18], [2, 6, 5, 9])
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def test_channels_first():
    inputs, filters, offsets, mask = tensors()
    expected = for_jax.deformable_conv2d(inputs, filters, offsets, mask)
    first = [jnp.moveaxis(a, 3, 1) for a in (inputs, offsets, mask)]
    got = for_jax.deformable_conv2d(first[0], filters, *first[1:], data_format="NCHW")
    np.testing.assert_array_equal(jnp.moveaxis(got, 1, 3), expected)


def test_float32_offsets_beside_half_precision():
    inputs, filters, offsets, _ = tensors()
    half = [inputs.astype("bfloat16"), filters.astype("bfloat16")]
    got = for_jax.deformable_conv2d(*half, offsets)
    expected = for_jax.deformable_conv2d(*(a.astype("float32") for a in half), offsets)
    np.testing.assert_array_equal(got, expected.astype("bfloat16"))


def test_vmap_is_a_call_for_each():
    inputs, filters, offsets, mask = tensors()

    def one(inputs, offsets, mask):
        return for_jax.deformable_conv2d(inputs[None], filters, offsets[None], mask[None])[0]

    got = jax.vmap(one)(inputs, offsets, mask)
    np.testing.assert_array_equal(got, for_jax.deformable_conv2d(inputs, filters, offsets, mask))


def test_a_model_learns_its_offsets():
    """Gradient descent by JAX finds the shift between two pictures."""
    rows, columns = np.mgrid[:12, :12] / 2
    picture = (np.sin(rows) + np.cos(columns)).astype(np.float32)[None, :, :, None]
    filters = np.ones([1, 1, 1, 1], np.float32)

    def shifted(offset):
        offsets = jnp.broadcast_to(offset, [1, 12, 12, 2])
        return for_jax.deformable_conv2d(picture, filters, offsets)[:, 2:-2, 2:-2]

    wanted = shifted(jnp.array([0.4, -0.3], "float32"))
    step = jax.jit(jax.grad(lambda offset: ((shifted(offset) - wanted) ** 2).mean()))
    offset = jnp.array([0.05, 0.05], "float32")
    for _ in range(200):
        offset -= 2 * step(offset)
    np.testing.assert_allclose(offset, [0.4, -0.3], atol=1e-3)


def test_boxes_are_not_differentiated():
    inputs = tensors()[0]
    boxes = jnp.array([[1.0, 1, 4, 4]])

    def pooled(boxes):
        return for_jax.deformable_roi_pool(inputs, boxes, [0], output_size=2).sum()

    np.testing.assert_array_equal(jax.grad(pooled)(boxes), jnp.zeros([1, 4]))


def test_box_indices_beyond_int32_are_not_wrapped():
    with pytest.raises(jax.errors.JaxRuntimeError, match="got 2147483647 at 0"):
        for_jax.deformable_roi_pool(
            tensors()[0], [[0.0, 0, 1, 1]], jnp.array([2**32]), output_size=1
        ).block_until_ready()


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": jnp.zeros([2, 6, 5, 17])}, "offsets must have shape .*G.18.*17"),
        ({"strides": 0}, r"strides must be 2 positive integers \(y, x\), .* got \[0,0\]"),
        ({"padding": "CAUSAL"}, 'padding must be "SAME", "VALID" or .*"CAUSAL"'),
        ({"inputs": jnp.zeros([6, 5, 4])}, r"inputs must have rank 4 \[N,H,W,C\], .*\[6,5,4\]"),
        ({"data_format": "HWNC"}, 'data_format must be "NHWC" or "NCHW", got "HWNC"'),
    ],
)
def test_wrong_arguments_of_the_convolution(changes, message):
    arguments = dict(zip(("inputs", "filters", "offsets", "mask"), tensors(), strict=True))
    with pytest.raises(ValueError, match=f"^deformable_conv2d: {message}"):
        for_jax.deformable_conv2d(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_indices": [0, 0]}, r"box_indices must have shape \[R\] = \[1\], got shape \[2\]"),
        ({"samples_per_bin": 0, "aligned": False}, "samples_per_bin must be a positive integer"),
        ({"offsets": jnp.zeros([1, 2, 2])}, r"offsets must have rank 4 \[R,part_h,part_w,2\]"),
        ({"offsets": jnp.zeros([3, 2, 2, 2])}, r"offsets must have .*\[R,part_h,part_w,2\]"),
        ({"spatial_scale": float("nan")}, "spatial_scale must be finite and positive, got nan"),
    ],
)
def test_wrong_arguments_of_roi_pooling(changes, message):
    arguments = {"inputs": tensors()[0], "boxes": [[0.0, 0, 1, 1]], "box_indices": [0]}
    with pytest.raises(ValueError, match=f"^deformable_roi_pool: {message}"):
        for_jax.deformable_roi_pool(**{**arguments, "output_size": 2, **changes})


# What no caller of these functions can get wrong, but who calls the handlers without them.


def call(name, operands, shape=(2, 6, 5, 3), dtype="float32", **changes):
    attributes = {
        "num_masks": np.int64(0),
        "num_biases": np.int64(0),
        "strides": np.array([1, 1]),
        "dilations": np.array([1, 1]),
        "padding": "SAME",
        "explicit_paddings": np.array([], np.int64),
        **changes,
    }
    result = jax.ShapeDtypeStruct(shape, dtype)
    return jax.ffi.ffi_call(name, [result])(*operands, **attributes)[0].block_until_ready()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 6, 5, 4)}, r"result 0 must be float\[2,6,5,3\], got float\[2,6,5,4\]"),
        ({"dtype": "float16"}, r"result 0 must be float\[2,6,5,3\], got half\[2,6,5,3\]"),
        ({"padding": "CAUSAL"}, "padding must be SAME, VALID or EXPLICIT, got CAUSAL"),
        ({"num_masks": np.int64(1)}, "there must be 4 tensors, got 3"),
        ({"num_masks": np.int64(2)}, "num_masks must be 0 or 1, got 2"),
        ({"strides": np.array([1])}, r"strides must be 2 positive integers .* got \[1\]"),
        ({"strides": np.int64(1)}, "the attribute strides: "),
    ],
)
def test_handlers_check_what_they_are_given(changes, message):
    operands = tensors()[:3]
    expected = for_jax.deformable_conv2d(*operands)
    np.testing.assert_array_equal(call("tf_deformable_conv2d", operands), expected)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"deformable_conv2d: {message}"):
        call("tf_deformable_conv2d", operands, **changes)


def test_handlers_check_dtypes():
    inputs, filters, offsets, mask = tensors()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"filters must have the dtype of inputs"):
        for_jax.deformable_conv2d(inputs, filters.astype("float16"), offsets).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"offsets and mask must have dtype float"):
        for_jax.deformable_conv2d(inputs, filters, offsets.astype("float64")).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"inputs must have dtype half, bfloat16"):
        for_jax.deformable_conv2d(inputs.astype("int32"), filters, offsets).block_until_ready()


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    with pytest.raises(NativeLibraryError, match="library of the handlers for XLA, .* is missing"):
        _native.xla_handlers()


_WITHOUT_TENSORFLOW = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(name)

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "tensorflow" else find_spec(name, *a)
sys.meta_path.insert(0, Absent())
import jax.numpy as jnp
from tf_deformable.jax import deformable_conv2d

inputs, filters, offsets = jnp.ones([1, 4, 4, 1]), jnp.ones([1, 1, 1, 1]), jnp.zeros([1, 4, 4, 2])
print(deformable_conv2d(inputs, filters, offsets).sum())
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_need_not_be_installed():
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW],
        capture_output=True,
        text=True,
        cwd=Path(importlib.import_module("tf_deformable").__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "16.0\n"
