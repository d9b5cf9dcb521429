"""Times the CUDA kernels against torchvision and cuDNN, with tensors of PyTorch.

    python tests/gpu/run.py --steps build micro large bench tiles

The shapes are those of benchmarks/deformable_conv2d.py, in batches of 16 and more. Forward is one
call; a training step is forward and the gradients for everything that has one, which are timed
apart too: "filters gradient", and "inputs gradient", that of inputs, offsets and mask. Every time
is the median of some calls, each measured with events, behind a kernel that clears the second-level
cache and another that keeps the GPU busy until all of the call has been put into the stream, so
that neither the processor nor a warm cache counts. The clock of the multiprocessors is that of the
latter kernel, which counts cycles. What a call needs beyond its arguments and results is its
scratch memory. docs/benchmarks.md gets the table from benchmarks/gpu/report.py.
"""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import functools
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

try:
    import torchvision
except (ImportError, RuntimeError):  # the latter if it was built for another PyTorch
    torchvision = None

from tests.gpu.isolation import Item, Skipped
from tests.gpu.kernels import FORWARD_TILES, Kernels, TorchMemory
from tests.gpu.kernels import WARPGROUP_FORWARD_TILES as WARPGROUP_TILES

Tensors = dict[str, Any]

DEVICE = "cuda"
BYTES_CLEARED = 256 << 20
CYCLES_AHEAD = 2_000_000  # a millisecond and more; doubled where the processor takes longer
MOST_CYCLES_AHEAD = 64_000_000
SECONDS_PER_TIME = 0.15
FEWEST_CALLS, MOST_CALLS = 5, 20

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


# The first five in the precisions that matter most, then the rest.
USUAL, UNUSUAL = ("float32", "bfloat16"), ("float32, exact", "float16")
FIVE = 5
# Inputs and outputs have more elements than 32 bits count.
HUGE = Case("beyond 2^31 elements", 130, 512, 512, 64, 64)

