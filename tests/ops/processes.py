"""What the operators' tests ask of processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def lines_with_threads(script: str, counts: tuple[int, ...] = (1, 3)) -> list[list[str]]:
    """Returns what a script prints on the native backend, by number of TensorFlow's threads."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "TF_DEFORMABLE_BACKEND": "native",
                "TF_NUM_INTRAOP_THREADS": str(threads),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for threads in counts
    ]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        outputs.append(output.splitlines())
    return outputs
