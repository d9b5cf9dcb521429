"""Times the layer DeformableConv2D, against Conv2D and against the operator alone.

    python benchmarks/deformable_conv2d_layer.py [--quick]

The layer is the operator and the branch that predicts its offsets. What the branch has to compute
is a convolution with D = 18*G filters (27*G with a mask), D/F of the layer's own work.
docs/benchmarks.md says how it is measured; report.py puts the results there.
"""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import deformable_conv2d
import frameworks
import harness
import numpy as np
from deformable_conv2d import Case
from frameworks import GRAD, Call, Data, Tensors

SHAPES = [*deformable_conv2d.SHAPES, Case("S6", 1, 47, 61, 192, 320, offset_groups=2)]
SMALL = [case for case in deformable_conv2d.SMALL if case.groups == 1]

# Generous: what breaks them is a fast path that is no longer taken, not a loaded machine.
BOUNDS = [
    harness.Bound(deformable_conv2d.QUICK, "forward", "Conv2D", 3.0),
    harness.Bound(deformable_conv2d.QUICK, "step", "Conv2D", 3.0),
]


def branch_filters(case: Case) -> int:
    """Returns D, the filters of the branch."""
    return case.taps * case.offset_groups * (3 if case.modulated else 2)


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process.

    Args:
        case: shapes and attributes.
        variant: "deformed": the branch predicts offsets with a deviation of 2 pixels, which is what
            those have that the operator is given. "undeformed": its filters are 0.
    """
    data = deformable_conv2d.make_data(case, variant)
    random = np.random.default_rng(1)
    size, fan_in = branch_filters(case), case.taps * case.channels
    kernel = random.standard_normal((3, 3, case.channels, size), np.float32)
    data["offset_kernel"] = kernel * np.float32(2 / math.sqrt(fan_in) * (variant == "deformed"))
    data["offset_bias"] = np.zeros(size, np.float32)
    data["bias"] = random.standard_normal(case.filters, np.float32)
    return data


class Conv2D(frameworks.KerasLayer):
    """The yardstick: the plain layer, which does not predict anything."""

    agrees_on = "undeformed"
    weights: ClassVar[dict[str, str]] = {"filters": "kernel", "bias": "bias"}

    def layer(self, case: Case) -> Any:
        return self.tf.keras.layers.Conv2D(
            case.filters, 3, padding="same", dilation_rate=case.dilation
        )


class Conv2DEigen(Conv2D):
    """The same without oneDNN, which is not always the quicker one."""

    environment: ClassVar[dict[str, str]] = {"TF_ENABLE_ONEDNN_OPTS": "0"}

    def versions(self) -> dict[str, str]:
        return {}  # those of the yardstick


class Layer(frameworks.KerasLayer, frameworks.TfDeformable):
    """Ours."""

    weights: ClassVar[dict[str, str]] = {
        **Conv2D.weights,
        "offset_kernel": "offset_kernel",
        "offset_bias": "offset_bias",
    }

    def layer(self, case: Case) -> Any:
        return self.package.DeformableConv2D(
            case.filters,
            3,
            padding="same",
            dilation_rate=case.dilation,
            offset_groups=case.offset_groups,
            modulated=case.modulated,
            mask_initial_value=1.0,
        )


class LayerEigen(Layer):
    """The same in a process without oneDNN, on which what is left to TensorFlow depends."""

    # What it predicts differs by roundings, and derivatives jump where a sample crosses a pixel.
    agrees_on = "undeformed"
    environment = Conv2DEigen.environment

    def versions(self) -> dict[str, str]:
        return {}


class Operator(frameworks.TfDeformable):
    """The operator, which is given the offsets."""

    agrees_on = "undeformed"
    differentiated = (*deformable_conv2d.DIFFERENTIATED, "bias")

    def load(self, case: Case, data: Data) -> Tensors:
        kept = {name: array for name, array in data.items() if not name.startswith("offset_")}
        return super().load(case, kept)

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        call = super().prepare(case, mode, inputs)
        # The layer gives no gradients of the offsets.
        given = {"output", *(GRAD + name for name in ("inputs", *Conv2D.weights))}
        return lambda: {name: tensor for name, tensor in call().items() if name in given}

    def expression(self, case: Case, **inputs: Any) -> Any:
        return self.package.deformable_conv2d(**inputs, dilations=case.dilation)


CONV2D, EIGEN, LAYER_EIGEN, OPERATOR = "Conv2D", "Conv2D, Eigen", "tf_deformable, Eigen", "operator"
FRAMEWORKS = {
    CONV2D: Conv2D,
    EIGEN: Conv2DEigen,
    harness.OURS: Layer,
    LAYER_EIGEN: LayerEigen,
    OPERATOR: Operator,
}
SECTIONS = [
    harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True),
    harness.Section(
        "small",
        SMALL,
        (CONV2D, harness.OURS, OPERATOR),
        modes=("forward", "step", "eager"),
        one_thread=True,
        seconds=0.2,
    ),
]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
