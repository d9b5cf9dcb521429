"""Times multi-scale deformable attention, DCNv3 and DCNv4 against what else computes them.

    python benchmarks/deformable_attention.py [--quick] [--peers-python PYTHON]...

KerasHub's runs in an interpreter that has TensorFlow and keras-hub, PyTorch's in one with torch.

docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

import frameworks
import harness
import numpy as np
from frameworks import Call, Data, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """Heads of queries, which sample all levels some pixels around their reference points.

    Or "dcnv3" or "dcnv4" as it is called: one map, of which each pixel is a query, the groups are
    the heads, and 3x3 taps are the points, which are moved by offsets.
    """

    name: str
    batch: int
    levels: tuple[tuple[int, int], ...]
    queries: int = 0  # 0: every pixel of every level is one, as in an encoder
    heads: int = 8
    depth: int = 32
    points: int = 4
    function: str = "multi_scale_deformable_attention"
    dtype: str = "float32"

    @property
    def pixels(self) -> int:
        """Returns the number of pixels of all levels."""
        return sum(height * width for height, width in self.levels)

    @property
    def rows(self) -> int:
        """Returns the number of queries of an image."""
        return self.queries or self.pixels

    @property
    def operations(self) -> int:
        """Returns the multiplications and additions of interpolating every sample."""
        samples = self.batch * self.rows * self.heads * len(self.levels) * self.points
        return samples * self.depth * 8

    @property
    def warm_up(self) -> Case:
        """Returns a tiny case that runs the same code."""
        levels = tuple((4, 5) for _ in self.levels)
        return dataclasses.replace(self, batch=1, levels=levels)

    @property
    def description(self) -> str:
        """Returns the shape in words."""
        maps = "+".join(f"{height}x{width}" for height, width in self.levels)
        queries = f"{self.queries} queries" if self.queries else "all positions"
        heads = f"{self.heads} heads of {self.depth}"
        return f"{self.batch} images, {maps}, {queries}, {heads}, {self.points} points"


DETR = ((100, 152), (50, 76), (25, 38), (13, 19))
HALF = ((50, 76), (25, 38), (13, 19), (7, 10))
D_FINE = ((80, 80), (40, 40), (20, 20))
SHAPES = [
    Case("DETR encoder", 2, DETR),
    Case("DETR encoder, half", 1, HALF),
    Case("DETR decoder", 2, DETR, queries=300),
    Case("D-FINE decoder", 1, D_FINE, queries=300),
    # What DCNv3 is to the operator: one map, the groups as heads, 3x3 taps as points.
    Case("InternImage-T, stage 3", 4, ((14, 14),), heads=16, depth=16, points=9),
    Case("InternImage-T, 56x56", 4, ((56, 56),), heads=16, depth=16, points=9),
    # The same from offsets: what is added is to make positions of them. DCNv4's mask is no softmax.
    Case("DCNv3, 14x14", 4, ((14, 14),), heads=16, depth=16, points=9, function="dcnv3"),
    Case("DCNv3, 56x56", 4, ((56, 56),), heads=16, depth=16, points=9, function="dcnv3"),
    Case("DCNv4, 14x14", 4, ((14, 14),), heads=16, depth=16, points=9, function="dcnv4"),
    Case("DCNv4, 56x56", 4, ((56, 56),), heads=16, depth=16, points=9, function="dcnv4"),
]
DTYPES = [
    dataclasses.replace(SHAPES[1], name=dtype, dtype=dtype)
    for dtype in ("float32", "bfloat16", "float16", "float64")
]

QUICK = Case("encoder", 1, ((20, 30), (10, 15)))
# Generous: what breaks them is a fast path that is no longer taken, not a loaded machine.
BOUNDS = [
    harness.Bound(QUICK, "forward", "TensorFlow gather", 0.25),
    harness.Bound(QUICK, "step", "TensorFlow gather", 0.25),
]


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process; there is one variant of it."""
    del variant
    if case.function != "multi_scale_deformable_attention":
        return _make_window_data(case)
    random = np.random.default_rng(0)
    sizes = np.array(case.levels, np.float32)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    if case.queries:
        references = random.uniform(size=(case.batch, case.queries, 2))
    else:
        centers = [(np.indices(size).reshape(2, -1).T + 0.5) / size for size in case.levels]
        references = np.concatenate(centers)[None]
    samples = (case.batch, case.rows, case.heads, len(case.levels), case.points)
    offsets = 2 * normal(*samples, 2) / sizes[:, None]
    weights = np.exp(normal(*samples))
    return {
        "value": normal(case.batch, case.pixels, case.heads, case.depth),
        "sampling_locations": (references[:, :, None, None, None] + offsets).astype(np.float32),
        "attention_weights": weights / weights.sum(axis=(-2, -1), keepdims=True),
        "grad_output": normal(case.batch, case.rows, case.heads * case.depth),
    }


