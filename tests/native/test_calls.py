"""What the calls of the operators refuse where only an adapter other than TensorFlow's can tell."""

from __future__ import annotations

import pathlib
import subprocess


def test_calls(native_programs: pathlib.Path) -> None:
    run = subprocess.run(
        [str(native_programs / "calls")], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "all checks passed\n"