ROI_CASES = [
    RoICase("RoI pooling, as roi_align"),
    RoICase("deformable RoI pooling", moved=True),
    RoICase("PS RoI pooling, 21 classes", depth=21, group_size=7),
]


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Heads of 32 channels; without a number of queries all positions are queries."""

    name: str
    batch: int
    levels: tuple[tuple[int, int], ...]
    queries: int | None = None
    heads: int = 8
    depth: int = 32
    points: int = 4

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)


_DETR = ((100, 152), (50, 76), (25, 38), (13, 19))
ATTENTION_CASES = [
    AttentionCase("attention, DETR encoder", 2, _DETR),
    AttentionCase("attention, DETR decoder", 16, _DETR, 300),
    AttentionCase("attention, D-FINE decoder", 16, ((80, 80), (40, 40), (20, 20)), 300),
    AttentionCase("DCNv3, InternImage-T stage 3", 64, ((14, 14),), heads=16, depth=16, points=9),
]


def use_the_emulation() -> None:
    """Small shapes, tensors of the processor: to try this file where there is no GPU."""
    global DEVICE, HUGE
    DEVICE = "cpu"

    def smaller(case: Case) -> Case:
        groups = 16 if case.groups > 1 else 1
        sizes = {"height": 6, "width": 5, "channels": 16, "filters": 16}
        return dataclasses.replace(case, batch=10 if case is HUGE else 2, groups=groups, **sizes)

    CASES[:] = map(smaller, CASES)
    HUGE = smaller(HUGE)
    sizes = {"batch": 2, "height": 6, "width": 5, "boxes": 3}
    ROI_CASES[:] = [dataclasses.replace(case, **sizes) for case in ROI_CASES]
    ATTENTION_CASES[:] = [
        dataclasses.replace(case, batch=2, levels=((3, 4), (2, 3)), queries=5)
        for case in ATTENTION_CASES
    ]


def make_data(case: Case, dtype: torch.dtype) -> Tensors:
    """Normal inputs, offsets of 2 pixels, uniform masks; NHWC and HWIO; with grad_output.

    Offsets are odd multiples of 1/32 below 8: exact in every dtype, and never lead to an integer
    position, where the derivative jumps and two right answers differ.
    """
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
            tensor.mul_(2 * 16).floor_().clamp_(-128, 127).mul_(2).add_(1).div_(32)
        data[name] = tensor.to(dtype)
    return data


Functions = dict[str, Callable[[], Any]]


def ours(kernels: Kernels, case: Case, data: Tensors, dtype: str, **options: Any) -> Functions:
    """The functions of each mode; they return their results by name."""
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

    def gradient(of: bool | str) -> Tensors:
        gradients = [results.get(name) for name in NAMES]
        tensors = [*arguments, data["grad_output"], *gradients]
        kernels.conv2d(tensors, dtype, gradient=of, **common)
        return results

    def step() -> Tensors:
        forward()
        return gradient(True)

    return {
        "forward": forward,
        "step": step,
        "inputs gradient": lambda: gradient("inputs"),
        "filters gradient": lambda: gradient("filters"),
    }


def _nchw(tensor: Any) -> Any:
    return tensor.permute(0, 3, 1, 2)


def torchvisions(case: Case, data: Tensors, autocast: bool = False) -> Functions:
    """torchvision.ops.deform_conv2d, which is NCHW, on contiguous tensors of its own.

    It has no bfloat16; under autocast it computes in float32, on data that are cast for it.
    """
    if torchvision is None:
        raise Skipped("there is no torchvision")
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

    return {"forward": forward, "step": step}


def plain_convolution(case: Case, data: Tensors) -> Functions:
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

    return {"forward": forward, "step": step}


# --- Checks ---------------------------------------------------------------------------------------

# Relative errors in the 2-norm; see tests/gpu/deformable_conv2d_checks.py.
TOLERANCES = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1.2e-2}


def _to_nhwc(name: str, tensor: Any) -> Any:
    return tensor.permute(2, 3, 1, 0) if name == "filters" else tensor.permute(0, 2, 3, 1)


def check_against_torchvision(kernels: Kernels, case: Case, dtype: str) -> None:
    """Output and gradients, against torchvision in float64 on the same rounded data."""
    data = make_data(case, getattr(torch, dtype))
    got = ours(kernels, case, data, dtype)["step"]()
    wide = {name: tensor.double() for name, tensor in data.items()}
    expected = torchvisions(case, wide)["step"]()
    for name, want in expected.items():
        _assert_near(name, got[name], _to_nhwc(name, want.detach()), TOLERANCES[dtype])


def _assert_near(name: str, have: Any, want: Any, tolerance: float) -> None:
    want = want.double()
    error = float((have.double() - want).norm() / want.norm())
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


def check_beyond_32_bits(kernels: Kernels, dtype: str) -> None:
    """Tensors of more than 2^31 elements: as the same in parts, and the last image as torchvision.

    The parts are small enough for what `check_against_torchvision` has checked.
    """
    data = make_data(HUGE, getattr(torch, dtype))
    got = ours(kernels, HUGE, data, dtype)["step"]()
    part_case = dataclasses.replace(HUGE, batch=HUGE.batch // 10)
    filters = torch.zeros_like(got["filters"], dtype=torch.float64)
    for first in range(0, HUGE.batch, part_case.batch):
        images = slice(first, first + part_case.batch)
        part = {name: t if name == "filters" else t[images] for name, t in data.items()}
        wanted = ours(kernels, part_case, part, dtype)["step"]()
        filters += wanted["filters"].double()
        for name in ("output", "inputs", "offsets"):
            of = f"{name} of images from {first} on"
            _assert_near(of, got[name][images], wanted[name], TOLERANCES[dtype])
    _assert_near("filters", got["filters"], filters, TOLERANCES[dtype])
    last = {name: (t if name == "filters" else t[-1:]).double() for name, t in data.items()}
    expected = torchvisions(dataclasses.replace(HUGE, batch=1), last)["step"]()
    for name in ("output", "inputs", "offsets"):
        want = _to_nhwc(name, expected[name].detach())
        _assert_near(f"{name} of the last image", got[name][-1:], want, TOLERANCES[dtype])


def check_same_bits(kernels: Kernels, case: Case) -> None:
    """In order, two runs give the same bits, and other runs nearly the same numbers."""
    data = make_data(case, torch.float32)
    runs = []
    for deterministic in (True, True, False):
        step = ours(kernels, case, data, "float32", deterministic=deterministic)["step"]
        runs.append({name: tensor.clone() for name, tensor in step().items()})
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), f"{name} differs from run to run"
        error = float((tensor - runs[2][name]).norm() / tensor.norm())
        assert error < 1e-5, f"{name}: relative error {error:.2e} of the other order"


# --- Timing ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Time:
    """A call's; `late`: the GPU had to wait for the processor, whose time this may be then."""

    seconds: float
    clock: float  # of the multiprocessors, in Hz
    late: bool


