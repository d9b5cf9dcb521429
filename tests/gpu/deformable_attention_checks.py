"""Checks of the CUDA kernels of deformable attention against the oracle, for any memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from tests.gpu.deformable_conv2d_checks import Arrays, assert_close, rounded
from tests.gpu.kernels import ROOT, Kernels
from tests.oracles import deformable_attention as oracle

GOLDEN = sorted((ROOT / "tests" / "golden").glob("msda_*.npz"))
NAMES = ("value", "sampling_locations", "attention_weights")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    levels: tuple[tuple[int, int], ...] = ((5, 7), (3, 2), (1, 4))
    heads: int = 3
    depth: int = 5
    queries: int = 4
    points: int | tuple[int, ...] = 2  # of every level, or of each
    coordinates: str = "normalized"
    misaligned: bool = False

    @property
    def num_points(self) -> tuple[int, ...] | None:
        return self.points if isinstance(self.points, tuple) else None

    def sizes(self) -> np.ndarray:
        """The sizes of the levels, to be broadcast to sampling_locations."""
        sizes = np.array(self.levels, np.float64)
        if isinstance(self.points, tuple):
            return np.repeat(sizes, self.points, axis=0)
        return sizes[:, None]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        samples: tuple[int, ...] = (self.batch, self.queries, self.heads)
        if isinstance(self.points, tuple):
            samples += (sum(self.points),)
        else:
            samples += (len(self.levels), self.points)
        pixels = sum(height * width for height, width in self.levels)
        return {
            "value": (self.batch, pixels, self.heads, self.depth),
            "sampling_locations": (*samples, 2),
            "attention_weights": samples,
            "grad_output": (self.batch, self.queries, self.heads * self.depth),
        }

    def arrays(self, seed: int = 0) -> Arrays:
        """Arguments, and the upstream gradient as "grad_output".

        Positions are odd multiples of 1/32 of a pixel, up to 3 pixels outside of the maps: never
        near a pixel's centre, where the derivative jumps.
        """
        random = np.random.default_rng(seed)
        shapes = self.shapes()
        sizes = self.sizes()
        positions = random.uniform(-3, sizes + 2, size=shapes["sampling_locations"])
        positions = (2 * np.floor(positions * 16) + 1) / 32
        if self.coordinates == "normalized":
            positions = (positions + 0.5) / np.maximum(sizes, 1)
        return {
            "value": random.normal(size=shapes["value"]),
            "sampling_locations": positions,
            "attention_weights": random.uniform(size=shapes["attention_weights"]),
            "grad_output": random.normal(size=shapes["grad_output"]),
        }

    def expect(self, arrays: Arrays) -> Arrays:
        """The oracle's results."""
        return oracle.multi_scale_deformable_attention(
            **arrays,
            spatial_shapes=list(self.levels),
            coordinates=self.coordinates,
            num_points=self.num_points,
        )


CASES = {
    "lopsided": Case(),
    "pixels": Case(coordinates="pixels"),
    "vectors": Case(depth=32, heads=2, queries=9, points=4),
    "vectors, pixels": Case(depth=16, heads=4, queries=5, coordinates="pixels"),
    "one channel": Case(depth=1, heads=1),
    "more channels than lanes": Case(depth=272, heads=1, queries=3),
    "many queries": Case(levels=((3, 4), (2, 2)), heads=2, depth=8, queries=150, points=3),
    "many samples": Case(heads=1, depth=9, queries=2, points=90),
    "misaligned": Case(depth=16, misaligned=True),
    "an empty level": Case(levels=((3, 4), (0, 5), (2, 2))),
    "17 levels": Case(levels=tuple((1 + i % 3, 1 + i % 5) for i in range(17)), points=1),
    "points of each level": Case(points=(3, 6, 1)),
    "a level without points": Case(depth=16, points=(2, 0, 40)),
    "no queries": Case(queries=0),
    "no points": Case(points=0),
    "no heads": Case(heads=0),
    "empty batch": Case(batch=0),
}


def golden(path: pathlib.Path) -> tuple[Case, Arrays, Arrays]:
    """Sizes, arguments and results of a call that transformers' Deformable DETR has recorded."""
    with np.load(path) as file:
        data = dict(file)
    arrays = {name: data[name] for name in NAMES} | {"grad_output": data["grad_y"]}
    expected = {name: data[f"grad_{name}"] for name in NAMES} | {"output": data["y"]}
    for of in (arrays, expected):  # theirs are (x, y)
        of["sampling_locations"] = of["sampling_locations"][..., ::-1]
    batch, queries, heads, _, points = arrays["attention_weights"].shape
    case = Case(
        batch=batch,
        levels=tuple(map(tuple, json.loads(str(data["meta"]))["attrs"]["spatial_shapes"])),
        heads=heads,
        depth=arrays["value"].shape[3],
        queries=queries,
        points=points,
    )
    return case, arrays, expected


