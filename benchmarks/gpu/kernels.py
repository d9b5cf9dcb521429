"""Times the CUDA kernels against torchvision and cuDNN, with tensors of PyTorch.

    python tests/gpu/run.py --steps build bench

The shapes are those of benchmarks/deformable_conv2d.py, in batches of 16 and more. Forward is one
call; a training step is forward and the gradients for everything that has one. Every time is the
median of some calls, each measured with events, behind a kernel that clears the second-level cache
and another that keeps the GPU busy until all of the call has been put into the stream, so that
neither the processor nor a warm cache counts. docs/benchmarks.md gets the table from
benchmarks/gpu/report.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision

from benchmarks import machine
from tests.gpu.kernels import ROOT, Kernels, TorchMemory

Tensors = dict[str, Any]

DEVICE = "cuda"
BYTES_CLEARED = 256 << 20
CYCLES_AHEAD = 2_000_000  # a millisecond and more
SECONDS_PER_TIME = 0.4
FEWEST_CALLS, MOST_CALLS = 5, 50

NAMES = ("inputs", "filters", "offsets", "mask")


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

    @property
    def operations(self) -> int:
        """Multiplications and additions of the plain convolution, forward."""
        pixels = self.batch * self.height * self.width
        return 2 * pixels * 9 * self.channels // self.groups * self.filters

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """NHWC and HWIO, by name."""
        grid = (self.batch, self.height, self.width)
        shapes: dict[str, tuple[int, ...]] = {
            "inputs": (*grid, self.channels),
            "filters": (3, 3, self.channels // self.groups, self.filters),
            "offsets": (*grid, self.offset_groups * 18),
            "mask": (*grid, self.offset_groups * 9),
            "output": (*grid, self.filters),
        }
        if not self.modulated:
            del shapes["mask"]
        return shapes


CASES = [
    Case("S1", 16, 38, 63, 512, 512, dilation=2, offset_groups=4),  # res5 of the paper
    Case("S2", 16, 64, 64, 256, 256),
    Case("S3", 16, 28, 28, 128, 128),
    Case("S4", 16, 100, 152, 64, 64, modulated=True),
    Case("S5", 32, 14, 14, 256, 256),
    Case("S3, batch 128", 128, 28, 28, 128, 128),
    Case("S5, batch 256", 256, 14, 14, 256, 256),
    Case("depthwise", 16, 56, 56, 128, 128, groups=128),
]


@dataclasses.dataclass(frozen=True)
class RoICase:
    """300 boxes to an image, 7x7 bins of 4x4 samples."""

    name: str
    batch: int = 16
    height: int = 38
    width: int = 63
    depth: int = 256
    group_size: int = 1
    boxes: int = 300
    moved: bool = False


ROI_CASES = [
    RoICase("RoI pooling, as roi_align"),
    RoICase("deformable RoI pooling", moved=True),
    RoICase("PS RoI pooling, 21 classes", depth=21, group_size=7),
]


def make_data(case: Case, dtype: torch.dtype) -> Tensors:
    """Normal inputs, offsets of 2 pixels, uniform masks; NHWC and HWIO; with grad_output."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = case.shapes()
    shapes["grad_output"] = shapes.pop("output")
    data = {}
    for name, shape in shapes.items():
        draw = torch.rand if name == "mask" else torch.randn
        tensor = draw(shape, device=DEVICE, generator=generator)
        if name == "filters":
            tensor *= 1 / math.sqrt(9 * case.channels / case.groups)
        if name == "offsets":
            tensor *= 2
        data[name] = tensor.to(dtype)
    return data


def ours(kernels: Kernels, case: Case, data: Tensors, dtype: str, **options: bool) -> Any:
    """Returns two functions, forward and step, that return their results by name."""
    kind = getattr(torch, dtype)
    shapes = case.shapes()
    common = {
        "shapes": [shapes[name] for name in NAMES[:3]],
        "strides": (1, 1),
        "dilations": (case.dilation,) * 2,
        "padding": ((case.dilation,) * 2,) * 2,
        **options,
    }
    arguments = [data.get(name) for name in NAMES]
    results = {
        name: torch.full(shape, math.nan, dtype=kind, device=DEVICE)
        for name, shape in shapes.items()
    }

    def forward() -> Tensors:
        tensors = [*arguments, None, results["output"]]
        kernels.conv2d(tensors, dtype, gradient=False, **common)
        return {"output": results["output"]}

    def step() -> Tensors:
        forward()
        gradients = [results.get(name) for name in NAMES]
        tensors = [*arguments, data["grad_output"], *gradients]
        kernels.conv2d(tensors, dtype, gradient=True, **common)
        return results

    return forward, step


def _nchw(tensor: Any) -> Any:
    return tensor.permute(0, 3, 1, 2)


