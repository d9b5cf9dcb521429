"""Checks of `tf_deformable.jax`, on JAX's default device: the oracles, and the golden vectors.

TensorFlow is not needed. Cases and oracles are those of the CUDA kernels.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.gpu import deformable_attention_checks as attention
from tests.gpu import deformable_conv2d_checks as conv2d
from tests.gpu import roi_pool_checks as roi_pool
from tests.gpu.kernels import ROOT
from tests.oracles.dcnv3 import dcnv3 as dcnv3_oracle
from tf_deformable.jax import (
    dcnv3,
    dcnv4,
    deformable_conv2d,
    deformable_psroi_pool,
    multi_scale_deformable_attention,
)

Arrays = dict[str, np.ndarray]

ROI_POOL_GOLDEN = sorted((ROOT / "tests" / "golden").glob("psroi_*.npz"))
DCNV3_GOLDEN = sorted((ROOT / "tests" / "golden").glob("dcnv3_*.npz"))


def evaluate(
    function: Callable[..., jax.Array], arrays: Arrays, dtype: str, **attributes: Any
) -> tuple[Arrays, Arrays]:
    """Output and gradients of a compiled call, and the arguments as rounded to `dtype`."""
    kept = {"box_indices": "int32", "boxes": "float64" if dtype == "float64" else "float32"}
    arguments = {name: jnp.asarray(a, kept.get(name, dtype)) for name, a in arrays.items()}
    rounded = {name: np.asarray(a).astype(np.float64) for name, a in arguments.items()}
    rounded |= {name: arrays[name] for name in ("box_indices",) if name in arrays}
    grad_output = arguments.pop("grad_output")
    regions = {name: arguments.pop(name) for name in kept if name in arguments}

    @jax.jit
    def call(arguments: dict[str, jax.Array], grad_output: jax.Array) -> dict[str, jax.Array]:
        output, backward = jax.vjp(lambda a: function(**a, **regions, **attributes), arguments)
        return {"output": output, **backward(grad_output)[0]}

    results = call(arguments, grad_output)
    for name, result in results.items():
        assert result.dtype == dtype, name
    return {name: np.asarray(a).astype(np.float64) for name, a in results.items()}, rounded


def check_conv2d(case: conv2d.Case, dtype: str) -> None:
    """Compares output and gradients with the oracle's."""
    got, rounded = evaluate(
        deformable_conv2d,
        case.arrays(),
        dtype,
        strides=case.strides,
        dilations=case.dilations,
        padding=[[0, 0], *case.padding, [0, 0]],
    )
    expected = conv2d.expect(case, rounded)
    if case.bias:
        expected["bias"] = rounded["grad_output"].sum((0, 1, 2))
    conv2d.assert_close(got, expected, dtype, tensor_float_32=_tensor_float_32())


def check_roi_pool(case: roi_pool.Case, dtype: str) -> None:
    """Compares output and gradients with the oracle's."""
    got, rounded = evaluate(
        deformable_psroi_pool,
        case.arrays(),
        dtype,
        output_size=case.output_size,
        group_size=case.group_size,
        spatial_scale=case.spatial_scale,
        samples_per_bin=case.samples_per_bin,
        gamma=case.gamma,
        aligned=case.aligned,
    )
    conv2d.assert_close(got, roi_pool.expect(case, rounded), dtype, tensor_float_32=False)


def check_golden_conv2d(path: pathlib.Path, dtype: str) -> None:
    """Compares with what other implementations computed."""
    case, arguments, expected = conv2d.golden(path)
    if case.bias:
        expected["bias"] = arguments["grad_output"].astype(np.float64).sum((0, 1, 2))
    got, _ = evaluate(
        deformable_conv2d,
        arguments,
        dtype,
        strides=case.strides,
        dilations=case.dilations,
        padding=[[0, 0], *case.padding, [0, 0]],
    )
    conv2d.assert_close(got, expected, dtype, tensor_float_32=_tensor_float_32())


def check_golden_roi_pool(path: pathlib.Path, dtype: str) -> None:
    """Compares with what the authors' operator computed."""
    with np.load(path) as file:
        data = dict(file)
    recorded = json.loads(str(data["meta"]))["attrs"]
    k = recorded["group_size"]

    def maps(name: str) -> np.ndarray:
        """[N, D*k*k, H, W] with channels (D, row, column) as [N, H, W, k*k*D]."""
        n, _, height, width = data[name].shape
        parts = data[name].reshape(n, -1, k, k, height, width)
        return parts.transpose(0, 4, 5, 2, 3, 1).reshape(n, height, width, -1)

    def offsets(name: str) -> np.ndarray:
        """[R, classes*(dx, dy), part, part] as [R, part, part, classes, (dy, dx)]."""
        count, _, *part = data[name].shape
        planes = data[name].reshape(count, -1, 2, *part)[:, :, ::-1]
        return planes.transpose(0, 3, 4, 1, 2)

    rois = data["rois"]
    got, _ = evaluate(
        deformable_psroi_pool,
        {
            "inputs": maps("x"),
            "boxes": rois[:, [2, 1, 4, 3]],
            "box_indices": rois[:, 0].astype(np.int32),
            "offsets": offsets("trans"),
            "grad_output": data["grad_y"].transpose(0, 2, 3, 1),
        },
        dtype,
        output_size=recorded["pooled_size"],
        group_size=k,
        spatial_scale=recorded["spatial_scale"],
        samples_per_bin=recorded["sample_per_part"],
        gamma=recorded["trans_std"],
        aligned=False,
    )
    expected = {
        "output": data["y"].transpose(0, 2, 3, 1),
        "inputs": maps("grad_x"),
        "offsets": offsets("grad_trans"),
    }
    conv2d.assert_close(got, expected, dtype, tensor_float_32=False)


