"""The operators' tests again, in each instruction set but the widest that the processor has."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KERNELS = sorted((ROOT / "cc" / "kernels").glob("*/instances/cpu_baseline.cc"))
OPERATORS = [*(path.parts[-3] for path in KERNELS), "conv2d_branch"]

# From the narrowest to the widest, each with a flag that /proc/cpuinfo has for it.
INSTRUCTION_SETS = {"baseline": "sse2", "avx2": "avx2", "avx512": "avx512vl"}


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_narrower_instruction_sets_pass_the_operators_tests(operator: str, isa: str) -> None:
    """The widest one is what all other tests run on."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    supported = [name for name, flag in INSTRUCTION_SETS.items() if flag in flags]
    if isa not in supported[:-1]:
        pytest.skip(f"this processor has {supported}; the last is what the other tests run on")
    files = [ROOT / "tests" / "ops" / f"test_{operator}{part}.py" for part in ("", "_blocks")]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-k", "native or blocks"),
            *(str(file) for file in files if file.exists()),
        ],
        cwd=ROOT,
        env={**os.environ, "TF_DEFORMABLE_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "TF_DEFORMABLE_CPU_ISA must be" not in run.stderr  # the variable was not refused
