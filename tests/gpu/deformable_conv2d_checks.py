"""Checks of the CUDA kernels of the deformable convolution against the oracle, for any memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from tests.gpu.kernels import ROOT, HostMemory, Kernels
from tests.oracles import deformable_conv2d as oracle

Arrays = dict[str, np.ndarray]

GOLDEN = sorted((ROOT / "tests" / "golden").glob("dcn_*.npz"))
NAMES = ("inputs", "filters", "offsets", "mask")

# Relative errors in the 2-norm that a correct kernel stays below. Of 16-bit types and TF32 each
# factor of a product is rounded once, which leaves about half an eps; results are rounded again.
TOLERANCES = {"float64": 1e-13, "float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    size: tuple[int, int] = (7, 5)
    channels: int = 6
    filters: int = 4
    kernel: tuple[int, int] = (3, 2)
    strides: tuple[int, int] = (2, 1)
    dilations: tuple[int, int] = (2, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 2), (2, 0))
    groups: int = 2
    offset_groups: int = 3
    mask: bool = True
    bias: bool = True
    misaligned: bool = False

    def axes(self) -> list[oracle.Axis]:
        sizes = zip(self.size, self.kernel, self.strides, self.dilations, self.padding, strict=True)
        return [oracle.axis(*axis) for axis in sizes]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        y, x = self.axes()
        grid = (self.batch, y.output, x.output)
        samples = self.offset_groups * self.kernel[0] * self.kernel[1]
        return {
            "inputs": (self.batch, *self.size, self.channels),
            "filters": (*self.kernel, self.channels // self.groups, self.filters),
            "offsets": (*grid, 2 * samples),
            "mask": (*grid, samples),
            "bias": (self.filters,),
            "grad_output": (*grid, self.filters),
        }

    def arrays(self, seed: int = 0) -> Arrays:
        """Arguments, and the upstream gradient as "grad_output".

        Offsets are odd multiples of 1/32 between -4 and 4: exact in every dtype, and never lead to
        an integer position, where the derivative jumps.
        """
        random = np.random.default_rng(seed)
        shapes = self.shapes()
        arrays = {
            "inputs": random.normal(size=shapes["inputs"]),
            "filters": random.normal(size=shapes["filters"]),
            "offsets": (2 * random.integers(-64, 64, shapes["offsets"]) + 1) / 32,
            "mask": random.uniform(size=shapes["mask"]),
            "bias": random.normal(size=shapes["bias"]),
            "grad_output": random.normal(size=shapes["grad_output"]),
        }
        absent = [name for name in ("mask", "bias") if not getattr(self, name)]
        return {name: array for name, array in arrays.items() if name not in absent}


PLAIN = {
    "strides": (1, 1),
    "dilations": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "kernel": (3, 3),
    "groups": 1,
    "offset_groups": 1,
    "mask": False,
    "bias": False,
}


def plain(**changes: Any) -> Case:
    """A case with a 3x3 kernel, stride 1, and nothing special."""
    return Case(**{**PLAIN, **changes})


CASES = {
    "lopsided": Case(),
    "vectors": plain(size=(9, 8), channels=16, filters=8, mask=True, bias=True),
    # So many filters that no dtype's block holds grad_output as a whole.
    "wide": plain(batch=1, size=(5, 13), channels=72, filters=392, mask=True),
    "many channels": plain(batch=1, size=(6, 5), channels=200, filters=72, offset_groups=5),
    "groups": plain(size=(6, 6), channels=48, filters=48, groups=3, offset_groups=2, mask=True),
    "more groups than offset groups": plain(
        batch=1, size=(6, 6), channels=64, filters=32, groups=4, offset_groups=2
    ),
    "square tiles": plain(batch=2, size=(16, 16), channels=16, filters=16, strides=(1, 1)),
    "many taps": plain(
        batch=1, size=(8, 7), channels=16, filters=8, kernel=(4, 5), padding=((2, 2), (3, 1))
    ),
    "pointwise": plain(size=(5, 5), channels=8, filters=136, kernel=(1, 1), padding=((0, 0),) * 2),
    "misaligned": plain(size=(6, 5), channels=16, filters=16, misaligned=True, mask=True),
    "one channel": plain(batch=1, size=(6, 5), channels=1, filters=1),
    "depthwise": plain(size=(6, 7), channels=40, filters=40, groups=40, mask=True, bias=True),
    "depthwise, offset groups": plain(
        size=(5, 6), channels=24, filters=24, groups=24, offset_groups=3
    ),
    "depthwise, odd": plain(
        size=(5, 6), channels=10, filters=10, groups=10, offset_groups=2, mask=True
    ),
    "channel multiplier": plain(size=(5, 6), channels=6, filters=12, groups=6),
    # The upstream gradient of a block fits into shared memory, or not; with 392 filters, by dtype.
    "resident": plain(batch=1, size=(6, 7), channels=32, filters=200, mask=True),
    "streamed": plain(batch=1, size=(5, 6), channels=16, filters=640),
    "many small groups": plain(batch=1, size=(4, 5), channels=512, filters=512, groups=64),
    "runs across taps": plain(size=(6, 5), channels=12, filters=8),
    # Teams of 8, 16 and 32 threads gather channels, these several times if need be.
    "ranges": plain(size=(6, 5), channels=264, filters=8, mask=True),
    "misaligned, 50 channels": plain(size=(4, 5), channels=50, filters=8, misaligned=True),
    "misaligned, 100 channels": plain(size=(4, 5), channels=100, filters=8, misaligned=True),
    "misaligned, 140 channels": plain(size=(4, 5), channels=140, filters=8, misaligned=True),
    "depthwise, 48 channels": plain(size=(4, 5), channels=48, filters=48, groups=48),
    "depthwise, 96 channels": plain(size=(4, 5), channels=96, filters=96, groups=96),
    "depthwise, 272 channels": plain(size=(4, 5), channels=272, filters=272, groups=272, mask=True),
    "depthwise, 49 channels": plain(size=(4, 5), channels=49, filters=49, groups=49),
    "depthwise, 99 channels": plain(size=(4, 5), channels=99, filters=99, groups=99),
    "depthwise, 131 channels": plain(size=(4, 5), channels=131, filters=131, groups=131),
    "empty batch": plain(batch=0, channels=8, filters=8),
    "empty map": plain(size=(0, 4), channels=8, filters=8, padding=((2, 2), (1, 1))),
}


def sampling_dtypes(dtype: str) -> dict[str, str]:
    """The dtypes of offsets and mask that are as wide as positions."""
    return dict.fromkeys(("offsets", "mask"), "float64" if dtype == "float64" else "float32")


def evaluate(
    kernels: Kernels,
    case: Case,
    arrays: Arrays,
    dtype: str,
    part: bool | str = True,
    **options: Any,
) -> Arrays:
    """Results of the kernels on the arguments as rounded to `dtype`.

    `part` is that of the gradient, see Kernels.conv2d; what is not computed is NaN.
    """
    memory = kernels.memory
    shapes = case.shapes()
    dtypes = sampling_dtypes(dtype) if options.get("wide_sampling") else {}
    put = {
        name: memory.put(array, dtypes.get(name, dtype), case.misaligned)
        for name, array in arrays.items()
    }

    def result(name: str) -> Any:
        # Poisoned: what is not written is found.
        poison = np.full(shapes[name], np.nan)
        return memory.put(poison, dtypes.get(name, dtype), case.misaligned)

    results = {"output": result("grad_output"), "inputs": result("inputs")}
    results |= {"filters": result("filters"), "offsets": result("offsets")}
    if "mask" in put:
        results["mask"] = result("mask")
    common = {**_attributes(case), **options}
    arguments = [put.get(name) for name in NAMES]
    with_bias = [*arguments, put.get("bias"), results["output"]]
    kernels.conv2d(with_bias, dtype, gradient=False, **common)
    kernels.conv2d(
        [*arguments, put["grad_output"], *(results.get(name) for name in NAMES)],
        dtype,
        gradient=part,
        **common,
    )
    return {name: memory.get(tensor) for name, tensor in results.items()}


def expect(case: Case, arrays: Arrays) -> Arrays:
    """The oracle's results."""
    y, x = case.axes()
    results = oracle.deformable_conv2d(
        **{"mask": None, "bias": None, **arrays},
        strides=case.strides,
        dilations=case.dilations,
        before=(y.before, x.before),
    )
    results.pop("bias", None)
    return results


