"""Builds the CUDA kernels, checks them on this machine's GPU, and times them: one command.

    python tests/gpu/run.py [--steps build check sanitize large bench] [--output FOLDER]

Needs nvcc, NumPy and ml_dtypes; PyTorch and torchvision for the steps `large` and `bench`, which
compare with them; not TensorFlow. Steps:

    build     compiles cc/kernels for the GPU, into FOLDER
    check     every case, dtype and gradient against the float64 oracles and the golden vectors
    sanitize  some of these under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
    large     shapes as in use, against torchvision in float64
    bench     benchmarks/gpu/kernels.py; its table comes last

Ends with status 1 if a check failed; what failed is printed, and the other steps are done.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.gpu import deformable_conv2d_checks as conv2d  # noqa: E402
from tests.gpu import kernels as gpu  # noqa: E402
from tests.gpu import roi_pool_checks as roi_pool  # noqa: E402

STEPS = ("build", "check", "sanitize", "large", "bench")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Small, and every kernel is among them.
SANITIZED = ("lopsided", "vectors", "groups", "misaligned", "depthwise", "depthwise, odd")


class Checks:
    """Runs checks and remembers which failed."""

    def __init__(self) -> None:
        self.done, self.failed = 0, 0

    def run(
        self, name: str, function: Callable[..., None], *arguments: Any, **options: Any
    ) -> None:
        """Calls the function; prints what it raises."""
        self.done += 1
        try:
            function(*arguments, **options)
        except Exception as error:  # whatever it is, the others are worth running
            self.failed += 1
            lines = str(error).strip().splitlines() or [repr(error)]
            print(f"FAILED {name}: {lines[0]}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()


def check_small(checks: Checks, library: pathlib.Path, names: tuple[str, ...] | None) -> None:
    """All cases, or those of these names, against the oracles."""
    kernels = gpu.Kernels(library, gpu.DeviceMemory(library))
    for dtype in gpu.TYPES:
        modes: list[dict[str, bool]] = [{}, {"deterministic": True}]
        if dtype in ("float16", "bfloat16"):
            modes.append({"wide_sampling": True})
        roi_modes = list(modes)
        if dtype == "float32":
            modes.append({"tensor_float_32": False})
        for name, case in conv2d.CASES.items():
            if names is not None and name not in names:
                continue
            for options in modes:
                title = f"deformable_conv2d, {name}, {dtype}, {options}"
                checks.run(title, conv2d.check, kernels, case, dtype, **options)
                title += ", hostile positions"
                checks.run(title, conv2d.check_hostile, kernels, case, dtype, **options)
        for name, roi_case in roi_pool.CASES.items():
            if names is not None and name not in names:
                continue
            for options in roi_modes:
                title = f"roi_pool, {name}, {dtype}, {options}"
                checks.run(title, roi_pool.check, kernels, roi_case, dtype, **options)
                if dtype == "float64" and roi_case.batch > 0:
                    title += ", odd boxes"
                    checks.run(title, roi_pool.check_odd_boxes, kernels, roi_case, dtype, **options)
        checks.run(f"roi_pool, indices, {dtype}", roi_pool.check_indices, kernels, dtype)
    for path in conv2d.GOLDEN if names is None else []:
        checks.run(path.stem, conv2d.check_golden, kernels, path)


def sanitize(checks: Checks, library: pathlib.Path) -> None:
    """The small checks once more, each under the sanitizers."""
    if shutil.which("compute-sanitizer") is None:
        print("There is no compute-sanitizer: left out.")
        return
    command = [sys.executable, __file__, "--steps", "check", "--library", str(library)]
    for tool in SANITIZERS:
        start = time.time()
        run = subprocess.run(
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", *command]
            + ["--cases", *SANITIZED],
            capture_output=True,
            text=True,
            check=False,
        )
        checks.done += 1
        print(f"{tool}: status {run.returncode}, {time.time() - start:.0f} s", flush=True)
        if run.returncode != 0:
            checks.failed += 1
            print((run.stdout + run.stderr)[-3000:], flush=True)


def check_large(checks: Checks, library: pathlib.Path) -> None:
    """Shapes as in use, against torchvision in float64; and the same bits when asked for."""
    from benchmarks.gpu import kernels as benchmark

    kernels = gpu.Kernels(library, gpu.TorchMemory())
    for case in benchmark.CASES:
        for dtype in ("float32", "bfloat16", "float16"):
            name = f"{case.name}, {dtype}"
            checks.run(name, benchmark.check_against_torchvision, kernels, case, dtype)
    checks.run("in order", benchmark.check_same_bits, kernels, benchmark.CASES[2])


def main() -> int:
    """Runs the steps; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--library", type=pathlib.Path, help="one that was built before")
    parser.add_argument("--architecture", default="native", help="for nvcc -arch")
    parser.add_argument("--cases", nargs="+", help="of the step check, by name")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    library = arguments.library or arguments.output / "libkernels_cuda.so"
    checks = Checks()
    for step in STEPS:
        if step not in arguments.steps:
            continue
        start = time.time()
        if step == "build":
            library = gpu.build_cuda(arguments.output, arguments.architecture)
        elif step == "check":
            check_small(checks, library, arguments.cases and tuple(arguments.cases))
        elif step == "sanitize":
            sanitize(checks, library)
        elif step == "large":
            check_large(checks, library)
        else:
            from benchmarks.gpu import kernels as benchmark

            benchmark.run(library, arguments.output / "gpu.json")
        print(f"== {step}: {time.time() - start:.0f} s", flush=True)
    print(f"{checks.done} checks, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
