"""Times deformable convolution, against the plain one and against other packages.

    python benchmarks/deformable_conv2d.py [--peers-python PYTHON]... [--quick]

docs/benchmarks.md says how it is measured; report.py puts the results there.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any, ClassVar

import frameworks
import harness
import numpy as np
from frameworks import GRAD, Call, Data, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """A 3x3 kernel with stride 1 and "SAME" padding."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    filters: int
    dilation: int = 1
    groups: int = 1
    offset_groups: int = 1
    modulated: bool = False
    dtype: str = "float32"

    @property
    def taps(self) -> int:
        """Returns the number of taps of the kernel."""
        return 9

    @property
    def group_channels(self) -> int:
        """Returns the number of input channels that a filter reads."""
        return self.channels // self.groups

    @property
    def operations(self) -> int:
        """Returns the multiplications and additions of the plain convolution."""
        pixels = self.batch * self.height * self.width
        return 2 * pixels * self.taps * self.group_channels * self.filters

    @property
    def warm_up(self) -> Case:
        """Returns a tiny case that runs the same code."""
        channels = 8 * self.groups * self.offset_groups
        return dataclasses.replace(
            self, batch=1, height=8, width=8, channels=channels, filters=channels
        )

    @property
    def description(self) -> str:
        """Returns the shape in words."""
        words = f"{self.batch},{self.height},{self.width},{self.channels}→{self.filters}"
        if self.dilation > 1:
            words += f", dilation {self.dilation}"
        if self.groups > 1:
            depthwise = self.groups == self.channels
            words += ", depthwise" if depthwise else f", {self.groups} groups"
        if self.offset_groups > 1:
            words += f", G={self.offset_groups}"
        return words + (", mask" if self.modulated else "")


SHAPES = [
    Case("S1", 1, 38, 63, 512, 512, dilation=2, offset_groups=4),  # res5 of the paper
    Case("S2", 1, 64, 64, 256, 256),
    Case("S3", 8, 28, 28, 128, 128),
    Case("S4", 2, 100, 152, 64, 64, modulated=True),
    Case("S5", 32, 14, 14, 256, 256),
]
SMALL = [
    Case("1x1", 1, 1, 1, 32, 32),
    Case("3 channels", 1, 7, 7, 3, 16),
    Case("7x7", 1, 7, 7, 16, 16),
    Case("14x14", 1, 14, 14, 32, 32),
    Case("14x14 mask", 1, 14, 14, 32, 32, modulated=True),
    Case("14x14 groups", 1, 14, 14, 32, 32, groups=4, offset_groups=4),
    Case("14x14 depthwise", 1, 14, 14, 32, 32, groups=32),
    Case("28x28 groups", 1, 28, 28, 128, 128, groups=8),
    Case("56x56 depthwise", 1, 56, 56, 128, 128, groups=128),
]
DTYPES = [
    dataclasses.replace(case, name=f"{case.name} {dtype}", dtype=dtype)
    for case in SHAPES[1:3]
    for dtype in ("float32", "bfloat16", "float16", "float64")
]
# The name says which size grows; the others are those of a middle one.
GROWTH = [
    *(Case(f"H*W={size * size}", 1, size, size, 64, 64) for size in (8, 16, 32, 64, 128)),
    *(Case(f"C={size}", 1, 32, 32, size, size) for size in (16, 32, 64, 128, 256)),
    *(Case(f"N={size}", size, 16, 16, 64, 64) for size in (1, 2, 4, 8, 16, 32)),
]

# The most that ours may take in the aims of the project: times conv2d, forward and step.
AIMS = {
    "S1": (1.05, 0.80),
    "S2": (1.05, 1.05),
    "S3": (1.15, 1.15),
    "S4": (1.30, 1.30),
    "S5": (1.10, 1.10),
}