def assert_close(got: Arrays, expected: Arrays, dtype: str, tensor_float_32: bool = True) -> None:
    """Raises AssertionError unless all results are there, finite where expected, and close."""
    precision = "tf32" if dtype == "float32" and tensor_float_32 else dtype
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        have = got[name]
        assert have.shape == want.shape, name
        np.testing.assert_array_equal(np.isnan(have), np.isnan(want), err_msg=name)
        have, want = np.nan_to_num(have), np.nan_to_num(want)
        error = np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30)
        if not want.any():
            error = np.abs(have).max(initial=0)
        assert error <= TOLERANCES[precision], f"{name}: relative error {error:.2e} in {precision}"


def rounded(arrays: Arrays, dtype: str, dtypes: dict[str, str]) -> Arrays:
    """The arrays as they are in `dtype`, or in the one that `dtypes` has for them."""
    memory = HostMemory()
    return {
        name: memory.get(memory.put(array, dtypes.get(name, dtype)))
        for name, array in arrays.items()
    }


def hostile_arrays(case: Case, dtype: str, seed: int = 0) -> Arrays:
    """Arguments with positions that are NaN, infinite, huge, on the border, and integers."""
    random = np.random.default_rng(seed)
    arrays = case.arrays(seed)
    offsets = arrays["offsets"]
    special = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, 0, 1, -1, 2, -0.5])
    if dtype == "float16":
        special = special[np.isnan(special) | (np.abs(special) < 6e4) | np.isinf(special)]
    where = random.random(offsets.shape) < 0.3
    offsets[where] = random.choice(special, where.sum())
    return arrays


