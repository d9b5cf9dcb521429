"""The handlers of XLA, driven by JAX: a second client of theirs, which knows no TensorFlow."""

from __future__ import annotations

import functools
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
from tests.gpu import deformable_attention_checks as attention  # noqa: E402
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", attention.GOLDEN, ids=lambda p: p.stem)
def test_attention_agrees_with_recorded_results(path, dtype):
    jax_checks.check_golden_attention(path, dtype)


@pytest.mark.parametrize("path", jax_checks.DCNV3_GOLDEN, ids=lambda p: p.stem)
def test_dcnv3_agrees_with_recorded_results(path):
    jax_checks.check_golden_dcnv3(path)


def test_the_golden_vectors_are_there():
    assert len(attention.GOLDEN) == 3
    assert len(jax_checks.DCNV3_GOLDEN) == 4
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["lopsided", "pixels", "vectors", "an empty level", "no queries", "points of each level"],
)
def test_attention_agrees_with_the_oracle(name, dtype):
    jax_checks.check_attention(attention.CASES[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dcnv4_agrees_with_the_oracle(dtype):
    jax_checks.check_dcnv4(dtype)


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


def attention_tensors(dtype="float32"):
    arrays = attention.Case().arrays()
    del arrays["grad_output"]
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def test_sizes_of_levels_that_the_run_tells():
    """One program serves them, as long as their number and that of the pixels stay."""
    traces = 0

    @jax.jit
    def loss_and_grads(tensors, sizes):
        nonlocal traces
        traces += 1

        def loss(tensors):
            output = for_jax.multi_scale_deformable_attention(spatial_shapes=sizes, **tensors)
            return (output**2).sum()

        return jax.value_and_grad(loss)(tensors)

    for levels in (attention.Case().levels, ((4, 5), (4, 5), (1, 5))):
        got = loss_and_grads(attention_tensors(), jnp.array(levels))
        want = loss_and_grads.__wrapped__(attention_tensors(), levels)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert traces == 3  # two are of the calls outside of jax.jit


def test_vmap_of_attention_is_a_call_for_each():
    tensors = attention_tensors()

    def one(tensors):
        batch = {name: tensor[None] for name, tensor in tensors.items()}
        levels = attention.Case().levels
        return for_jax.multi_scale_deformable_attention(spatial_shapes=levels, **batch)[0]

    want = for_jax.multi_scale_deformable_attention(
        spatial_shapes=attention.Case().levels, **tensors
    )
    np.testing.assert_array_equal(jax.vmap(one)(tensors), want)


def test_dcnv3_with_channels_first_and_float32_beside_half_precision():
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(size=[2, 6, 5, 4]), "bfloat16")
    offsets = jnp.asarray(random.normal(size=[2, 6, 5, 36]), "float32")
    mask = jnp.asarray(random.uniform(size=[2, 6, 5, 18]), "float32")
    want = for_jax.dcnv3(inputs, offsets, mask)
    assert want.dtype == "bfloat16"
    first = [jnp.moveaxis(a, 3, 1) for a in (inputs, offsets, mask)]
    got = for_jax.dcnv3(*first, data_format="NCHW")
    np.testing.assert_array_equal(jnp.moveaxis(got, 1, 3), want)
    wide = for_jax.dcnv3(inputs.astype("float32"), offsets, mask)
    np.testing.assert_array_equal(want, wide.astype("bfloat16"))


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
        ({"offsets": [2, 17, 6, 5]}, r"offsets .* \[N,G\*kh\*kw\*2,Ho,Wo\] .* \[2,17,6,5\]$"),
        ({"mask": [2, 6, 5, 9]}, r"mask .* \[N,G\*kh\*kw,Ho,Wo\] = \[2,9,6,5\], .* \[2,6,5,9\]$"),
        ({"inputs": [6, 5, 4]}, r"inputs must have rank 4 \[N,C,H,W\], got shape \[6,5,4\]$"),
    ],
)
def test_messages_show_channels_first_as_they_were_given(changes, message):
    shapes = {"inputs": [2, 4, 6, 5], "offsets": [2, 18, 6, 5], "mask": [2, 9, 6, 5], **changes}
    arrays = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    call = functools.partial(for_jax.deformable_conv2d, data_format="NCHW")
    for function in (call, jax.jit(call)):
        # JAX adds lines of its own.
        with pytest.raises(ValueError, match=f"(?m)^deformable_conv2d: {message}"):
            function(filters=tensors()[1], **arrays)


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_messages_of_dcnv3_show_channels_first_as_they_were_given(name):
    shapes = {"inputs": [2, 4, 6, 5], "offsets": [2, 18, 6, 5], "mask": [2, 8, 6, 5]}
    message = r"mask .* \[N,G\*K,Ho,Wo\] = \[2,9,6,5\], got shape \[2,8,6,5\]$"
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        getattr(for_jax, name)(
            **{argument: jnp.zeros(shape) for argument, shape in shapes.items()},
            data_format="NCHW",
        )


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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"spatial_shapes": ((5, 7), (3, 2), (1, 5))},
            ValueError,
            r"value must have the pixels of all levels, .* got S=45 and spatial_shapes \[\[5,7\]",
        ),
        ({"spatial_shapes": ((5, 7),)}, ValueError, r"sampling_locations must have shape"),
        ({"spatial_shapes": (5, 7)}, ValueError, r"spatial_shapes must have rank 2 \[levels,2\]"),
        ({"spatial_shapes": ((5.0, 7.0),)}, TypeError, "spatial_shapes must be integers, got floa"),
        (
            {"spatial_shapes": ((-1, -35), (3, 2), (1, 4))},
            ValueError,
            "spatial_shapes .* 0, .*-1,-35",
        ),
        ({"value": jnp.zeros([2, 45, 15])}, ValueError, r"value must have rank 4 \[N,S,heads,D\]"),
        ({"coordinates": "xy"}, ValueError, 'coordinates must be "normalized" or "pixels"'),
        ({"num_points": [2, 2, 2]}, ValueError, "sampling_locations must have rank 5 .*num_point"),
        ({"num_points": [2, -1, 2]}, ValueError, r"num_points .* 0, .* got \[2,-1,2\]"),
        ({"num_points": []}, ValueError, "num_points must be None or a list of integers"),
    ],
)
def test_wrong_arguments_of_attention(changes, error, message):
    arguments = {"spatial_shapes": attention.Case().levels, **attention_tensors()}
    with pytest.raises(error, match=f"^multi_scale_deformable_attention: {message}"):
        for_jax.multi_scale_deformable_attention(**{**arguments, **changes})


