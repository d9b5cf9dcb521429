"""One framework in a process of its own, that does what harness.py asks on its standard input.

Started as `worker.py BENCHMARK FRAMEWORK THREADS`, where BENCHMARK is a module of this folder. Each
line read is a request, `{"do": "<method of Session>", ...arguments}`, and is answered by one line:
`{"result": ...}` or `{"error": ...}`. The first line written is the answer to the start.

It runs with the interpreter of a peer too: nothing here may import TensorFlow.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Session:
    """What the harness may ask for."""

    def __init__(self, benchmark: str, framework: str, threads: int) -> None:
        self._benchmark = importlib.import_module(benchmark)
        self._framework = self._benchmark.FRAMEWORKS[framework](threads)
        self.unload()

    def versions(self) -> dict[str, str]:
        """Returns what the framework is made of, and the versions."""
        return self._framework.versions()

    def load(self, case: dict[str, Any], mode: str, variant: str) -> None:
        """Gets ready to do `mode` on the data of `case`, and does it once."""
        self.unload()
        loaded = self._benchmark.Case(**case)
        data = self._benchmark.make_data(loaded, variant)
        self._inputs = self._framework.load(loaded, data)  # some frameworks hold pointers only
        self._call = self._framework.prepare(loaded, mode, self._inputs)
        self._call()

    def unload(self) -> None:
        """Frees what `load` got."""
        self._call: Callable[[], Any] | None = None
        self._inputs: Any = None
        gc.collect()

    def save(self, path: str) -> None:
        """Writes the results to `path`, in the layout of tf_deformable."""
        arrays = {name: self._framework.to_numpy(name, x) for name, x in self._call().items()}
        np.savez(path, **arrays)

    def time(self, seconds: float, calls: int) -> float:
        """Returns the median time of a call, over `seconds` and at least `calls` calls.

        A first call is left out, unless it takes a second: then it is the only one.
        """
        time.sleep(0.02)  # threads of the framework that ran before stop spinning
        first = self._time_call()
        if first > 1:
            return first
        times: list[float] = []
        while len(times) < calls or sum(times) < seconds:
            times.append(self._time_call())
        return statistics.median(times)

    def _time_call(self) -> float:
        begin = time.perf_counter()
        self._call()
        return time.perf_counter() - begin

    def memory(self, case: dict[str, Any], mode: str, like: dict[str, Any]) -> int:
        """Returns the peak of the resident memory above what is there before `case` is begun.

        Before it is begun, the case `like` has loaded all code, and the data of `case` are there in
        the framework's own form. What comes on top: results, workspace, packed or copied data.
        """
        self.load(like, mode, "deformed")
        self.unload()
        begun = self._benchmark.Case(**case)
        inputs = self._framework.load(begun, self._benchmark.make_data(begun, "deformed"))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        call = self._framework.prepare(begun, mode, inputs)
        call()
        call()
        return _status("VmHWM") - before


def _status(key: str) -> int:
    """Returns an entry of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024


def _cores(count: int) -> list[int]:
    """Returns the first `count` processors that share no core, as far as there are such."""
    allowed = sorted(os.sched_getaffinity(0))
    siblings = {}
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.setdefault(path.read_text() if path.exists() else cpu, cpu)
    own_core = list(siblings.values())
    return [*own_core, *(cpu for cpu in allowed if cpu not in own_core)][:count]


def main() -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print

    def answer(work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            message = lines[-1 if lines[0].startswith("Traceback") else 0]
            answers.write(json.dumps({"error": f"{type(error).__name__}: {message}"}) + "\n")
            return None
        answers.write(json.dumps({"result": None if work is start else result}) + "\n")
        return result

    benchmark, framework, threads = sys.argv[1:]
    # Before any library counts the processors: no framework gets more than it is said to.
    os.sched_setaffinity(0, _cores(int(threads)))

    def start() -> Session:
        return Session(benchmark, framework, int(threads))

    session = answer(start)
    for line in sys.stdin:
        request = json.loads(line)
        method = getattr(session, request.pop("do"))
        answer(lambda method=method, request=request: method(**request))


if __name__ == "__main__":
    main()