# The oracle takes longer than the kernels, and no option but `wide_sampling` changes its results.
@functools.lru_cache(maxsize=8)
def _expected(case: Case, dtype: str, seed: int, hostile: bool, wide_sampling: bool) -> Arrays:
    arrays = hostile_arrays(case, dtype, seed) if hostile else case.arrays(seed)
    dtypes = sampling_dtypes(dtype) if wide_sampling else {}
    return expect(case, rounded(arrays, dtype, dtypes))


def check(
    kernels: Kernels,
    case: Case,
    dtype: str,
    seed: int = 0,
    hostile: bool = False,
    **options: Any,
) -> None:
    """Compares output and gradients with the oracle's; `hostile`: see `hostile_arrays`."""
    arrays = hostile_arrays(case, dtype, seed) if hostile else case.arrays(seed)
    got = evaluate(kernels, case, arrays, dtype, **options)
    expected = _expected(case, dtype, seed, hostile, options.get("wide_sampling", False))
    assert_close(got, expected, dtype, options.get("tensor_float_32", True))


def _attributes(case: Case) -> dict[str, Any]:
    shapes = case.shapes()
    return {
        "shapes": [shapes[name] for name in NAMES[:3]],
        "strides": case.strides,
        "dilations": case.dilations,
        "padding": case.padding,
    }


def workspace_bytes(kernels: Kernels, case: Case, dtype: str, **options: Any) -> int:
    """What the gradient needs beside its tensors."""
    return kernels.conv2d(None, dtype, gradient=True, **_attributes(case), **options)


def run_on_nothing(kernels: Kernels, case: Case, dtype: str) -> None:
    """Calls the operator with null pointers, to see it refuse the geometry."""
    kernels.conv2d([None] * 6, dtype, gradient=False, **_attributes(case))


def golden(path: pathlib.Path) -> tuple[Case, Arrays, Arrays]:
    """Case, arguments and recorded results of a golden vector."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    attributes = json.loads(str(data["meta"]))["attrs"]

    def nhwc(name: str) -> np.ndarray:
        return data[name].transpose(0, 2, 3, 1)

    def hwio(name: str) -> np.ndarray:
        return data[name].transpose(2, 3, 1, 0)

    arguments = {"inputs": nhwc("x"), "filters": hwio("weight"), "offsets": nhwc("offset")}
    results = {"output": nhwc("y"), "inputs": nhwc("grad_x"), "filters": hwio("grad_weight")}
    results["offsets"] = nhwc("grad_offset")
    arguments["grad_output"] = nhwc("grad_y")
    if "mask" in data:
        arguments["mask"], results["mask"] = nhwc("mask"), nhwc("grad_mask")
    if "bias" in data:
        arguments["bias"] = data["bias"]
    batch, height, width, channels = arguments["inputs"].shape
    filters = arguments["filters"]
    taps = filters.shape[0] * filters.shape[1]
    case = Case(
        batch=batch,
        size=(height, width),
        channels=channels,
        filters=filters.shape[3],
        kernel=filters.shape[:2],
        strides=tuple(attributes["stride"]),
        dilations=tuple(attributes["dilation"]),
        padding=tuple((pad, pad) for pad in attributes["padding"]),
        groups=channels // filters.shape[2],
        offset_groups=arguments["offsets"].shape[3] // (2 * taps),
        mask="mask" in data,
        bias="bias" in data,
    )
    return case, arguments, results


def check_golden(kernels: Kernels, path: pathlib.Path) -> None:
    """Compares with what other implementations computed, in float64."""
    case, arguments, expected = golden(path)
    got = evaluate(kernels, case, arguments, "float64")
    assert_close(got, expected, "float64")
