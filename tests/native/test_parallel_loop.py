"""The loop that shares units of work among threads: no deadlock, no lost parallelism.

`make sanitizers` runs the same programs where the thread sanitizer sees every race.
"""

from __future__ import annotations

import pathlib
import subprocess


def test_parallel_loop(native_programs: pathlib.Path) -> None:
    run = subprocess.run(
        [str(native_programs / "parallel_loop")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "all checks passed\n"


def test_kernels_on_many_threads(native_programs: pathlib.Path) -> None:
    run = subprocess.run(
        [str(native_programs / "fuzz_kernels"), "0", "1500", "threads"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, f"signal {-run.returncode} in the case of seed {run.stderr[-12:]}"
    assert run.stdout == "all cases ran\n"