def evaluate(kernels: Kernels, case: Case, arrays: Arrays, dtype: str, **options: Any) -> Arrays:
    """Results of the kernels on the arguments as rounded to `dtype`."""
    memory = kernels.memory
    dtypes = _dtypes(dtype, options.get("wide_sampling", False))
    put = {
        name: memory.put(array, dtypes.get(name, dtype), case.misaligned)
        for name, array in arrays.items()
    }
    likes = {"output": "grad_output", **{name: name for name in NAMES}}
    results = {
        name: memory.put(
            np.full(arrays[like].shape, np.nan), dtypes.get(like, dtype), case.misaligned
        )
        for name, like in likes.items()
    }
    common = {
        "shapes": [arrays["value"].shape, arrays["attention_weights"].shape],
        "levels": case.levels,
        "num_points": case.num_points,
        "coordinates": case.coordinates,
        **options,
    }
    arguments = [put[name] for name in NAMES]
    kernels.attention([*arguments, results["output"]], dtype, gradient=False, **common)
    gradients = [results[name] for name in NAMES]
    kernels.attention([*arguments, put["grad_output"], *gradients], dtype, gradient=True, **common)
    return {name: memory.get(tensor) for name, tensor in results.items()}


def _dtypes(dtype: str, wide_sampling: bool) -> dict[str, str]:
    of_positions = "float64" if dtype == "float64" else "float32"
    return dict.fromkeys(NAMES[1:], of_positions) if wide_sampling else {}


# As in deformable_conv2d_checks.py.
@functools.lru_cache(maxsize=8)
def _expected(case: Case, dtype: str, seed: int, wide_sampling: bool) -> Arrays:
    return case.expect(rounded(case.arrays(seed), dtype, _dtypes(dtype, wide_sampling)))


def check(kernels: Kernels, case: Case, dtype: str, seed: int = 0, **options: Any) -> None:
    """Compares output and gradients with the oracle's."""
    got = evaluate(kernels, case, case.arrays(seed), dtype, **options)
    expected = _expected(case, dtype, seed, options.get("wide_sampling", False))
    assert_close(got, expected, dtype, tensor_float_32=False)


# Positions in pixels of which something may be special, for a map of 5 x 7.
ODD = (-np.inf, -1e30, -(2.0**31), -2, -1, -1 + 2.0**-20, 0, 3, 4, 5, 6, 7, 1e30, np.inf, np.nan)


def check_odd_positions(kernels: Kernels, dtype: str, depth: int, **options: Any) -> None:
    """Positions that are NaN, infinite, huge, on the border, and integers."""
    positions = np.stack(np.meshgrid(ODD, ODD, indexing="ij"), axis=-1).reshape(-1, 2)
    case = Case(
        batch=1,
        levels=((2, 3), (5, 7)),
        heads=1,
        depth=depth,
        queries=len(positions),
        points=1,
        coordinates="pixels",
    )
    arrays = case.arrays()
    arrays["sampling_locations"][0, :, 0, 1, 0] = positions
    got = evaluate(kernels, case, arrays, dtype, **options)
    of_kernels = rounded(arrays, dtype, _dtypes(dtype, options.get("wide_sampling", False)))
    with np.errstate(invalid="ignore"):
        expected = case.expect(of_kernels)
    assert_close(got, expected, dtype, tensor_float_32=False)


def check_golden(kernels: Kernels, path: pathlib.Path, **options: Any) -> None:
    """Compares with what transformers' code computed, in float64."""
    case, arrays, expected = golden(path)
    got = evaluate(kernels, case, arrays, "float64", **options)
    assert_close(got, expected, "float64")


def workspace_bytes(kernels: Kernels, case: Case, dtype: str) -> int:
    """What the gradient of a call needs beside its tensors."""
    shapes = case.shapes()
    return kernels.attention(
        None,
        dtype,
        gradient=True,
        shapes=[shapes["value"], shapes["attention_weights"]],
        levels=case.levels,
        num_points=case.num_points,
        coordinates=case.coordinates,
    )
