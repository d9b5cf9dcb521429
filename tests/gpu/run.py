"""Builds the CUDA kernels, checks them on this machine's GPU, and times them: one command.

    python tests/gpu/run.py [--steps STEP ...] [--output FOLDER] [--library PATH]

Needs NumPy and ml_dtypes, and nvcc where no --library is given; PyTorch and torchvision for what
compares with them; JAX, CMake and Ninja for the handlers of XLA; not TensorFlow. Steps, in the
order in which they are done:

    build     compiles cc/kernels for the GPU; left out if there is a --library
    probe     says what device there is, and runs one small kernel
    micro     rates of the device that bound the kernels: copies, products, atomic additions
    check     every case, dtype and gradient against the float64 oracles and the golden vectors;
              every kernel must have been among them
    jax       the same of the handlers for XLA, driven by JAX; builds them, if there are none
    large     shapes as in use, against torchvision in float64; tensors of 2^31 elements and more
    bench     benchmarks/gpu/kernels.py
    tiles     the forward pass with each of its tiles
    ncu       what Nsight Compute says about each kernel, on two shapes
    sanitize  small cases under compute-sanitizer: memcheck, racecheck

Every step, and every dtype of `check`, is a process of its own, or several one after another: one
that dies or hangs is a failure of the case that it was at, and the next one goes on behind it (see
isolation.py). The output folder gets, as they come, events.jsonl: how each case ended; log.txt;
gpu.json: what was measured; ncu.txt; and summary.txt. `--emulate` takes the emulation for the GPU.

Ends with status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# These folders have no __init__.py: a package of the same name, installed by whatever, would win.
for _name in ("tests", "benchmarks"):
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = [str(ROOT / _name)]

from tests.gpu import deformable_attention_checks as attention  # noqa: E402
from tests.gpu import deformable_conv2d_checks as conv2d  # noqa: E402
from tests.gpu import isolation  # noqa: E402
from tests.gpu import kernels as gpu  # noqa: E402
from tests.gpu import roi_pool_checks as roi_pool  # noqa: E402
from tests.gpu.isolation import Item, Skipped, Worker  # noqa: E402

STEPS = ("build", "probe", "micro", "check", "jax", "large", "bench", "tiles", "ncu", "sanitize")
# What a worker may take, in seconds: all of it, and one item; and how often it may start anew.
LIMITS = {
    "probe": (60, 40, 1),
    "micro": (100, 60, 4),  # the first to load PyTorch, from a cold disk
    "check": (100, 30, 4),
    "jax": (200, 150, 4),  # the first item builds
    "large": (120, 40, 8),
    "bench": (200, 40, 8),
    "tiles": (60, 30, 4),
    "ncu": (90, 80, 0),  # a report is that of one process
    "sanitize": (90, 60, 3),
}
# Cases that have these tiles: read 16 bytes at a time, not depthwise.
TILED = ("vectors", "wide", "groups", "square tiles", "many taps")

SANITIZERS = ("memcheck", "racecheck")
SANITIZED_DTYPES = ("float32", "bfloat16")
_WARPS = {"warpgroup_products": False}  # as on devices before Hopper
_EXACT = {"tensor_float_32": False}  # of float32 only: to others it is the same
# Small, and every kernel of these dtypes is among them.
SANITIZED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vectors", {}),
    ("square tiles", {}),
    *(("wide", _WARPS | {"forward_tile": tile}) for tile in gpu.FORWARD_TILES),
    *(("wide", {"forward_tile": tile}) for tile in gpu.WARPGROUP_FORWARD_TILES),
    ("resident", _WARPS),
    ("streamed", {}),
    ("streamed", _WARPS),
    ("ranges", {}),
    ("square tiles", {"columns_bytes": 1}),
    ("misaligned, 100 channels", {}),
    ("lopsided", {}),
    ("groups", {}),
    ("misaligned", {}),
    ("depthwise", {}),
    ("depthwise, odd", {}),
    ("many channels", {"multiprocessors": 1}),
    ("vectors", _EXACT),
    ("lopsided", _EXACT),
    ("depthwise", _EXACT),
    ("depthwise, odd", _EXACT),
)
SANITIZED_ROI = ("lopsided", "vectors", "more channels than lanes")
SANITIZED_ATTENTION = ("lopsided", "vectors", "more channels than lanes", "many samples")

NCU_OPTIONS = ["--clock-control", "none", "--profile-from-start", "off", "--set", "basic"]
for _section in ("SpeedOfLight", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis"):
    NCU_OPTIONS += ["--section", _section]
for _section in ("ComputeWorkloadAnalysis", "WarpStateStats", "SchedulerStats"):
    NCU_OPTIONS += ["--section", _section]


# --- What the workers run -------------------------------------------------------------------------


def _modes(dtype: str, case: str, tiled: bool) -> list[dict[str, Any]]:
    """The options with which a case is checked."""
    # A plan for a small device gives a block several chunks of channels, and many tiles.
    modes: list[dict[str, Any]] = [{}, {"multiprocessors": 1}]
    modes += [{"columns_bytes": 1}] if tiled else [{"deterministic": True}]
    if dtype in ("float16", "bfloat16"):
        modes.append({"wide_sampling": True})
    if tiled and dtype == "float32":
        modes.append({"tensor_float_32": False})
    if tiled and dtype != "float64":
        modes.append(_WARPS)
        if case in TILED:
            modes += [_WARPS | {"forward_tile": tile} for tile in gpu.FORWARD_TILES]
            modes += [{"forward_tile": tile} for tile in gpu.WARPGROUP_FORWARD_TILES]
    return modes


class _Checks:
    """Makes items that call a function with the kernels, and say which of these it launched."""

    def __init__(self, library: pathlib.Path) -> None:
        self.kernels = gpu.Kernels(library, gpu.DeviceMemory(library))
        self.known: set[str] = set()

    def item(self, title: str, function: Callable[..., Any], *of: Any, **options: Any) -> Item:
        def run() -> list[str]:
            function(self.kernels, *of, **options)
            launched = self.kernels.launched()
            new, self.known = launched - self.known, launched
            return sorted(new)

        return Item(", ".join([title, *(f"{k}={v}" for k, v in options.items())]), run)


def check_items(arguments: argparse.Namespace, dtype: str) -> Iterator[Item]:
    """All cases, or those of the wanted names, against the oracles."""
    checks = _Checks(arguments.library)
    names = arguments.cases
    for name, case in conv2d.CASES.items():
        if names and name not in names:
            continue
        for options in _modes(dtype, name, tiled=True):
            title = f"deformable_conv2d, {name}, {dtype}"
            yield checks.item(title, conv2d.check, case, dtype, **options)
            yield checks.item(title, conv2d.check, case, dtype, hostile=True, **options)
    for name, roi_case in roi_pool.CASES.items():
        if names and name not in names:
            continue
        for options in _modes(dtype, name, tiled=False):
            title = f"roi_pool, {name}, {dtype}"
            yield checks.item(title, roi_pool.check, roi_case, dtype, **options)
            if dtype == "float64" and roi_case.batch > 0:
                title += ", odd boxes"
                yield checks.item(title, roi_pool.check_odd_boxes, roi_case, dtype, **options)
    yield checks.item(f"roi_pool, indices, {dtype}", roi_pool.check_indices, dtype)
    for name, attention_case in attention.CASES.items():
        if names and name not in names:
            continue
        for options in _modes(dtype, name, tiled=False):
            title = f"attention, {name}, {dtype}"
            yield checks.item(title, attention.check, attention_case, dtype, **options)
    for deterministic in () if names else (False, True):
        for depth in (3, 16):
            title = f"attention, odd positions, {depth} channels, {dtype}"
            check = functools.partial(attention.check_odd_positions, depth=depth)
            yield checks.item(title, check, dtype, deterministic=deterministic)
    if dtype == "float64":
        for path in [] if names else attention.GOLDEN:
            yield checks.item(path.stem, attention.check_golden, path)
        yield checks.item("roi_pool, converted boxes", roi_pool.check_converted_boxes)
        for path in [] if names else conv2d.GOLDEN:
            yield checks.item(path.stem, conv2d.check_golden, path)


def jax_items(arguments: argparse.Namespace) -> Iterator[Item]:
    """The handlers of XLA on JAX's default device, which is the GPU where JAX is for CUDA."""
    if importlib.util.find_spec("jax") is None:
        raise Skipped("there is no JAX")
    import jax

    if not list((ROOT / "tf_deformable").glob("libtf_deformable_xla-*.so")):
        folder = arguments.library.parent / "handlers"
        yield Item("build", lambda: _build_handlers(folder, arguments.architecture))
    jax.config.update("jax_enable_x64", True)

    def item(title: str, name: str, *of: Any) -> Item:
        def run() -> None:
            from tests import jax_checks  # imports the handlers

            getattr(jax_checks, name)(*of)

        return Item(title, run)

    for dtype in gpu.TYPES:
        for name, case in conv2d.CASES.items():
            yield item(f"{name}, {dtype}", "check_conv2d", case, dtype)
        for name, roi_case in roi_pool.CASES.items():
            yield item(f"roi_pool, {name}, {dtype}", "check_roi_pool", roi_case, dtype)
        for name, attention_case in attention.CASES.items():
            yield item(f"attention, {name}, {dtype}", "check_attention", attention_case, dtype)
    for path in conv2d.GOLDEN:
        yield item(path.stem, "check_golden_conv2d", path, "float64")
    for path in sorted((ROOT / "tests" / "golden").glob("psroi_*.npz")):
        yield item(path.stem, "check_golden_roi_pool", path, "float64")
    for path in attention.GOLDEN:
        yield item(path.stem, "check_golden_attention", path, "float64")