def test_wrong_sizes_of_levels_that_only_the_run_tells():
    call = jax.jit(for_jax.multi_scale_deformable_attention)
    sizes = jnp.array([[5, 7], [3, 2], [1, 5]])
    with pytest.raises(jax.errors.JaxRuntimeError, match="pixels of all levels, .* got S=45"):
        call(spatial_shapes=sizes, **attention_tensors()).block_until_ready()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": jnp.zeros([2, 6, 5, 17])}, r"offsets channels must be .* K\*2=18, got 17"),
        ({"kernel_size": 2, "remove_center": True}, r"odd kernel_size, got \[2,2\]"),
        ({"offset_scale": float("inf")}, "offset_scale must be finite, got inf"),
        ({"inputs": jnp.zeros([6, 5, 4])}, r"inputs must have rank 4 \[N,H,W,C\]"),
        (
            {"mask": jnp.zeros([2, 6, 5, 8])},
            r"mask must have shape .* \[2,6,5,9\], got .*\[2,6,5,8\]",
        ),
        ({"mask": np.zeros([2, 6, 5, 9])}, r"mask must have the dtype of inputs"),
    ],
)
@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_wrong_arguments_of_dcnv3_and_dcnv4(name, changes, message):
    function = getattr(for_jax, name)
    inputs, _, offsets, mask = tensors()
    arguments = {"inputs": inputs, "offsets": offsets, "mask": mask}
    assert function(**arguments).shape == (2, 6, 5, 4)
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        function(**{**arguments, **changes})


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