def _make_window_data(case: Case) -> Data:
    """The data of `dcnv3` or `dcnv4`; the mask of DCNv3 is a softmax."""
    random = np.random.default_rng(0)
    pixels = (case.batch, *case.levels[0])
    mask = random.standard_normal((*pixels, case.heads, case.points), np.float32)
    if case.function == "dcnv3":
        mask = np.exp(mask)
        mask /= mask.sum(axis=-1, keepdims=True)
    channels = case.heads * case.depth
    taps = case.heads * case.points
    return {
        "inputs": random.standard_normal((*pixels, channels), np.float32),
        "offsets": random.standard_normal((*pixels, taps * 2), np.float32),
        "mask": mask.reshape(*pixels, taps),
        "grad_output": random.standard_normal((*pixels, channels), np.float32),
    }


class _OfThePackage(frameworks.TensorFlow):
    # Those that a case has not are passed over.
    differentiated = (
        *("value", "sampling_locations", "attention_weights"),
        *("inputs", "offsets", "mask"),
    )

    def expression(self, case: Case, **inputs: Any) -> Any:
        if case.function == "multi_scale_deformable_attention":
            inputs["spatial_shapes"] = case.levels
        return getattr(self.package, case.function)(**inputs)


class KerasHub(frameworks.TensorFlow):
    """What KerasHub's D-FINE does: gathers, a map of a head as an image."""

    modes = ("forward", "step")
    is_tensorflow = False  # a peer: the interpreter of ours need not have KerasHub
    environment: ClassVar[dict[str, str]] = {"KERAS_BACKEND": "tensorflow"}
    differentiated = ("value", "sampling_locations", "attention_weights")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import keras_hub
        from keras_hub.src.models.d_fine import d_fine_utils

        self.version = keras_hub.__version__
        self.attend = d_fine_utils.multi_scale_deformable_attention_v2

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.function == "multi_scale_deformable_attention"

    def versions(self) -> dict[str, str]:
        return {"KerasHub": self.version}

    def expression(self, case: Case, **inputs: Any) -> Any:
        tf = self.tf
        samples = [case.batch, case.rows, case.heads, len(case.levels) * case.points]
        return self.attend(
            inputs["value"],
            tf.constant(case.levels),
            tf.reshape(inputs["sampling_locations"][..., ::-1], [*samples, 2]),
            tf.reshape(inputs["attention_weights"], samples),
            [case.points] * len(case.levels),
            [height * width for height, width in case.levels],
            list(case.levels),
            len(case.levels),
            case.rows,
        )


class KerasHubXla(KerasHub):
    """The same, compiled by XLA."""

    jit_compile = True


def _exchanged(pairs: np.ndarray) -> np.ndarray:
    """Makes (x, y) of (y, x), the pairs lying along the last axis, and the other way round."""
    return np.ascontiguousarray(pairs.reshape(-1, 2)[:, ::-1]).reshape(pairs.shape)


