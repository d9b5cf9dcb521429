"""Whatever the compiled operators are given, the process lives on, and comes to an end."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from tf_deformable import config

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 240  # tens of times what they take

pytestmark = pytest.mark.skipif(
    config.get_backend() != "native", reason="calls the compiled operators"
)


def _ends(script: str, *arguments: str) -> dict[str, int]:
    """Runs a script in a process of its own; returns how its calls ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.hostile.{script}", *arguments],
        cwd=ROOT,
        env={**environment, "TF_DEFORMABLE_BACKEND": "native"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines() or ["nothing"]
    assert done.returncode == 0, f"ended in {lines[-1]}\n{done.stderr[-2000:]}"
    ends: dict[str, int] = ast.literal_eval(lines[-1])
    return ends


def test_raw_calls() -> None:
    ends = _ends("raw_calls", "0", "600")
    assert ends["no error"] > 100, "the calls are to be wrong in one thing, not in all"
    assert sum(ends.values()) - ends["no error"] > 100


def test_tensors_without_elements() -> None:
    ends = _ends("empty_tensors")
    assert list(ends) == ["no error"]


def test_changed_saved_models(tmp_path: pathlib.Path) -> None:
    ends = _ends("saved_models", str(tmp_path), "0", "120")
    assert ends["no error"] > 5
    assert sum(ends.values()) - ends["no error"] > 60
