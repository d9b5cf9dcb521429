"""Times multi-scale deformable attention and DCNv3 against what else computes them.

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
    """Heads of queries, which sample all levels some pixels around their reference points."""

    name: str
    batch: int
    levels: tuple[tuple[int, int], ...]
    queries: int = 0  # 0: every pixel of every level is one, as in an encoder
    heads: int = 8
    depth: int = 32
    points: int = 4
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


class _OfThePackage(frameworks.TensorFlow):
    differentiated = ("value", "sampling_locations", "attention_weights")

    def expression(self, case: Case, **inputs: Any) -> Any:
        return self.package.multi_scale_deformable_attention(spatial_shapes=case.levels, **inputs)


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


class PyTorch(frameworks.Framework):
    """`grid_sample` of each level, as the code of Deformable DETR for processors without CUDA."""

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
        xy = {"sampling_locations": data["sampling_locations"][..., ::-1].copy()}
        return {name: self.torch.from_numpy(array) for name, array in (data | xy).items()}

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        torch = self.torch
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")
        images = case.batch * case.heads
        pixels = [height * width for height, width in case.levels]

        def forward() -> Tensors:
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
        return array[..., ::-1] if name.endswith("sampling_locations") else array


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