class PyTorch(frameworks.Framework):
    """`grid_sample` of each level, as the code of Deformable DETR for processors without CUDA.

    And of the only map, as the code of InternImage for them.
    """

    pairs = ("sampling_locations", "offsets")  # (x, y) there

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.dtype == "float32"

    def versions(self) -> dict[str, str]:
        return {"PyTorch": self.torch.__version__}

    def load(self, case: Case, data: Data) -> Tensors:
        pairs = {name: _exchanged(data[name]) for name in self.pairs if name in data}
        return {name: self.torch.from_numpy(array) for name, array in (data | pairs).items()}

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        torch = self.torch
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")
        images = case.batch * case.heads
        pixels = [height * width for height, width in case.levels]

        def dcn_forward() -> Tensors:
            height, width = case.levels[0]
            maps = inputs["inputs"].reshape(case.batch, case.pixels, case.heads, case.depth)
            maps = maps.permute(0, 2, 3, 1).reshape(images, case.depth, height, width)
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            down, right = torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing="ij")
            taps = torch.stack([right, down], dim=-1).reshape(1, 1, 9, 2)
            centers = torch.stack([columns, rows], dim=-1).reshape(case.pixels, 1, 1, 2)
            size = torch.tensor([width, height])
            offsets = inputs["offsets"].reshape(case.batch, case.pixels, case.heads, 9, 2)
            grids = (2 * (offsets + (centers + taps)) + 1) / size - 1
            grids = grids.transpose(1, 2).flatten(0, 1)
            mask = inputs["mask"].reshape(case.batch, case.pixels, case.heads, 9)
            weights = mask.transpose(1, 2).reshape(images, 1, case.pixels, 9)
            sampled = torch.nn.functional.grid_sample(
                maps, grids, mode="bilinear", padding_mode="zeros", align_corners=False
            )
            sums = (sampled * weights).sum(-1).reshape(case.batch, -1, case.pixels)
            output = sums.transpose(1, 2).reshape(case.batch, height, width, -1)
            return {"output": output.contiguous()}

        def attention_forward() -> Tensors:
            maps = inputs["value"].permute(0, 2, 3, 1).reshape(images, case.depth, case.pixels)
            # [N*heads, Q, levels, points, 2], -1 and 1 being the edges
            grids = 2 * inputs["sampling_locations"].transpose(1, 2).flatten(0, 1) - 1
            weights = inputs["attention_weights"].transpose(1, 2).reshape(images, 1, case.rows, -1)
            sampled = [
                torch.nn.functional.grid_sample(
                    level.reshape(images, case.depth, *size),
                    grids[:, :, i],
                    mode="bilinear",
                    padding_mode="zeros",
                    align_corners=False,
                )
                for i, (level, size) in enumerate(
                    zip(maps.split(pixels, dim=-1), case.levels, strict=True)
                )
            ]
            sums = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [N*heads, D, Q]
            output = sums.reshape(case.batch, case.heads * case.depth, case.rows)
            return {"output": output.transpose(1, 2).contiguous()}

        is_attention = case.function == "multi_scale_deformable_attention"
        forward = attention_forward if is_attention else dcn_forward

        def step() -> Tensors:
            output = forward()["output"]
            grads = torch.autograd.grad(output, list(inputs.values()), grad_output)
            names = map(frameworks.GRAD.__add__, inputs)
            return {"output": output, **dict(zip(names, grads, strict=True))}

        for tensor in inputs.values():
            tensor.requires_grad_(mode == "step")
        return step if mode == "step" else forward

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        array = tensor.detach().numpy()
        return _exchanged(array) if name.removeprefix(frameworks.GRAD) in self.pairs else array


class TfDeformable(_OfThePackage, frameworks.TfDeformable):
    """Ours."""


class Gather(_OfThePackage, frameworks.Gather):
    """The reference implementation."""


class GatherXla(Gather):
    """The reference implementation, compiled by XLA."""

    modes = ("forward", "step")
    jit_compile = True


FRAMEWORKS = {
    harness.OURS: TfDeformable,
    "PyTorch grid_sample": PyTorch,
    "KerasHub, XLA": KerasHubXla,
    "KerasHub": KerasHub,
    "TensorFlow gather, XLA": GatherXla,
    "TensorFlow gather": Gather,
}
SECTIONS = [
    harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True),
    harness.Section("dtypes", DTYPES, (harness.OURS,)),
]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