def check_attention(case: attention.Case, dtype: str) -> None:
    """Compares output and gradients with the oracle's."""
    got, rounded = evaluate(
        multi_scale_deformable_attention,
        case.arrays(),
        dtype,
        spatial_shapes=case.levels,
        coordinates=case.coordinates,
        num_points=case.num_points,
    )
    conv2d.assert_close(got, case.expect(rounded), dtype, tensor_float_32=False)


def check_golden_attention(path: pathlib.Path, dtype: str) -> None:
    """Compares with what transformers' Deformable DETR computed."""
    case, arguments, expected = attention.golden(path)
    got, rounded = evaluate(
        multi_scale_deformable_attention, arguments, dtype, spatial_shapes=case.levels
    )
    if dtype != "float64":  # rounded, the locations are not quite where they were
        expected = case.expect(rounded)
    conv2d.assert_close(got, expected, dtype, tensor_float_32=False)


def check_dcnv4(dtype: str) -> None:
    """Compares output and gradients with the oracle's, with a mask that is no softmax's."""
    random = np.random.default_rng(0)
    arrays = {
        "inputs": random.normal(size=[2, 7, 6, 12]),
        # Odd multiples of 1/16: never at a pixel's centre, where the derivative jumps.
        "offsets": (2 * random.integers(-24, 24, [2, 4, 3, 3 * 8 * 2]) + 1) / 16,
        "mask": random.normal(scale=3, size=[2, 4, 3, 3 * 8]),
        "grad_output": random.normal(size=[2, 4, 3, 12]),
    }
    got, rounded = evaluate(
        dcnv4,
        arrays,
        dtype,
        strides=2,
        padding=[[0, 0], [1, 1], [1, 1], [0, 0]],
        offset_scale=0.5,
        remove_center=True,
    )
    expected = dcnv3_oracle(
        **rounded,
        kernel_size=(3, 3),
        strides=(2, 2),
        dilations=(1, 1),
        before=(1, 1),
        offset_scale=0.5,
        remove_center=True,
    )
    conv2d.assert_close(got, expected, dtype, tensor_float_32=False)


def check_golden_dcnv3(path: pathlib.Path) -> None:
    """Compares with what InternImage's code computed, in float64."""
    with np.load(path) as file:
        data = dict(file)
    recorded = json.loads(str(data["meta"]))["attrs"]
    kernel, remove_center = tuple(recorded["kernel"]), recorded["remove_center"]

    def rows_first(array: np.ndarray, numbers: int) -> np.ndarray:
        """Taps column by column, and pairs (dx, dy), in this package's order."""
        *grid, size = array.shape
        count = kernel[0] * kernel[1] - remove_center
        taps = array.reshape(*grid, -1, count, numbers)[..., ::-1]
        order = [
            row + column * kernel[0] for row in range(kernel[0]) for column in range(kernel[1])
        ]
        if remove_center:
            center = order[len(order) // 2]
            order = [tap - (tap > center) for tap in order if tap != center]
        return taps[..., order, :].reshape(*grid, size)

    got, _ = evaluate(
        dcnv3,
        {
            "inputs": data["x"],
            "offsets": rows_first(data["offset"], 2),
            "mask": rows_first(data["mask"], 1),
            "grad_output": data["grad_y"],
        },
        "float64",
        kernel_size=kernel,
        strides=recorded["strides"],
        padding=[[0, 0], *([pad, pad] for pad in recorded["padding"]), [0, 0]],
        dilations=recorded["dilations"],
        offset_scale=recorded["offset_scale"],
        remove_center=remove_center,
    )
    expected = {
        "output": data["y"],
        "inputs": data["grad_x"],
        "offsets": rows_first(data["grad_offset"], 2),
        "mask": rows_first(data["grad_mask"], 1),
    }
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-9, err_msg=name)


def _tensor_float_32() -> bool:
    """Whether products of float32 are rounded to TF32: where there are tensor cores."""
    return jax.default_backend() == "gpu"
