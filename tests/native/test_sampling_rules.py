"""Where a vector of samples reads is where each of them reads by the scalar rule."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

UNSUPPORTED = 77  # what the program exits with


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_vectors_follow_the_scalar_rules(isa: str, native_programs: pathlib.Path) -> None:
    program = native_programs / f"sampling_rules_{isa}"
    if not program.exists():
        pytest.skip("the kernels have no code for it here")
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=100, check=False)
    if run.returncode == UNSUPPORTED:
        pytest.skip(f"this processor has no {isa}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith(" values are the same\n")
