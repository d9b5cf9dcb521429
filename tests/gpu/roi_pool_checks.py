"""Checks of the CUDA kernels of RoI pooling against the oracle, for any memory."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from tests.gpu.deformable_conv2d_checks import Arrays, assert_close, rounded, sampling_dtypes
from tests.gpu.kernels import Kernels
from tests.oracles import roi_pool as oracle

# Boxes that are somehow odd, for a map of some 7 x 9 pixels at the scale 0.5.
ODD = [
    [-100, -90, -50, -60],
    [1000, 900, 1100, 1200],
    [12, 15, 3, 2],
    [5, 6, 5, 6],
    [5.3, 6.1, 5.30001, 6.10001],
    [2.5, -0.5, 8.5, 11.5],
    [-40, -35, 60, 57],
    [1e30, 1e30, 1.5e30, 2e30],
    [-1e30, -1e30, 1e30, 1e30],
    [np.nan, 2, 12, 15],
    [3, 2, np.inf, 15],
]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    size: tuple[int, int] = (7, 9)
    boxes: int = 5
    output_size: tuple[int, int] = (4, 3)
    group_size: int = 2
    depth: int = 6
    part_size: tuple[int, int] | None = (2, 5)  # None: no offsets
    classes: int = 3
    mask: bool = True
    spatial_scale: float = 0.5
    samples_per_bin: int = 3
    gamma: float = 0.25
    aligned: bool = False
    misaligned: bool = False

    def arrays(self, seed: int = 0) -> Arrays:
        """Arguments, and the upstream gradient as "grad_output"; the last boxes are padding."""
        random = np.random.default_rng(seed)
        image = np.array(self.size) / self.spatial_scale
        corners = random.uniform(-0.2, 0.8, [self.boxes, 2]) * image
        sizes = random.uniform(0.1, 0.9, [self.boxes, 2]) * image
        pooled = (self.boxes, *self.output_size)
        arrays = {
            "inputs": random.normal(size=(self.batch, *self.size, self.group_size**2 * self.depth)),
            "boxes": np.concatenate([corners, corners + sizes], axis=1).astype(np.float32),
            "box_indices": np.arange(self.boxes, dtype=np.int32) % (self.batch + 1) - 1,
            "grad_output": random.normal(size=(*pooled, self.depth)),
        }
        if self.part_size is not None:
            arrays["offsets"] = random.normal(size=(*pooled[:1], *self.part_size, self.classes, 2))
            arrays["offsets"] /= 2
        if self.mask:
            arrays["mask"] = random.uniform(size=pooled)
        return arrays


CASES = {
    "lopsided": Case(),
    "aligned": Case(aligned=True),
    "adaptive": Case(aligned=True, samples_per_bin=0),
    "plain": Case(group_size=1, depth=16, part_size=None, mask=False, boxes=9),
    "vectors": Case(group_size=1, depth=48, part_size=(4, 3), classes=1, aligned=True),
    "vectors, classes": Case(depth=32, classes=2, samples_per_bin=4),
    "more channels than lanes": Case(group_size=1, depth=272, classes=1, boxes=3),
    "a class to each channel": Case(depth=21, classes=21, output_size=(2, 2), part_size=(2, 2)),
    "misaligned": Case(depth=16, classes=1, misaligned=True),
    "no offsets but a mask": Case(part_size=None, classes=1),
    "no boxes": Case(boxes=0),
    "empty map": Case(size=(0, 9)),
    "empty batch": Case(batch=0, boxes=2),
}


def evaluate(kernels: Kernels, case: Case, arrays: Arrays, dtype: str, **options: Any) -> Arrays:
    """Results of the kernels on the arguments as rounded to `dtype`."""
    memory = kernels.memory
    dtypes = _dtypes(dtype, options.get("wide_sampling", False))
    of_boxes = ("boxes", "box_indices")
    put = {
        name: memory.put(array, dtypes.get(name, dtype), case.misaligned and name not in of_boxes)
        for name, array in arrays.items()
    }

    def result(like: str) -> Any:
        poison = np.full(arrays[like].shape, np.nan)
        return memory.put(poison, dtypes.get(like, dtype), case.misaligned)

    results = {"output": result("grad_output"), "inputs": result("inputs")}
    results |= {name: result(name) for name in ("offsets", "mask") if name in arrays}
    shapes = [arrays["inputs"].shape, arrays["boxes"].shape]
    common = {
        "shapes": [*shapes, arrays["offsets"].shape if "offsets" in arrays else None],
        "output_size": case.output_size,
        "group_size": case.group_size,
        "samples_per_bin": case.samples_per_bin,
        "aligned": case.aligned,
        "spatial_scale": case.spatial_scale,
        "gamma": case.gamma,
        **options,
    }
    names = ("inputs", "boxes", "box_indices", "offsets", "mask")
    arguments = [put.get(name) for name in names]
    kernels.roi_pool([*arguments, results["output"]], dtype, gradient=False, **common)
    gradients = [results.get(name) for name in ("inputs", "offsets", "mask")]
    kernels.roi_pool([*arguments, put["grad_output"], *gradients], dtype, gradient=True, **common)
    return {name: memory.get(tensor) for name, tensor in results.items()}


def expect(case: Case, arrays: Arrays) -> Arrays:
    """The oracle's results."""
    return oracle.deformable_roi_pool(
        **{"offsets": None, "mask": None, **arrays},
        group_size=case.group_size,
        spatial_scale=float(np.float32(case.spatial_scale)),
        samples_per_bin=case.samples_per_bin,
        gamma=float(np.float32(case.gamma)),
        aligned=case.aligned,
    )