QUICK = Case("28x28", 1, 28, 28, 64, 64)
QUICK_SMALL = Case("7x7", 1, 7, 7, 16, 16)
# Generous: what breaks them is a fast path that is no longer taken, not a loaded machine.
BOUNDS = [
    harness.Bound(QUICK, "forward", "TensorFlow conv2d", 2.5),
    harness.Bound(QUICK, "step", "TensorFlow conv2d", 2.5),
    harness.Bound(QUICK, "step", "TensorFlow gather", 0.7),
    harness.Bound(QUICK_SMALL, "forward", "TensorFlow gather", 1.0),
    harness.Bound(QUICK_SMALL, "step", "TensorFlow gather", 1.0),
]

DIFFERENTIATED = ("inputs", "filters", "offsets", "mask")
# Axes of the layout of tf_deformable that make up the one of the peers: OIHW, else NCHW.
PEER_AXES = {"filters": (3, 2, 0, 1)}
NCHW = (0, 3, 1, 2)


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process.

    Args:
        case: shapes and attributes.
        variant: of the offsets: "deformed" (normal, 2 pixels), "inside" (the same, moved so that
            no position is outside of the map), "undeformed" (0, and the mask 1).
    """
    random = np.random.default_rng(0)
    grid = (case.batch, case.height, case.width)
    fan_in = case.taps * case.group_channels
    samples = case.offset_groups * case.taps

    def normal(shape: tuple[int, ...], deviation: float) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(deviation)

    data = {
        "inputs": normal((*grid, case.channels), 1),
        "filters": normal((3, 3, case.group_channels, case.filters), 1 / math.sqrt(fan_in)),
        "offsets": normal((*grid, samples * 2), 2),
        "grad_output": normal((*grid, case.filters), 1),
    }
    if case.modulated:
        data["mask"] = random.random((*grid, samples), np.float32)
    if variant == "undeformed":
        data["offsets"][:] = 0
        if case.modulated:
            data["mask"][:] = 1
    if variant == "inside":
        data["offsets"] = _moved_inside(case, data["offsets"])
    return data


def _moved_inside(case: Case, offsets: np.ndarray) -> np.ndarray:
    offsets = offsets.reshape(case.batch, case.height, case.width, case.offset_groups, 3, 3, 2)
    taps = np.arange(-1, 2) * case.dilation
    y = np.arange(case.height)[:, None, None, None, None] + taps[:, None]
    x = np.arange(case.width)[:, None, None, None] + taps
    grid = np.stack(np.broadcast_arrays(y, x), axis=-1)  # [H, W, 1, 3, 3, 2]
    # Not up to the border, where derivatives are a matter of convention.
    last = np.maximum(np.array([case.height, case.width]) - 1.1, 0.1)
    inside = np.clip(grid + offsets, 0.1, last) - grid
    return inside.astype(np.float32).reshape(case.batch, case.height, case.width, -1)


class Conv2D(frameworks.TensorFlow):
    """The yardstick: the plain convolution, which does not read the offsets."""

    agrees_on = "undeformed"
    differentiated = ("inputs", "filters")

    def expression(self, case: Case, inputs: Any, filters: Any, **ignored: Any) -> Any:
        return self.tf.nn.conv2d(inputs, filters, 1, "SAME", dilations=case.dilation)


class Conv2DEigen(Conv2D):
    """The same without oneDNN, which is not always the quicker one."""

    environment: ClassVar[dict[str, str]] = {"TF_ENABLE_ONEDNN_OPTS": "0"}

    def versions(self) -> dict[str, str]:
        return {}  # those of the yardstick


class _OfThePackage(frameworks.TensorFlow):
    differentiated = DIFFERENTIATED

    def expression(self, case: Case, **inputs: Any) -> Any:
        return self.package.deformable_conv2d(**inputs, dilations=case.dilation)


class TfDeformable(_OfThePackage, frameworks.TfDeformable):
    """Ours."""


class Gather(_OfThePackage, frameworks.Gather):
    """The reference implementation."""


class GatherXla(Gather):
    """The reference implementation, compiled by XLA."""

    modes = ("forward", "step")
    jit_compile = True


class _Peer(frameworks.Framework):
    """A framework that has channels first."""

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.dtype == "float32"

    def peer_arrays(self, data: Data) -> Data:
        """Returns the data with channels first."""
        return {
            name: np.ascontiguousarray(array.transpose(PEER_AXES.get(name, NCHW)))
            for name, array in data.items()
        }

    def load(self, case: Case, data: Data) -> Tensors:
        return self.peer_arrays(data)

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        array = tensor if isinstance(tensor, np.ndarray) else self.tensor_to_numpy(tensor)
        return array.transpose(np.argsort(PEER_AXES.get(name.removeprefix(GRAD), NCHW)))

    def tensor_to_numpy(self, tensor: Any) -> np.ndarray:
        """Returns a tensor of the framework as an array."""
        raise NotImplementedError


class OpenVino(_Peer, frameworks.OpenVino):
    """OpenVINO's DeformableConvolution."""

    constants = ("filters",)

    def node(self, case: Case, inputs: Any, filters: Any, offsets: Any, mask: Any = None) -> Any:
        return self.opset.deformable_convolution(
            inputs,
            offsets,
            filters,
            strides=[1, 1],
            pads_begin=[case.dilation] * 2,
            pads_end=[case.dilation] * 2,
            dilations=[case.dilation] * 2,
            mask=mask,
            group=case.groups,
            deformable_group=case.offset_groups,
            bilinear_interpolation_pad=True,
        )