class Timer:
    """Times calls on the GPU; those of the emulation by the clock on the wall."""

    def __init__(self) -> None:
        if DEVICE == "cuda":
            self.flush = torch.empty(BYTES_CLEARED, dtype=torch.int8, device=DEVICE)

    def once(self, call: Callable[[], Any], cycles: int) -> Time:
        """Times one call that the GPU does not start for so many cycles."""
        if DEVICE != "cuda":
            begin = time.perf_counter()
            call()
            return Time(time.perf_counter() - begin, 1e9, late=False)
        before, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        self.flush.zero_()
        before.record()
        torch.cuda._sleep(cycles)
        start.record()
        call()
        end.record()
        late = start.query()
        end.synchronize()
        asleep = before.elapsed_time(start) / 1e3
        return Time(start.elapsed_time(end) / 1e3, cycles / asleep, late)

    def record(self, call: Callable[[], Any]) -> dict[str, Any]:
        """The seconds of each of some calls, after some that warm up, and what is to know of it."""
        cycles = CYCLES_AHEAD
        while True:
            for _ in range(3):
                warm = self.once(call, cycles)
            calls = min(max(int(SECONDS_PER_TIME / warm.seconds), FEWEST_CALLS), MOST_CALLS)
            times = [] if warm.late else [self.once(call, cycles) for _ in range(calls)]
            good = [t for t in times if not t.late]
            if len(good) >= FEWEST_CALLS:
                return {
                    "seconds": [t.seconds for t in good],
                    "clock": statistics.median(t.clock for t in good),
                }
            if cycles >= MOST_CYCLES_AHEAD:
                raise RuntimeError("the processor takes longer than the GPU sleeps")
            cycles *= 2


class Results:
    """A file of JSON, written anew after every record; what was in it before stays."""

    def __init__(self, path: pathlib.Path, commit: str) -> None:
        self.path = path
        self.data: dict[str, Any] = {"micro": {}, "records": []}
        if path.exists():
            self.data = json.loads(path.read_text())
        cases = [dataclasses.asdict(case) | {"operations": case.operations} for case in CASES]
        self.data |= {"machine": _machine(commit), "cases": cases}
        self.data["roi_cases"] = [dataclasses.asdict(case) for case in ROI_CASES]
        self.data["attention_cases"] = [dataclasses.asdict(case) for case in ATTENTION_CASES]

    def write(self) -> None:
        """Replaces the file: whenever the process ends, there is a whole one."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.data, indent=1))
        os.replace(new, self.path)

    def micro(self, name: str, value: float, unit: str) -> None:
        """Keeps a rate of the device."""
        self.data["micro"][name] = {"value": value, "unit": unit}
        self.write()
        print(f"{name}: {value:.4g} {unit}", flush=True)

    def record(self, key: dict[str, Any], values: dict[str, Any]) -> None:
        """Keeps a record, in place of an earlier one with the same key."""
        others = [r for r in self.data["records"] if any(r.get(k) != v for k, v in key.items())]
        self.data["records"] = [*others, {**key, **values}]
        self.write()
        print(key, flush=True)
        if "error" in values:
            print(f"  {values['error']}", flush=True)
        else:
            seconds = statistics.median(values["seconds"])
            megabytes = values["scratch_bytes"] / 2**20
            print(f"  {seconds * 1e3:.3f} ms, {megabytes:.0f} MB", flush=True)


def _machine(commit: str) -> dict[str, Any]:
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "torch": torch.__version__,
        "torchvision": getattr(torchvision, "__version__", "none"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if DEVICE != "cuda":
        return {"gpu": "emulation", "multiprocessors": 0, "memory": 0, **about}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        **about,
    }


def _scratch_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call takes at a time, but for the results that it returns."""
    if DEVICE != "cuda":
        call()
        return 0
    call()  # cuDNN tries its algorithms in the first one
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del results
    return peak - after