@pytest.mark.parametrize("num_masks", [0, 1])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_handlers_of_the_branch(num_masks, dtype):
    """No function of `tf_deformable.jax` calls them. A convolution of JAX gives the same."""
    for_jax._register()
    random = np.random.default_rng(0)
    wide, samples = "float64" if dtype == "float64" else "float32", 2 * 3 * 2
    depth = (2 + num_masks) * samples
    inputs = jnp.array(random.normal(size=(2, 9, 7, 5)), dtype)
    filters = jnp.array(random.normal(size=(3, 2, 5, depth)) / 4, wide)
    bias = jnp.array(random.normal(size=depth), wide)

    def branch(inputs, filters, bias):
        outputs = jax.lax.conv_general_dilated(
            inputs.astype(wide),
            filters,
            (2, 1),
            ((1, 2), (0, 3)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        outputs += bias
        mask = 2 * jax.nn.sigmoid(outputs[..., 2 * samples :])
        return [outputs[..., : 2 * samples], mask][: 1 + num_masks]

    attributes = {
        "num_masks": np.int64(num_masks),
        "largest_mask": np.float32(2),
        "strides": np.array([2, 1]),
        "dilations": np.array([1, 2]),
        "padding": "EXPLICIT",
        "explicit_paddings": np.array([1, 2, 0, 3]),
    }

    def run(name, operands, like):
        results = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in like]
        return jax.ffi.ffi_call(f"tf_deformable_conv2d_{name}", results)(*operands, **attributes)

    expected, gradient = jax.vjp(branch, inputs, filters, bias)
    got = run("branch", [inputs, filters, bias], expected)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)

    upstream = [jnp.array(random.normal(size=each.shape), wide) for each in expected]
    mask = expected[1:]
    got = run("branch_grad", [inputs, filters, *mask, *upstream], [inputs, filters, bias])
    for one, other in zip(got, gradient(upstream), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        narrow = 2**-7 if one.shape == inputs.shape and dtype != "float64" else 10 * tolerance
        np.testing.assert_allclose(one, other, rtol=narrow, atol=narrow * np.abs(other).max())


def test_handlers_check_dtypes():
    inputs, filters, offsets, mask = tensors()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"filters must have the dtype of inputs"):
        for_jax.deformable_conv2d(inputs, filters.astype("float16"), offsets).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"offsets and mask must have dtype float"):
        for_jax.deformable_conv2d(inputs, filters, offsets.astype("float64")).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"inputs must have dtype half, bfloat16"):
        for_jax.deformable_conv2d(inputs.astype("int32"), filters, offsets).block_until_ready()


def test_handlers_check_that_what_says_where_to_sample_has_one_dtype():
    inputs, filters, offsets, mask = (tensor.astype("bfloat16") for tensor in tensors())
    error = jax.errors.JaxRuntimeError
    for wide in ("offsets", "mask"):
        sampling = {"offsets": offsets, "mask": mask}
        sampling[wide] = sampling[wide].astype("float32")
        with pytest.raises(error, match="mask must have the dtype of offsets"):
            for_jax.deformable_conv2d(inputs, filters, **sampling).block_until_ready()

    sampling = {
        "offsets": jnp.zeros([1, 2, 2, 2], "bfloat16"),
        "mask": jnp.ones([1, 2, 2], "float32"),
    }
    boxes = jnp.array([[0, 0, 4, 4]], "float32")
    with pytest.raises(error, match="mask must have the dtype of offsets"):
        for_jax.deformable_roi_pool(
            inputs, boxes, jnp.zeros([1], "int32"), output_size=2, **sampling
        ).block_until_ready()

    value = jnp.ones([1, 20, 2, 8], "bfloat16")
    locations = jnp.full([1, 3, 2, 1, 64, 2], 0.5, "float32")
    weights = jnp.ones([1, 3, 2, 1, 64], "float32")
    for dtypes in (("float32", "bfloat16"), ("bfloat16", "float32")):
        with pytest.raises(error, match="attention_weights must have the dtype of sampling_loc"):
            for_jax.multi_scale_deformable_attention(
                value, [(4, 5)], locations.astype(dtypes[0]), weights.astype(dtypes[1])
            ).block_until_ready()


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
