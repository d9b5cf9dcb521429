"""The loop that shares units of work among threads: no race, no deadlock, no lost parallelism."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_parallel_loop(sanitizer: str, tmp_path: pathlib.Path) -> None:
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C++ compiler")
    sources = [
        pathlib.Path(__file__).with_name("parallel_loop.cc"),
        ROOT / "cc" / "kernels" / "base" / "parallel_loop.cc",
    ]
    program = tmp_path / "parallel_loop"
    command = [*compiler, "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}"]
    command += [f"-I{ROOT / 'cc'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "all checks passed\n"
