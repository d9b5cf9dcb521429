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


def test_kernels_on_many_threads(native_programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """What threads compute at once is what one thread computes, unit after unit."""
    results = tmp_path / "results"
    for arguments in (["keep", str(results)], ["compare", str(results), "threads"]):
        run = subprocess.run(
            [str(native_programs / "fuzz_kernels"), "0", "1500", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
        )
        seed = run.stderr[-12:]
        assert run.returncode == 0, f"status {run.returncode}, seed {seed}: {run.stdout}"
    assert " 0 differ" in run.stdout