def _build_handlers(folder: pathlib.Path, architecture: str) -> None:
    """Builds the handlers and the kernels, and puts them into the package."""
    import jax

    options = {
        "TF_DEFORMABLE_XLA_INCLUDE": jax.ffi.include_dir(),
        "TF_DEFORMABLE_CUDA": "ON" if jax.default_backend() == "gpu" else "OFF",
    }
    if architecture.startswith("sm_"):
        number = architecture.removeprefix("sm_").removesuffix("a")
        options["TF_DEFORMABLE_CUDA_ARCHITECTURES"] = number
    configure = ["cmake", "-S", ROOT / "cc", "-B", folder, "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, ["cmake", "--build", folder, "--target", "tf_deformable_xla"]):
        subprocess.run(command, check=True)
    for library in folder.rglob("libtf_deformable_*.so"):
        shutil.copy2(library, ROOT / "tf_deformable")


def sanitize_items(arguments: argparse.Namespace, dtype: str) -> Iterator[Item]:
    """Some small cases; nothing looks at their results, which `check` has done."""
    checks = _Checks(arguments.library)
    for name, options in SANITIZED:
        if options is _EXACT and dtype != "float32":
            continue
        case = conv2d.CASES[name]
        title = f"deformable_conv2d, {name}, {dtype}"
        yield checks.item(title, conv2d.evaluate, case, case.arrays(), dtype, **options)
    for name in SANITIZED_ROI:
        roi_case, arrays = roi_pool.CASES[name], roi_pool.CASES[name].arrays()
        for deterministic in (False, True):
            options = {"deterministic": deterministic}
            title = f"roi_pool, {name}, {dtype}"
            yield checks.item(title, roi_pool.evaluate, roi_case, arrays, dtype, **options)
    for name in SANITIZED_ATTENTION:
        attention_case = attention.CASES[name]
        for deterministic in (False, True):
            yield checks.item(
                f"attention, {name}, {dtype}",
                attention.evaluate,
                attention_case,
                attention_case.arrays(),
                dtype,
                deterministic=deterministic,
            )


def probe_items(arguments: argparse.Namespace) -> Iterator[Item]:
    """What the device is; and whether anything runs on it."""

    def describe() -> dict[str, str]:
        if arguments.emulate:
            return {"name": "emulation"}
        names = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Skipped(f"nvidia-smi: {error}") from error
        if run.returncode != 0:
            raise Skipped(f"nvidia-smi: {run.stdout}{run.stderr}"[:500])
        values = run.stdout.strip().splitlines()[0].split(", ")
        described = dict(zip(names.split(","), values, strict=True))
        print(described, flush=True)
        return described

    yield Item("device", describe)
    checks = _Checks(arguments.library)
    yield checks.item("one channel", conv2d.check, conv2d.CASES["one channel"], "float32")


def _benchmark(arguments: argparse.Namespace) -> Any:
    try:
        from benchmarks.gpu import kernels as benchmark
    except ImportError as error:
        raise Skipped(f"needs PyTorch: {error}") from error
    if arguments.emulate:
        benchmark.use_the_emulation()
    return benchmark


def items_of(worker: str, arguments: argparse.Namespace) -> Iterator[Item]:
    """The items of a worker: a step, or one and a dtype behind a colon."""
    step, _, dtype = worker.partition(":")
    if step == "check":
        yield from check_items(arguments, dtype)
    elif step == "sanitize":
        yield from sanitize_items(arguments, dtype)
    elif step == "probe":
        yield from probe_items(arguments)
    elif step == "jax":
        yield from jax_items(arguments)
    else:
        yield from _benchmark(arguments).items(
            worker, arguments.library, arguments.output / "gpu.json", _commit(arguments)
        )


def _work(arguments: argparse.Namespace, events: isolation.Events) -> int:
    worker = arguments.worker
    try:
        items = list(items_of(worker, arguments))
    except Skipped as reason:
        why = reason

        def skip() -> None:
            raise why

        items = [Item("all of it", skip)]
    # compute-sanitizer runs a worker for two tools.
    name = arguments.alias or worker
    return isolation.work(name, items, events, arguments.first, arguments.plant)


# --- What supervises them -------------------------------------------------------------------------


def _commit(arguments: argparse.Namespace) -> str:
    """What the option says, or git, if there is one and this is a repository."""
    if arguments.commit:
        return str(arguments.commit)
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return run.stdout.strip() or "unknown"


def _worker(
    arguments: argparse.Namespace, name: str, prefix: list[str] | None = None, alias: str = ""
) -> Worker:
    step = name.partition(":")[0]
    command = [*(prefix or []), *isolation.python(pathlib.Path(__file__))]
    command += ["--worker", name, "--library", str(arguments.library)]
    command += ["--output", str(arguments.output), "--commit", _commit(arguments)]
    command += ["--architecture", arguments.architecture]
    if alias:
        command += ["--alias", alias]
    if arguments.emulate:
        command += ["--emulate"]
    if arguments.cases:
        command += ["--cases", *arguments.cases]
    if arguments.plant:
        command += ["--plant", arguments.plant]
    seconds, seconds_per_item, most_restarts = LIMITS[step]
    if arguments.emulate:
        seconds, seconds_per_item = (
            20 * seconds,
            arguments.seconds_per_item or 10 * seconds_per_item,
        )
    elif arguments.seconds_per_item:
        seconds_per_item = arguments.seconds_per_item
    return Worker(alias or name, command, seconds, seconds_per_item, most_restarts)


def _check_that_all_kernels_were_reached(
    library: pathlib.Path, events: isolation.Events, workers: list[Worker]
) -> None:
    reached: set[str] = set()
    for worker in workers:
        for event in events.read(worker.name):
            reached.update(event.get("result") or [])
    missing = gpu.demangle(gpu.kernel_names(library) - reached)
    error = None
    if missing:
        error = f"{len(missing)} kernels were not: " + "; ".join(missing)
    events.append(
        event="end",
        worker="check",
        title="every kernel is reached",
        result=len(reached),
        error=error,
        skipped=None,
    )


def _skip(events: isolation.Events, step: str, why: str) -> None:
    print(f"[{step}] skipped: {why}", flush=True)
    events.append(event="end", worker=step, title=step, result=None, error=None, skipped=why)


def _tool_error(arguments: argparse.Namespace, prefix: list[str]) -> str | None:
    """Why a tool of CUDA cannot be used here, if so: it is tried on one small kernel."""
    if arguments.emulate:
        return "not with the emulation"
    if shutil.which(prefix[0]) is None:
        return f"there is no {prefix[0]}"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'gpu')!r}); import kernels, pathlib;"
        "import numpy; memory = kernels.DeviceMemory(pathlib.Path(sys.argv[1]));"
        "memory.get(memory.put(numpy.ones(8), 'float32'))"
    )
    command = [*prefix, sys.executable, "-c", code, str(arguments.library)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return "it does not end"
    text = run.stdout + run.stderr
    with (arguments.output / "log.txt").open("a") as log:
        log.write(text)
    if run.returncode != 0 or "not supported" in text.lower():
        return f"status {run.returncode}: {text[-1000:]}"
    return None


def run_step(step: str, arguments: argparse.Namespace, events: isolation.Events) -> None:
    """Does one step to its end."""
    log = arguments.output / "log.txt"
    if step == "check":
        workers = [_worker(arguments, f"check:{dtype}") for dtype in gpu.TYPES]
        isolation.supervise(workers, events, log)
        if not arguments.cases:
            _check_that_all_kernels_were_reached(arguments.library, events, workers)
    elif step == "sanitize":
        prefix = ["compute-sanitizer", "--error-exitcode", "99"]
        why = _tool_error(arguments, prefix)
        if why is not None:
            _skip(events, step, why)
            return
        workers = [
            _worker(arguments, f"sanitize:{dtype}", [*prefix, "--tool", tool], f"{tool}:{dtype}")
            for tool in SANITIZERS
            for dtype in SANITIZED_DTYPES
        ]
        isolation.supervise(workers, events, log)
    elif step == "ncu":
        why = _tool_error(arguments, ["ncu"])
        if why is not None:
            _skip(events, step, why)
            return
        report = ["--log-file", str(arguments.output / "ncu.txt")]
        worker = _worker(arguments, "ncu", ["ncu", *NCU_OPTIONS, *report])
        isolation.supervise([worker], events, log)
    else:
        isolation.supervise([_worker(arguments, step)], events, log)


def _build(arguments: argparse.Namespace) -> None:
    folder = arguments.library.parent
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.emulate:
        gpu.build_emulation(folder)
    else:
        gpu.build_cuda(folder, arguments.architecture)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    build = ROOT / "build" / "gpu"
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--output", type=pathlib.Path, default=build / "results")
    parser.add_argument("--library", type=pathlib.Path, help="one that was built before")
    parser.add_argument("--architecture", default="native", help="for nvcc -arch")
    parser.add_argument("--cases", nargs="+", help="of the step check, by name")
    parser.add_argument("--commit", default=os.environ.get("TF_DEFORMABLE_COMMIT", ""))
    parser.add_argument("--emulate", action="store_true", help="no GPU, but its emulation")
    # Of this script to itself.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--alias", default="", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    # Of its tests.
    parser.add_argument("--plant", help=argparse.SUPPRESS)
    parser.add_argument("--seconds-per-item", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = [
        step
        for step in STEPS
        if step in arguments.steps and not (step == "build" and arguments.library)
    ]
    name = "libkernels_emulated.so" if arguments.emulate else "libkernels_cuda.so"
    arguments.library = (arguments.library or build / name).resolve()
    arguments.output = arguments.output.resolve()
    return arguments


def main() -> int:
    """Runs the steps; returns the exit status."""
    arguments = _parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    events = isolation.Events(arguments.output / "events.jsonl")
    if arguments.worker:
        return _work(arguments, events)
    # The workers are no children of the terminal's: to end this process has to end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in ("events.jsonl", "log.txt"):  # of an earlier run, which would be taken for this one
        (arguments.output / name).unlink(missing_ok=True)
    for step in arguments.steps:
        start = time.monotonic()
        if step == "build":
            _build(arguments)
        else:
            try:
                run_step(step, arguments, events)
            except Exception as error:  # the other steps are worth running
                what = f"{type(error).__name__}: {error}"
                print(f"[{step}] FAILED: {what}", flush=True)
                events.append(
                    event="end", worker=step, title=step, result=None, error=what, skipped=None
                )
        print(f"== {step}: {time.monotonic() - start:.0f} s", flush=True)
        _summarise(arguments, isolation.ends(events))
    ends = isolation.ends(events)
    failed = sum(bool(event["error"]) for event in ends)
    print(_summarise(arguments, ends))
    print(f"{len(ends)} checks, {failed} failed")
    return 1 if failed else 0


def _summarise(arguments: argparse.Namespace, ends: list[dict[str, Any]]) -> str:
    """Writes what failed and what was skipped to summary.txt, and returns it."""
    lines = [
        f"{kind} {event['worker']}: {event['title']}: {event[key]}"
        for key, kind in (("error", "FAILED"), ("skipped", "skipped"))
        for event in ends
        if event[key]
    ]
    text = "\n".join([*lines, f"{len(ends)} items ended"])
    (arguments.output / "summary.txt").write_text(text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())
