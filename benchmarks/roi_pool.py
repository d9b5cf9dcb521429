"""Times RoI pooling, deformable and plain, against other packages.

    python benchmarks/roi_pool.py [--peers-python PYTHON]... [--quick]

docs/benchmarks.md says how it is measured; report.py puts the results there.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import frameworks
import harness
import numpy as np
from frameworks import Data, Tensors

STRIDE = 16  # pixels of the image per pixel of the map
BINS = 7
SAMPLES = 4  # of a bin, along each axis
GAMMA = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """Boxes of one image, 7x7 bins of 4x4 samples."""

    name: str
    boxes: int
    height: int
    width: int
    depth: int  # output channels
    group_size: int = 1
    classes: int = 0  # of offsets; 0: plain pooling
    dtype: str = "float32"

    @property
    def operations(self) -> int:
        """Returns the multiplications and additions of interpolating every sample by itself."""
        return self.boxes * (BINS * SAMPLES) ** 2 * self.depth * 8

    @property
    def warm_up(self) -> Case:
        """Returns a tiny case that runs the same code."""
        return dataclasses.replace(self, boxes=2, height=10, width=10)

    @property
    def description(self) -> str:
        """Returns the shape in words."""
        channels = f"{self.group_size**2 * self.depth} channels"
        form = (
            f"{self.classes} offset class{'es' * (self.classes > 1)}" if self.classes else "plain"
        )
        return f"{self.boxes} boxes, {self.height}x{self.width} map, {channels}, {form}"


SHAPES = [
    Case("R-FCN head", 300, 38, 63, depth=21, group_size=7, classes=21),
    Case("Faster R-CNN head", 300, 38, 63, depth=256, classes=1),
    Case("plain", 300, 38, 63, depth=256),
]

QUICK = Case("plain", 30, 20, 30, depth=64)
QUICK_DEFORMABLE = Case("R-FCN head", 30, 20, 30, depth=21, group_size=7, classes=21)
# Generous: what breaks them is a fast path that is no longer taken, not a loaded machine.
BOUNDS = [
    harness.Bound(QUICK, "forward", "crop_and_resize", 1.0),
    harness.Bound(QUICK, "step", "crop_and_resize", 1.5),
    harness.Bound(QUICK_DEFORMABLE, "forward", "TensorFlow gather", 0.5),
    harness.Bound(QUICK_DEFORMABLE, "step", "TensorFlow gather", 0.5),
]


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process; there is one variant of it."""
    del variant
    random = np.random.default_rng(0)
    # All samples of plain pooling are on the map: what others do with the rest differs.
    last = np.array([case.height, case.width]) * STRIDE - STRIDE / 2 - 1
    sizes = np.exp(random.uniform(np.log(32), np.log(400), (case.boxes, 2)))
    centers = random.uniform(0, last, (case.boxes, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
    boxes = np.clip(boxes, STRIDE / 2, np.tile(last, 2))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    data = {
        "inputs": normal(1, case.height, case.width, case.group_size**2 * case.depth),
        "boxes": boxes.astype(np.float32),
        "box_indices": np.zeros(case.boxes, np.int32),
        "grad_output": normal(case.boxes, BINS, BINS, case.depth),
    }
    if case.classes:
        data["offsets"] = normal(case.boxes, BINS, BINS, case.classes, 2)
    return data


class _OfThePackage(frameworks.TensorFlow):
    differentiated = ("inputs", "offsets")

    def expression(self, case: Case, **inputs: Any) -> Any:
        return self.package.deformable_psroi_pool(
            **inputs,
            output_size=BINS,
            group_size=case.group_size,
            spatial_scale=1 / STRIDE,
            samples_per_bin=SAMPLES,
            gamma=GAMMA,
            aligned=False,
        )


class TfDeformable(_OfThePackage, frameworks.TfDeformable):
    """Ours."""


class Gather(_OfThePackage, frameworks.Gather):
    """The reference implementation."""


class GatherXla(Gather):
    """The reference implementation, compiled by XLA."""

    modes = ("forward", "step")
    jit_compile = True


class CropAndResize(frameworks.TensorFlow):
    """TensorFlow's own: as many samples at the same positions, then their averages."""

    differentiated = ("inputs",)

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.classes

    def load(self, case: Case, data: Data) -> Tensors:
        # The positions of the first and the last sample, over those of the corner pixels.
        boxes = np.floor(data["boxes"] + 0.5)
        size = (boxes[:, 2:] + 1 - boxes[:, :2]) / STRIDE
        first = boxes[:, :2] / STRIDE - 0.5
        last = first + size * (1 - 1 / (BINS * SAMPLES))
        corners = np.array([case.height, case.width]) - 1
        normalised = np.concatenate([first / corners, last / corners], axis=1, dtype=np.float32)
        return super().load(case, {**data, "boxes": normalised})

    def expression(self, case: Case, inputs: Any, boxes: Any, box_indices: Any) -> Any:
        size = [BINS * SAMPLES] * 2
        samples = self.tf.image.crop_and_resize(inputs, boxes, box_indices, size)
        return self.tf.nn.avg_pool2d(samples, SAMPLES, SAMPLES, "VALID")


class _Peer(frameworks.Framework):
    """A framework that has the layout of the authors' operator."""

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.dtype == "float32"

    def peer_arrays(self, case: Case, data: Data) -> Data:
        """Returns the data in that layout.

        inputs [N,D*k*k,H,W], rois [R,5] = (image, x1, y1, x2, y2), offsets [R,classes*2,7,7] with
        dx before dy, grad_output [R,D,7,7].
        """
        k, (height, width) = case.group_size, data["inputs"].shape[1:3]
        maps = data["inputs"].reshape(-1, height, width, k, k, case.depth)
        maps = maps.transpose(0, 5, 3, 4, 1, 2).reshape(-1, case.depth * k * k, height, width)
        image = data["box_indices"].astype(np.float32)[:, None]
        arrays = {
            "inputs": maps,
            "rois": np.concatenate([image, data["boxes"][:, [1, 0, 3, 2]]], axis=1),
            "grad_output": data["grad_output"].transpose(0, 3, 1, 2),
        }
        if case.classes:
            offsets = data["offsets"][..., ::-1].transpose(0, 3, 4, 1, 2)
            arrays["offsets"] = offsets.reshape(case.boxes, -1, BINS, BINS)
        self._case = case
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        array = tensor if isinstance(tensor, np.ndarray) else tensor.asnumpy()
        if name == "output":
            return array.transpose(0, 2, 3, 1)
        if name == "grad_offsets":
            array = array.reshape(len(array), -1, 2, BINS, BINS)
            return array.transpose(0, 3, 4, 1, 2)[..., ::-1]
        k, (height, width) = self._case.group_size, array.shape[2:]
        maps = array.reshape(-1, self._case.depth, k, k, height, width)
        return maps.transpose(0, 4, 5, 2, 3, 1).reshape(len(array), height, width, -1)


class OpenVino(_Peer, frameworks.OpenVino):
    """OpenVINO's DeformablePSROIPooling, which has as many bins as groups."""

    @classmethod
    def supports(cls, case: Case) -> bool:
        return super().supports(case) and case.group_size == BINS

    def load(self, case: Case, data: Data) -> Tensors:
        return self.peer_arrays(case, data)

    def node(self, case: Case, inputs: Any, rois: Any, offsets: Any = None) -> Any:
        return self.opset.deformable_psroi_pooling(
            inputs,
            rois,
            output_dim=case.depth,
            spatial_scale=1 / STRIDE,
            group_size=case.group_size,
            spatial_bins_x=SAMPLES,
            spatial_bins_y=SAMPLES,
            trans_std=GAMMA,
            part_size=BINS,
            offsets=offsets,
        )


class MxNet(_Peer, frameworks.MxNet):
    """MXNet's DeformablePSROIPooling, the authors'."""

    differentiated = ("inputs", "offsets")

    def load(self, case: Case, data: Data) -> Tensors:
        return self.to_tensors(self.peer_arrays(case, data))

    def expression(self, case: Case, inputs: Any, rois: Any, offsets: Any = None) -> Any:
        return self.mxnet.nd.contrib.DeformablePSROIPooling(
            inputs,
            rois,
            *([] if offsets is None else [offsets]),
            spatial_scale=1 / STRIDE,
            output_dim=case.depth,
            group_size=case.group_size,
            pooled_size=BINS,
            part_size=BINS,
            sample_per_part=SAMPLES,
            trans_std=GAMMA,
            no_trans=offsets is None,
        )


FRAMEWORKS = {
    harness.OURS: TfDeformable,
    "crop_and_resize": CropAndResize,
    "OpenVINO": OpenVino,
    "MXNet": MxNet,
    "TensorFlow gather, XLA": GatherXla,
    "TensorFlow gather": Gather,
}
SECTIONS = [harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True)]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