class OnnxRuntime(_Peer):
    """onnxruntime's DeformConv; the filters are constants of its model, as in inference."""

    modes = ("forward",)

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime = onnx, onnxruntime
        self.threads = threads

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self.onnxruntime.__version__}

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        fed = {name: inputs[name] for name in ("inputs", "offsets", "mask") if name in inputs}
        node = helper.make_node(
            "DeformConv",
            ["inputs", "filters", "offsets", "", "mask" if "mask" in fed else ""],
            ["output"],
            kernel_shape=[3, 3],
            pads=[case.dilation] * 4,
            dilations=[case.dilation] * 2,
            group=case.groups,
            offset_group=case.offset_groups,
        )
        shape = [case.batch, case.filters, case.height, case.width]
        graph = helper.make_graph(
            [node],
            "benchmark",
            [helper.make_tensor_value_info(name, float32, x.shape) for name, x in fed.items()],
            [helper.make_tensor_value_info("output", float32, shape)],
            [self.onnx.numpy_helper.from_array(inputs["filters"], "filters")],
        )
        opset = helper.make_opsetid("", 19)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = self.onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, array in fed.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("output")

        def call() -> Tensors:
            session.run_with_iobinding(binding)
            return {"output": binding.get_outputs()[0]}

        return call

    def tensor_to_numpy(self, tensor: Any) -> np.ndarray:
        return tensor.numpy()


class TorchVision(_Peer):
    """torchvision's deform_conv2d."""

    def __init__(self, threads: int) -> None:
        import torch
        import torchvision

        torch.set_num_threads(threads)
        self.torch, self.torchvision = torch, torchvision

    def versions(self) -> dict[str, str]:
        return {"PyTorch": self.torch.__version__, "torchvision": self.torchvision.__version__}

    def load(self, case: Case, data: Data) -> Tensors:
        arrays = self.peer_arrays(data)
        return {name: self.torch.from_numpy(array) for name, array in arrays.items()}

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")

        def forward() -> Tensors:
            return {
                "output": self.torchvision.ops.deform_conv2d(
                    inputs["inputs"],
                    inputs["offsets"],
                    inputs["filters"],
                    padding=case.dilation,
                    dilation=case.dilation,
                    mask=inputs.get("mask"),
                )
            }

        def step() -> Tensors:
            output = forward()["output"]
            grads = self.torch.autograd.grad(output, list(inputs.values()), grad_output)
            return {"output": output, **dict(zip(map(GRAD.__add__, inputs), grads, strict=True))}

        for tensor in inputs.values():
            tensor.requires_grad_(mode == "step")
        return step if mode == "step" else forward

    def tensor_to_numpy(self, tensor: Any) -> np.ndarray:
        return tensor.detach().numpy()