def _dtypes(dtype: str, wide_sampling: bool) -> dict[str, str]:
    of_positions = "float64" if dtype == "float64" else "float32"
    dtypes = {"boxes": of_positions, "box_indices": "int32"}
    return dtypes | (sampling_dtypes(dtype) if wide_sampling else {})


def _expect_rounded(case: Case, arrays: Arrays, dtype: str, wide_sampling: bool) -> Arrays:
    of_kernels = rounded(arrays, dtype, _dtypes(dtype, wide_sampling))
    of_kernels["box_indices"] = arrays["box_indices"]
    return expect(case, of_kernels)


# As in deformable_conv2d_checks.py.
@functools.lru_cache(maxsize=8)
def _expected(case: Case, dtype: str, seed: int, wide_sampling: bool) -> Arrays:
    return _expect_rounded(case, case.arrays(seed), dtype, wide_sampling)


def check(kernels: Kernels, case: Case, dtype: str, seed: int = 0, **options: Any) -> None:
    """Compares output and gradients with the oracle's."""
    got = evaluate(kernels, case, case.arrays(seed), dtype, **options)
    expected = _expected(case, dtype, seed, options.get("wide_sampling", False))
    assert_close(got, expected, dtype, tensor_float_32=False)


def _with_odd_boxes(case: Case) -> tuple[Case, Arrays]:
    # With a sample to each pixel the oracle would not come to an end of the huge ones.
    odd = [box for box in ODD if case.samples_per_bin > 0 or not max(map(abs, box)) > 1e9]
    case = dataclasses.replace(case, boxes=len(odd))
    arrays = case.arrays()
    arrays["boxes"] = np.array(odd, np.float32)
    arrays["box_indices"] = np.arange(len(odd), dtype=np.int32) % case.batch
    if "offsets" in arrays:
        arrays["offsets"].flat[::17] = np.nan
        arrays["offsets"].flat[1::13] = 0
    return case, arrays


@functools.lru_cache(maxsize=2)
def _expected_of_odd_boxes(case: Case, dtype: str) -> Arrays:
    return _expect_rounded(*_with_odd_boxes(case), dtype, wide_sampling=False)


def check_odd_boxes(kernels: Kernels, case: Case, dtype: str, **options: Any) -> None:
    """The same with odd boxes and offsets; in float64, since they hang on rounding."""
    got = evaluate(kernels, *_with_odd_boxes(case), dtype, **options)
    assert_close(got, _expected_of_odd_boxes(case, dtype), dtype, tensor_float_32=False)


def check_boxes_beyond_float32(kernels: Kernels, aligned: bool, samples: int) -> None:
    """Boxes whose size no float32 can say are nowhere, and nothing of them is NaN."""
    case = Case(boxes=3, spatial_scale=1.0, aligned=aligned, samples_per_bin=samples)
    arrays = case.arrays()
    largest = 3e38
    arrays["boxes"][:] = [
        [-largest, -largest, largest, largest],
        [-largest, 0, largest, 5],
        [0, largest, 5, -largest],
    ]
    arrays["box_indices"][:] = 0
    for name, array in evaluate(kernels, case, arrays, "float32").items():
        assert not np.any(array), name


def check_indices(kernels: Kernels, dtype: str) -> None:
    """An index that is no image's gives NaN, and its gradient goes nowhere."""
    case = Case(boxes=4)
    arrays = case.arrays()
    arrays["box_indices"] = np.array([0, case.batch, -2, 1], np.int32)
    got = evaluate(kernels, case, arrays, dtype)
    arrays["box_indices"] = np.array([0, 0, 0, 1], np.int32)
    arrays["boxes"][1:3] = np.nan
    expected = _expect_rounded(case, arrays, dtype, wide_sampling=False)
    assert_close(got, expected, dtype, tensor_float_32=False)


def check_converted_boxes(kernels: Kernels) -> None:
    """Boxes are converted to the type in which positions are computed."""
    boxes = Case().arrays()["boxes"].astype(np.float64) / 3
    memory = kernels.memory
    for source, target in (("float64", "float32"), ("float32", "float64")):
        put = memory.put(boxes, source)
        converted = memory.put(np.full(boxes.shape, np.nan), target)
        kernels.convert_boxes(put, converted, boxes.size, source)
        want = memory.get(put).astype(target)
        np.testing.assert_array_equal(memory.get(converted), want)