def torchvisions(case: Case, data: Tensors, autocast: bool = False) -> Any:
    """torchvision.ops.deform_conv2d, which is NCHW, on contiguous tensors of its own."""
    inputs = _nchw(data["inputs"]).contiguous()
    offsets = _nchw(data["offsets"]).contiguous()
    filters = data["filters"].permute(3, 2, 0, 1).contiguous()
    mask = _nchw(data["mask"]).contiguous() if case.modulated else None
    grad_output = _nchw(data["grad_output"]).contiguous()
    leaves = [t for t in (inputs, filters, offsets, mask) if t is not None]

    def forward() -> Tensors:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            output = torchvision.ops.deform_conv2d(
                inputs,
                offsets,
                filters,
                padding=case.dilation,
                dilation=case.dilation,
                mask=mask,
            )
        return {"output": output}

    def step() -> Tensors:
        for leaf in leaves:
            leaf.requires_grad_(True)
        output = forward()["output"]
        grads = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
        for leaf in leaves:
            leaf.requires_grad_(False)
        return {"output": output, **dict(zip(NAMES, grads, strict=False))}

    return forward, step


def plain_convolution(case: Case, data: Tensors) -> Any:
    """The floor: cuDNN's convolution of the same shape, channels last, without offsets."""
    inputs = _nchw(data["inputs"])  # in memory it is NHWC already
    filters = data["filters"].permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    grad_output = _nchw(data["grad_output"])

    def forward() -> Tensors:
        output = torch.nn.functional.conv2d(
            inputs, filters, padding=case.dilation, dilation=case.dilation, groups=case.groups
        )
        return {"output": output}

    def step() -> Tensors:
        for leaf in (inputs, filters):
            leaf.requires_grad_(True)
        output = forward()["output"]
        grads = torch.autograd.grad(output, [inputs, filters], grad_output)
        for leaf in (inputs, filters):
            leaf.requires_grad_(False)
        return {"output": output, "inputs": grads[0], "filters": grads[1]}

    return forward, step


# --- Checks ---------------------------------------------------------------------------------------

# Relative errors in the 2-norm; see tests/gpu/deformable_conv2d_checks.py.
TOLERANCES = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1.2e-2}


def _to_nhwc(name: str, tensor: Any) -> Any:
    return tensor.permute(2, 3, 1, 0) if name == "filters" else tensor.permute(0, 2, 3, 1)


def check_against_torchvision(kernels: Kernels, case: Case, dtype: str) -> None:
    """Output and gradients, against torchvision in float64 on the same rounded data."""
    data = make_data(case, getattr(torch, dtype))
    got = ours(kernels, case, data, dtype)[1]()
    wide = {name: tensor.double() for name, tensor in data.items()}
    expected = torchvisions(case, wide)[1]()
    for name, want in expected.items():
        want, have = _to_nhwc(name, want.detach()), got[name].double()
        error = float((have - want).norm() / want.norm())
        assert error <= TOLERANCES[dtype], f"{name}: relative error {error:.2e}"
    torch.cuda.empty_cache()


def check_same_bits(kernels: Kernels, case: Case) -> None:
    """In order, two runs give the same bits, and other runs nearly the same numbers."""
    data = make_data(case, torch.float32)
    runs = []
    for deterministic in (True, True, False):
        step = ours(kernels, case, data, "float32", deterministic=deterministic)[1]
        runs.append({name: tensor.clone() for name, tensor in step().items()})
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), f"{name} differs from run to run"
        error = float((tensor - runs[2][name]).norm() / tensor.norm())
        assert error < 1e-5, f"{name}: relative error {error:.2e} of the other order"


# --- Timing ---------------------------------------------------------------------------------------


class Timer:
    """Times calls on the GPU."""

    def __init__(self) -> None:
        self.flush = torch.empty(BYTES_CLEARED, dtype=torch.int8, device=DEVICE)

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(CYCLES_AHEAD)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def seconds(self, call: Callable[[], Any]) -> list[float]:
        """Seconds of each of some calls, after some that warm up."""
        for _ in range(3):
            estimate = self.once(call)
        calls = min(max(int(SECONDS_PER_TIME / estimate), FEWEST_CALLS), MOST_CALLS)
        return [self.once(call) for _ in range(calls)]


def _machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _record(records: list[dict[str, Any]], timer: Timer, call: Any, **key: Any) -> None:
    try:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        seconds = timer.seconds(call)
        records.append({**key, "seconds": seconds, "extra_bytes": extra})
        median = statistics.median(seconds)
        print(f"{key} {median * 1e3:.3f} ms, {extra / 2**20:.0f} MB", flush=True)
    except Exception as error:  # out of memory, most likely: the others go on
        records.append({**key, "error": str(error).splitlines()[0]})
        print(f"{key} {error}", flush=True)
        torch.cuda.empty_cache()