class Paddle(_Peer):
    """Paddle's deform_conv2d."""

    def __init__(self, threads: int) -> None:
        import paddle

        paddle.device.set_device("cpu")
        paddle.base.core.set_num_threads(threads)
        self.paddle = paddle

    def versions(self) -> dict[str, str]:
        return {"Paddle": self.paddle.__version__}

    def load(self, case: Case, data: Data) -> Tensors:
        arrays = self.peer_arrays(data)
        return {name: self.paddle.to_tensor(array) for name, array in arrays.items()}

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")

        def forward() -> Tensors:
            return {
                "output": self.paddle.vision.ops.deform_conv2d(
                    inputs["inputs"],
                    inputs["offsets"],
                    inputs["filters"],
                    padding=case.dilation,
                    dilation=case.dilation,
                    deformable_groups=case.offset_groups,
                    groups=case.groups,
                    mask=inputs.get("mask"),
                )
            }

        def step() -> Tensors:
            output = forward()["output"]
            grads = self.paddle.grad([output], list(inputs.values()), [grad_output])
            return {"output": output, **dict(zip(map(GRAD.__add__, inputs), grads, strict=True))}

        for tensor in inputs.values():
            tensor.stop_gradient = mode != "step"
        return step if mode == "step" else forward

    def tensor_to_numpy(self, tensor: Any) -> np.ndarray:
        return tensor.numpy()


class MxNet(_Peer, frameworks.MxNet):
    """MXNet's operators. The first drops positions outside of the map: no fading out."""

    agrees_on = "inside"
    differentiated = DIFFERENTIATED

    def load(self, case: Case, data: Data) -> Tensors:
        return self.to_tensors(self.peer_arrays(data))

    def expression(
        self, case: Case, inputs: Any, filters: Any, offsets: Any, mask: Any = None
    ) -> Any:
        contrib = self.mxnet.nd.contrib
        attributes = {
            "kernel": (3, 3),
            "pad": (case.dilation,) * 2,
            "dilate": (case.dilation,) * 2,
            "num_filter": case.filters,
            "num_group": case.groups,
            "num_deformable_group": case.offset_groups,
            "no_bias": True,
        }
        if mask is None:
            return contrib.DeformableConvolution(inputs, offsets, filters, **attributes)
        # Images at a time; the default assumes that 64 divides a larger batch.
        attributes["im2col_step"] = math.gcd(case.batch, 64)
        return contrib.ModulatedDeformableConvolution(inputs, offsets, mask, filters, **attributes)

    def tensor_to_numpy(self, tensor: Any) -> np.ndarray:
        return tensor.asnumpy()


EIGEN = "conv2d, Eigen"
FRAMEWORKS = {
    "TensorFlow conv2d": Conv2D,
    EIGEN: Conv2DEigen,
    harness.OURS: TfDeformable,
    "OpenVINO": OpenVino,
    "onnxruntime": OnnxRuntime,
    "TensorFlow gather, XLA": GatherXla,
    "TensorFlow gather": Gather,
    "torchvision": TorchVision,
    "Paddle": Paddle,
    "MXNet": MxNet,
}
TENSORFLOW = ("TensorFlow conv2d", harness.OURS, "TensorFlow gather, XLA", "TensorFlow gather")
SECTIONS = [
    harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True),
    harness.Section(
        "small",
        SMALL,
        tuple(name for name in FRAMEWORKS if name != EIGEN),
        modes=("forward", "step", "eager"),
        one_thread=True,
        seconds=0.2,
    ),
    harness.Section("dtypes", DTYPES, TENSORFLOW[:2], one_thread=True),
    harness.Section("growth", GROWTH, TENSORFLOW, one_thread=True, seconds=0.3, memory=True),
]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
