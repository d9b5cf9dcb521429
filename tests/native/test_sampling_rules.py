"""Where a vector of samples reads is where each of them reads by the scalar rule."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# What the compiler is told, and a flag that /proc/cpuinfo has for it.
INSTRUCTION_SETS = {
    "baseline": ([], ""),
    "avx2": (["-march=x86-64-v3"], "avx2"),
    "avx512": (["-march=x86-64-v4"], "avx512vl"),
}


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_vectors_follow_the_scalar_rules(isa: str, tmp_path: pathlib.Path) -> None:
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C++ compiler")
    flags, needed = INSTRUCTION_SETS[isa]
    supported = platform.machine() == "x86_64" or not needed
    if needed and supported:
        supported = needed in pathlib.Path("/proc/cpuinfo").read_text().split()
    if not supported:
        pytest.skip(f"this processor has no {isa}")
    source = pathlib.Path(__file__).with_name("sampling_rules.cc")
    program = tmp_path / "sampling_rules"
    command = [*compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", *flags]
    subprocess.run([*command, f"-I{ROOT / 'cc'}", str(source), "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith(" values are the same\n")