def roi_functions(kernels: Kernels, case: RoICase, dtype: str) -> dict[str, Any]:
    """Forward and step, of ours and of torchvision's operator of the same size."""
    kind = getattr(torch, dtype)
    generator = torch.Generator(DEVICE).manual_seed(0)
    channels = case.group_size**2 * case.depth
    count = case.batch * case.boxes

    def normal(*shape: int) -> Any:
        return torch.randn(shape, device=DEVICE, generator=generator).to(kind)

    inputs = normal(case.batch, case.height, case.width, channels)
    grad_output = normal(count, 7, 7, case.depth)
    scale = torch.tensor([case.height, case.width] * 2, device=DEVICE, dtype=torch.float32)
    corners = torch.rand(count, 2, device=DEVICE, generator=generator) * 0.6
    sizes = torch.rand(count, 2, device=DEVICE, generator=generator) * 0.4
    boxes = torch.cat([corners, corners + sizes], 1) * scale
    indices = torch.arange(case.batch, device=DEVICE, dtype=torch.int32)
    indices = indices.repeat_interleave(case.boxes)
    offsets = normal(count, 7, 7, 1, 2) if case.moved else None
    results = {
        "output": torch.empty_like(grad_output),
        "inputs": torch.empty_like(inputs),
        "offsets": None if offsets is None else torch.empty_like(offsets),
    }
    common: dict[str, Any] = {
        "shapes": [inputs.shape, boxes.shape, None if offsets is None else offsets.shape],
        "output_size": (7, 7),
        "group_size": case.group_size,
        "samples_per_bin": 4,
        "aligned": True,
        "spatial_scale": 1.0,
        "gamma": 0.1,
    }
    arguments = [inputs, boxes, indices, offsets, None]

    def forward() -> Tensors:
        kernels.roi_pool([*arguments, results["output"]], dtype, gradient=False, **common)
        return results

    def step() -> Tensors:
        forward()
        tensors = [*arguments, grad_output, results["inputs"], results["offsets"], None]
        kernels.roi_pool(tensors, dtype, gradient=True, **common)
        return results

    theirs_inputs = _nchw(inputs).contiguous()
    theirs_grad = _nchw(grad_output).contiguous()
    order = torch.tensor([1, 0, 3, 2], device=DEVICE)  # x before y
    theirs_boxes = torch.cat([indices[:, None].float(), boxes[:, order]], 1).to(kind)
    ops = torchvision.ops

    def theirs_forward() -> Any:
        if case.group_size == 1:
            return ops.roi_align(theirs_inputs, theirs_boxes, 7, 1.0, 4, aligned=True)
        return ops.ps_roi_align(theirs_inputs, theirs_boxes, 7, 1.0, 4)

    def theirs_step() -> Any:
        theirs_inputs.requires_grad_(True)
        gradient = torch.autograd.grad(theirs_forward(), theirs_inputs, theirs_grad)
        theirs_inputs.requires_grad_(False)
        return gradient

    functions = {("tf_deformable", "forward"): forward, ("tf_deformable", "step"): step}
    if not case.moved:
        functions[("torchvision", "forward")] = theirs_forward
        functions[("torchvision", "step")] = theirs_step
    return functions


def run(library: pathlib.Path, output: pathlib.Path) -> None:
    """Times everything, writes `output` and prints the tables."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    kernels = Kernels(library, TorchMemory())
    timer = Timer()
    records: list[dict[str, Any]] = []
    for case in CASES:
        for dtype in ("float32", "bfloat16"):
            data = make_data(case, getattr(torch, dtype))
            frameworks = {
                "tf_deformable": ours(kernels, case, data, dtype),
                "conv2d": plain_convolution(case, data),
            }
            if dtype == "float32":
                frameworks["torchvision"] = torchvisions(case, data)
            else:
                # Under autocast it computes in float32, on data that are cast for it.
                frameworks["torchvision"] = torchvisions(case, data, autocast=True)
            for name, functions in frameworks.items():
                for mode, call in zip(("forward", "step"), functions, strict=True):
                    key = {"case": case.name, "dtype": dtype, "framework": name, "mode": mode}
                    _record(records, timer, call, **key)
            del data, frameworks
    for roi_case in ROI_CASES:
        for dtype in ("float32", "bfloat16"):
            for (name, mode), call in roi_functions(kernels, roi_case, dtype).items():
                key = {"case": roi_case.name, "dtype": dtype, "framework": name, "mode": mode}
                _record(records, timer, call, **key)
    cases = [dataclasses.asdict(case) | {"operations": case.operations} for case in CASES]
    results = {
        "machine": _machine(),
        "cases": cases,
        "roi_cases": [dataclasses.asdict(case) for case in ROI_CASES],
        "records": records,
    }
    output.write_text(json.dumps(results, indent=1))
    sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
    import report

    print(report.tables(results))
