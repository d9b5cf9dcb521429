"""Counts the instructions of the kernels: a guard that neither load nor clock disturbs.

instructions.cc is linked with the kernels that a build of the libraries leaves, and run under
valgrind, or perf where the processor lets it count. Always the AVX2 kernels, which valgrind knows.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import ROOT, instruction_sets

BUILD = ROOT / "build" / "native"
PROGRAM = BUILD / "native_tests" / "instructions"

# Millions per call, by g++ 12. Other compilers and small changes stay within SLACK. A change that
# makes the kernels faster changes these too.
EXPECTED = {
    "deformable_conv2d": {
        ("deformable_conv2d", "forward"): 1.80,
        ("deformable_conv2d", "backward"): 4.66,
    },
    "deformable_conv2d_layer": {
        ("conv2d_branch", "forward"): 1.13,
        ("conv2d_branch", "backward"): 2.58,
    },
    "deformable_attention": {
        ("deformable_attention", "forward"): 2.91,
        ("deformable_attention", "backward"): 7.76,
    },
    "roi_pool": {
        ("roi_pool", "forward"): 0.21,
        ("roi_pool", "backward"): 1.49,
        ("psroi_pool", "forward"): 1.16,
        ("psroi_pool", "backward"): 4.90,
    },
}
SLACK = 1.2


def within_bounds(benchmark: str) -> bool:
    """Prints the counts of a benchmark's kernels and tells whether they are as expected."""
    try:
        count = _counter()
    except RuntimeError as reason:
        print(f"instructions: not counted, {reason}")
        return True
    kernels = EXPECTED[benchmark]
    runs = [[*kernel, calls] for kernel in kernels for calls in ("1", "3")]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        counts = list(executor.map(count, runs))
    held = True
    for (operator, direction), expected in kernels.items():
        once, thrice = (counts[runs.index([operator, direction, calls])] for calls in ("1", "3"))
        millions = (thrice - once) / 2e6  # loading and data, done once, cancel out
        holds = millions <= expected * SLACK
        held &= holds
        print(
            f"{operator} {direction}: {millions:.2f} million instructions, at most "
            f"{expected * SLACK:.2f}: {'held' if holds else 'NOT HELD'}"
        )
    return held


def _counter() -> Callable[[list[str]], int]:
    """Returns what counts the instructions of a call; raises RuntimeError where nothing can."""
    if "avx2" not in instruction_sets():
        raise RuntimeError(f"{platform.machine()} without AVX2")
    cmake = Path(sys.executable).with_name("cmake")
    if not (BUILD / "CMakeCache.txt").exists() or not cmake.exists():
        raise RuntimeError("the libraries were not built in this source tree")
    subprocess.run([cmake, BUILD, "-DTF_DEFORMABLE_TESTS=ON"], check=True)
    subprocess.run([cmake, "--build", BUILD, "--target", "instructions"], check=True)

    for tool, pattern in (
        ("valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null", r"I +refs:"),
        ("perf stat -x, -e instructions:u", ""),
    ):
        if shutil.which(tool.split()[0]) is None:
            continue

        def count(arguments: list[str], tool: str = tool, pattern: str = pattern) -> int:
            result = subprocess.run(
                [*tool.split(), str(PROGRAM), *arguments],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "TF_DEFORMABLE_CPU_ISA": "avx2"},
            )
            found = re.search(pattern + r"\s*([\d,]*\d)", result.stderr)
            if result.returncode != 0 or found is None:
                raise RuntimeError(f"{tool.split()[0]} does not count here")
            return int(found[1].replace(",", ""))

        return count
    raise RuntimeError("neither valgrind nor perf is there")
