"""Times the layers of RoI pooling against the operator alone.

    python benchmarks/roi_pool_layers.py

DeformableRoIPool pools twice, with a fully connected layer in between; DeformablePSRoIPool pools
offset fields, which a 1x1 convolution makes, and then its inputs. The operator is given offsets.
docs/benchmarks.md says how it is measured; report.py puts the results there.
"""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import frameworks
import harness
import numpy as np
import roi_pool
from frameworks import GRAD, Call, Data, Tensors
from roi_pool import BINS, Case

SHAPES = roi_pool.SHAPES
BOUNDS: list[harness.Bound] = []


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process.

    Args:
        case: shapes and attributes.
        variant: "deformed": bins move by about 0.1 of the box. "undeformed": offsets, and the
            kernels of what predicts them, are 0.
    """
    data = roi_pool.make_data(case, variant)
    if not case.classes:
        return data
    channels = case.group_size**2 * case.depth
    branch = {  # inputs and outputs
        True: ((BINS**2 * channels,), (BINS**2 * 2,)),
        False: ((1, 1, channels), (case.group_size**2 * case.classes * 2,)),
    }
    inputs, outputs = branch[case.group_size == 1]
    random = np.random.default_rng(1)
    kernel = random.standard_normal((*inputs, *outputs), np.float32)
    # A bin is the mean of many numbers, and so is smaller than they.
    data["offset_kernel"] = kernel * np.float32(3 / math.sqrt(math.prod(inputs)))
    data["offset_bias"] = np.zeros(outputs, np.float32)
    if variant == "undeformed":
        data["offsets"][:] = data["offset_kernel"][:] = 0
    return data


class Layer(frameworks.KerasLayer, frameworks.TfDeformable):
    """Ours, of one image."""

    called_with = ("inputs", "boxes")
    weights: ClassVar[dict[str, str]] = {
        "offset_kernel": "offset_kernel",
        "offset_bias": "offset_bias",
    }

    def load(self, case: Case, data: Data) -> Tensors:
        of_image = {name: data[name][None] for name in ("boxes", "grad_output")}
        return super().load(case, data | of_image)

    def layer(self, case: Case) -> Any:
        layers = self.package.layers
        geometry = {
            "output_size": BINS,
            "spatial_scale": 1 / roi_pool.STRIDE,
            "samples_per_bin": roi_pool.SAMPLES,
            "aligned": False,
        }
        if not case.classes:
            return layers.RoIPool(**geometry)
        if case.group_size == 1:
            return layers.DeformableRoIPool(**geometry, gamma=roi_pool.GAMMA)
        return layers.DeformablePSRoIPool(
            **geometry, group_size=case.group_size, gamma=roi_pool.GAMMA
        )


class LayerEigen(Layer):
    """The same in a process without oneDNN, on which the branch depends."""

    # What it predicts differs by roundings, and derivatives jump where a sample crosses a pixel.
    agrees_on = "undeformed"
    environment: ClassVar[dict[str, str]] = {"TF_ENABLE_ONEDNN_OPTS": "0"}

    def versions(self) -> dict[str, str]:
        return {}  # those of the first


class Operator(roi_pool.TfDeformable):
    """The operator, which is given the offsets."""

    agrees_on = "undeformed"

    def load(self, case: Case, data: Data) -> Tensors:
        kept = {name: array for name, array in data.items() if not name.startswith("offset_")}
        return super().load(case, kept)

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        call = super().prepare(case, mode, inputs)
        # The layer gives no gradient of the offsets.
        given = ("output", GRAD + "inputs")
        return lambda: {name: tensor for name, tensor in call().items() if name in given}

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        array = super().to_numpy(name, tensor)
        return array[None] if name == "output" else array


OPERATOR = "operator"
FRAMEWORKS = {harness.OURS: Layer, "tf_deformable, Eigen": LayerEigen, OPERATOR: Operator}
SECTIONS = [harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True)]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