def _measure(
    results: Results, timer: Timer, functions: Functions, key: dict[str, Any]
) -> list[str]:
    """Times the functions, each of a mode; returns what went wrong with others' code."""
    errors = []
    for mode, call in functions.items():
        of = {**key, "mode": mode}
        try:
            scratch = _scratch_bytes(call)
            results.record(of, {**timer.record(call), "scratch_bytes": scratch})
        except Exception as error:
            line = (str(error).strip() or repr(error)).splitlines()[0]
            results.record(of, {"error": line})
            # Others may lack a dtype, or memory; a device that has failed is of no use to anyone.
            if key["framework"] == "tf_deformable" or "CUDA error" in line:
                raise
            errors.append(f"{mode}: {line}")
            _free()
    return errors


def _free() -> None:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def attention_functions(kernels: Kernels, case: AttentionCase, dtype: str) -> dict[str, Functions]:
    """Forward and step, of ours and of PyTorch's composition of `grid_sample`.

    Locations lie within some pixels of where a position of the map has its own.
    """
    kind = getattr(torch, dtype)
    generator = torch.Generator(DEVICE).manual_seed(0)
    queries = case.pixels if case.queries is None else case.queries
    samples = (case.batch, queries, case.heads, len(case.levels), case.points)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, device=DEVICE, generator=generator)

    value = normal(case.batch, case.pixels, case.heads, case.depth).to(kind)
    grad_output = normal(case.batch, queries, case.heads * case.depth).to(kind)
    centers = torch.rand(1, queries, 1, 1, 1, 2, device=DEVICE, generator=generator)
    if case.queries is None:
        centers = torch.cat(
            [
                torch.stack(
                    torch.meshgrid(
                        *((torch.arange(size, device=DEVICE) + 0.5) / size for size in level),
                        indexing="ij",
                    ),
                    -1,
                ).reshape(1, -1, 1, 1, 1, 2)
                for level in case.levels
            ],
            1,
        )
    sizes = torch.tensor(case.levels, device=DEVICE, dtype=torch.float32)[:, None]
    locations = (centers + normal(*samples, 2) * 2 / sizes).to(kind)
    weights = normal(*samples).flatten(3).softmax(-1).reshape(samples).to(kind)
    arguments = [value, locations, weights]
    results = [torch.empty_like(tensor) for tensor in arguments]
    output = torch.empty_like(grad_output)
    common: dict[str, Any] = {
        "shapes": [value.shape, weights.shape],
        "levels": case.levels,
        "coordinates": "normalized",
    }

    def forward() -> Any:
        kernels.attention([*arguments, output], dtype, gradient=False, **common)
        return output

    def step() -> Any:
        forward()
        kernels.attention([*arguments, grad_output, *results], dtype, gradient=True, **common)
        return results

    grids = locations.flip(-1).contiguous()

    def theirs_forward() -> Any:
        maps = value.split([height * width for height, width in case.levels], 1)
        sampled = []
        for level, (height, width) in enumerate(case.levels):
            images = maps[level].permute(0, 2, 3, 1).reshape(-1, case.depth, height, width)
            grid = (2 * grids[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            sampled.append(
                torch.nn.functional.grid_sample(images, grid.to(kind), align_corners=False)
            )
        factors = weights.transpose(1, 2).reshape(case.batch * case.heads, 1, queries, -1)
        sums = (torch.stack(sampled, -2).flatten(-2) * factors).sum(-1)
        return sums.reshape(case.batch, -1, queries).transpose(1, 2)

    def theirs_step() -> Any:
        leaves = [value, grids, weights]
        for leaf in leaves:
            leaf.requires_grad_(True)
        gradients = torch.autograd.grad(theirs_forward(), leaves, grad_output)
        for leaf in leaves:
            leaf.requires_grad_(False)
        return gradients

    return {
        "tf_deformable": {"forward": forward, "step": step},
        "grid_sample": {"forward": theirs_forward, "step": theirs_step},
    }


def roi_functions(kernels: Kernels, case: RoICase, dtype: str) -> dict[str, Functions]:
    """Forward and step, of ours and of torchvision's operator of the same size, if it has one."""
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

    def theirs_forward() -> Any:
        ops = torchvision.ops
        if case.group_size == 1:
            return ops.roi_align(theirs_inputs, theirs_boxes, 7, 1.0, 4, aligned=True)
        return ops.ps_roi_align(theirs_inputs, theirs_boxes, 7, 1.0, 4)

    def theirs_step() -> Any:
        theirs_inputs.requires_grad_(True)
        gradient = torch.autograd.grad(theirs_forward(), theirs_inputs, theirs_grad)
        theirs_inputs.requires_grad_(False)
        return gradient

    functions: dict[str, Functions] = {"tf_deformable": {"forward": forward, "step": step}}
    if not case.moved:
        functions["torchvision"] = {"forward": theirs_forward, "step": theirs_step}
    return functions


# --- Items ----------------------------------------------------------------------------------------

# By name: the dtype, and whether TF32 is allowed.
PRECISIONS = {
    "float32": ("float32", True),
    "bfloat16": ("bfloat16", True),
    "float16": ("float16", True),
    "float32, exact": ("float32", False),
}


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class _Suite:
    """Makes the items of the steps that want PyTorch."""

    def __init__(self, library: pathlib.Path, results: Results) -> None:
        self.library, self.results = library, results
        self.kernels = Kernels(library, TorchMemory(DEVICE))
        self.timer = Timer()

    def micro(self) -> Iterator[Item]:
        """Rates of the device that bound the kernels."""
        if DEVICE != "cuda":
            raise Skipped("not with the emulation")

        def seconds(call: Callable[[], Any]) -> float:
            return statistics.median(self.timer.record(call)["seconds"])

        def copy() -> None:
            source = torch.zeros(1 << 30, dtype=torch.int8, device=DEVICE)
            target = torch.empty_like(source)
            took = seconds(lambda: target.copy_(source))
            self.results.micro("copy, read and written", 2 * source.numel() / took / 1e12, "TB/s")

        def product(precision: str) -> None:
            dtype, tf32 = PRECISIONS[precision]
            _allow_tf32(tf32)
            size = 8192
            a, b = (
                torch.randn(size, size, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2)
            )
            record = self.timer.record(lambda: torch.mm(a, b))
            rate = 2 * size**3 / statistics.median(record["seconds"]) / 1e12
            self.results.micro(f"product of 8192^3, {precision}", rate, "TFLOP/s")
            self.results.micro(f"clock during it, {precision}", record["clock"] / 1e9, "GHz")

        def scatter(images: int, vectors: bool) -> None:
            library = ctypes.CDLL(str(self.library))
            library.tf_deformable_scatter.restype = ctypes.c_int64
            maps = torch.zeros(images, 64, 64, 256, device=DEVICE)
            added = 0

            def call() -> None:
                nonlocal added
                stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
                to, count = ctypes.c_void_p(maps.data_ptr()), ctypes.c_int64(images)
                added = library.tf_deformable_scatter(int(vectors), to, count, stream)

            call()
            torch.cuda.synchronize()
            assert added > 0, "the kernel was not launched"
            total = float(maps.sum(dtype=torch.float64)) * maps.itemsize
            assert total == added, f"{total} bytes were added, not {added}"
            took = seconds(call)
            kind = "four floats at a time" if vectors else "single floats"
            name = f"scatter to {maps.nbytes >> 20} MiB, {kind}"
            self.results.micro(name, added / took / 1e12, "TB/s")

        yield Item("copy", copy)
        for precision in ("bfloat16", "float32"):
            yield Item(f"product, {precision}", functools.partial(product, precision))
        for images in (16, 4):
            for vectors in (True, False):
                title = f"scatter, {images} images, {vectors=}"
                yield Item(title, functools.partial(scatter, images, vectors))

    def large(self) -> Iterator[Item]:
        """Checks on shapes as in use."""

        def item(title: str, function: Callable[..., None], *arguments: Any) -> Item:
            def run() -> None:
                try:
                    function(self.kernels, *arguments)
                finally:
                    _free()

            return Item(title, run)

        for case in CASES:
            for dtype in TOLERANCES:
                yield item(f"{case.name}, {dtype}", check_against_torchvision, case, dtype)
        yield item("in order", check_same_bits, CASES[2])
        for dtype in ("bfloat16", "float32"):
            yield item(f"{HUGE.name}, {dtype}", check_beyond_32_bits, dtype)

    def _time(self, case: Case, precision: str, framework: str, key: dict[str, Any]) -> list[str]:
        dtype, tf32 = PRECISIONS[precision]
        _allow_tf32(tf32)
        data = make_data(case, getattr(torch, dtype))
        if framework == "tf_deformable":
            functions = ours(self.kernels, case, data, dtype, tensor_float_32=tf32)
        elif framework == "torchvision":
            functions = torchvisions(case, data, autocast=dtype == "bfloat16")
        else:
            functions = plain_convolution(case, data)
        errors = _measure(self.results, self.timer, functions, key)
        _free()
        return errors

    def _time_other(
        self, case: RoICase | AttentionCase, dtype: str, key: dict[str, Any]
    ) -> list[str]:
        make: Any = roi_functions if isinstance(case, RoICase) else attention_functions
        functions = make(self.kernels, case, dtype)[key["framework"]]
        errors = _measure(self.results, self.timer, functions, key)
        _free()
        return errors

    def bench(self) -> Iterator[Item]:
        """Times of everything, the most important first."""
        todo: list[tuple[Any, tuple[str, ...]]] = []
        todo += [(case, USUAL) for case in CASES[:FIVE]]
        todo += [(case, ("float32", "bfloat16")) for case in ATTENTION_CASES]
        todo += [(case, ("float32", "float16", "bfloat16")) for case in ROI_CASES]
        todo += [(case, UNUSUAL) for case in CASES[:FIVE]]
        todo += [(case, USUAL) for case in CASES[FIVE:]]
        for case, precisions in todo:
            for precision in precisions:
                frameworks = ["tf_deformable", "torchvision"]
                if isinstance(case, Case):
                    frameworks.append("conv2d")
                elif isinstance(case, AttentionCase):
                    frameworks[1] = "grid_sample"
                elif case.moved:
                    frameworks.remove("torchvision")
                for framework in frameworks:
                    key = {"case": case.name, "dtype": precision, "framework": framework}
                    if isinstance(case, Case):
                        run = functools.partial(self._time, case, precision, framework, key)
                    else:
                        run = functools.partial(self._time_other, case, precision, key)
                    yield Item(", ".join(key.values()), run)

    def tiles(self) -> Iterator[Item]:
        """The forward pass with each of its tiles, which kSamplingCost chooses from."""

        def run(case: Case, dtype: str) -> None:
            data = make_data(case, getattr(torch, dtype))
            key = {"case": case.name, "dtype": dtype, "framework": "tf_deformable"}
            forwards = {
                f"forward, {kind} {rows}x{columns}": ours(
                    *(self.kernels, case, data, dtype),
                    warpgroup_products=kind == "warpgroups",
                    forward_tile=(rows, columns),
                )["forward"]
                for kind, tiles in (("warps", FORWARD_TILES), ("warpgroups", WARPGROUP_TILES))
                for rows, columns in tiles
            }
            _measure(self.results, self.timer, forwards, key)

        for case in CASES[:FIVE]:
            for dtype in USUAL:
                yield Item(f"{case.name}, {dtype}", functools.partial(run, case, dtype))

    def ncu(self) -> Iterator[Item]:
        """One training step on each of two shapes, between marks for the profiler."""

        def run(case: Case, dtype: str) -> None:
            data = make_data(case, getattr(torch, dtype))
            step = ours(self.kernels, case, data, dtype)["step"]
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            step()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()

        for case in (CASES[1], CASES[3]):
            for dtype in USUAL:
                yield Item(f"{case.name}, {dtype}", functools.partial(run, case, dtype))


def items(step: str, library: pathlib.Path, output: pathlib.Path, commit: str) -> Iterator[Item]:
    """The items of a step of tests/gpu/run.py; what is measured is kept in the file `output`."""
    torch.backends.cudnn.benchmark = True
    _allow_tf32(True)
    suite = _Suite(library, Results(output, commit))
    steps = {
        "micro": suite.micro,
        "large": suite.large,
        "bench": suite.bench,
        "tiles": suite.tiles,
        "ncu": suite.ncu,
    }
    return steps[step]()
