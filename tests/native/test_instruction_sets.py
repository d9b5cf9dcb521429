"""Code for one instruction set is not shared with that for another (cc/kernels/cpu/simd.inc)."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
INSTANCES = sorted((ROOT / "cc" / "kernels").glob("*/instances/cpu_baseline.cc"))


@pytest.mark.parametrize("source", INSTANCES, ids=lambda source: source.parts[-3])
def test_no_compiled_copy_is_for_the_linker_to_choose(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None or shutil.which("nm") is None:
        pytest.skip("needs a C++ compiler and nm")
    target = tmp_path / "kernels.o"
    # Not optimised: what is not inlined by force is compiled.
    command = [*compiler, "-std=c++17", "-O0", "-Wno-psabi", f"-I{ROOT / 'cc'}", "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    names = subprocess.run(
        ["nm", "--demangle", "--defined-only", str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    symbols = [line.split(maxsplit=2)[1:] for line in names.stdout.splitlines()]
    assert [name for kind, name in symbols if kind in "WVu"] == []
    # Inlined or not, the kernels themselves are there.
    assert any("Forward" in name for _, name in symbols)
