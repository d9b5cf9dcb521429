"""No shape and no value makes the kernels touch memory that is not theirs."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
OBJECTS = ROOT / "build" / "native" / "cc" / "kernels"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The fuzzer, linked with the objects that the build of the library left."""
    compiler = os.environ.get("CXX", "g++").split()
    if not OBJECTS.exists() or shutil.which(compiler[0]) is None:
        pytest.skip("needs the objects of a build in this source tree, and the compiler")
    target = tmp_path_factory.mktemp("fuzz") / "fuzz_kernels"
    source = pathlib.Path(__file__).with_name("fuzz_kernels.cc")
    # Those of CUDA would need its libraries.
    objects = [str(path) for path in OBJECTS.rglob("*.o") if ".cu." not in path.name]
    command = [*compiler, "-std=c++17", "-O1", f"-I{ROOT / 'cc'}", str(source), *objects]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("isa", ["", "baseline"], ids=["widest", "baseline"])
def test_random_shapes_and_hostile_values(program: pathlib.Path, isa: str) -> None:
    run = subprocess.run(
        [str(program), "0", "3000"],
        env={**os.environ, "TF_DEFORMABLE_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, f"signal {-run.returncode} in the case of seed {run.stderr[-12:]}"
    assert run.stdout == "all cases ran\n"


@pytest.mark.parametrize("isa", ["", "baseline"], ids=["widest", "baseline"])
def test_no_shape_needs_much_memory(program: pathlib.Path, isa: str) -> None:
    run = subprocess.run(
        [str(program), "workspaces"],
        env={**os.environ, "TF_DEFORMABLE_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout


def test_instruction_sets_compute_the_same(program: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The widest against the baseline, which no instruction set is without."""
    results = tmp_path / "results"
    for isa, action in (("baseline", "keep"), ("", "compare")):
        run = subprocess.run(
            [str(program), "0", "1500", action, str(results)],
            env={**os.environ, "TF_DEFORMABLE_CPU_ISA": isa},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stdout
    assert " 0 differ" in run.stdout
