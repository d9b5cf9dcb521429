"""No shape and no value makes the kernels touch memory that is not theirs."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest


@pytest.fixture(scope="module")
def program(native_programs: pathlib.Path) -> pathlib.Path:
    """The fuzzer."""
    return native_programs / "fuzz_kernels"


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


def test_inputs_that_a_fuzzer_has_found(native_programs: pathlib.Path) -> None:
    """What reached code that others do not, or failed once. `make sanitizers` runs them, too."""
    corpus = pathlib.Path(__file__).with_name("corpus")
    run = subprocess.run(
        [str(native_programs / "replay_inputs"), str(corpus)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, f"status {run.returncode}: {run.stderr[-200:]}"
    assert run.stdout == f"{len(list(corpus.iterdir()))} inputs ran\n"


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
