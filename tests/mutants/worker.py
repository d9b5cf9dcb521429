"""A process that has imported TensorFlow, and is forked for every mutant.

It reads tasks from the file descriptor that its first argument names, a line of JSON each, and
writes a line for each to that of the second. For the mutants of C++ pytest has
collected all tests before the first fork, and the libraries are loaded; for those of Python the
package is imported after it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import pytest

from tests.mutants.suites import Suite

ROOT = pathlib.Path.cwd()

Task = dict[str, Any]
RunOf = Callable[[Task], Callable[[list[str]], str]]  # for a task: for tests, what went wrong


def switch_mutant(number: int) -> None:
    """Switches a mutant of C++ on in the library that this process has loaded, if it has."""
    (kernels,) = (ROOT / "tf_deformable").glob("libtf_deformable_kernels-*.so")
    if str(kernels) in pathlib.Path("/proc/self/maps").read_text():
        library = ctypes.CDLL(str(kernels))
        ctypes.c_int.in_dll(library, "_ZN13tf_deformable6mutantE").value = number


def _run_program(command: list[str]) -> str:
    """Returns what went wrong, "" if nothing did."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return "" if done.returncode == 0 else f"{pathlib.Path(command[0]).name}: {done.returncode}"


def _step(run: Callable[[list[str]], str]) -> Callable[[dict[str, list[str]]], str]:
    def step(what: dict[str, list[str]]) -> str:
        return _run_program(what["program"]) if "program" in what else run(what["tests"])

    return step


def _forked(task: Task, run_of: RunOf) -> dict[str, Any]:
    """Runs a task in a child; what it finds, or how it ended, is the result."""
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # all that it starts ends with it
        os.environ.update(task["environment"])
        switch_mutant(int(os.environ.get("TF_DEFORMABLE_MUTANT", "0")))
        found = next(filter(None, map(_step(run_of(task)), task["steps"])), "")
        os.write(write, found.encode())
        os._exit(0)
    os.close(write)
    status, found = None, ""
    while status is None and time.monotonic() - start < task["seconds"]:
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    if status is None:
        found = f"no end in {task['seconds']:.0f} s"
    elif status != 0:
        found = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended"
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if status is None:
        os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        found = found or pipe.read().decode()
    return {"id": task["id"], "found": found, "seconds": time.monotonic() - start}


def _serve(run_of: RunOf, tasks: TextIO, answers: TextIO) -> None:
    for line in tasks:
        answers.write(json.dumps(_forked(json.loads(line), run_of)) + "\n")
        answers.flush()


class Collected:
    """A plugin of pytest that serves tasks in place of running all tests."""

    def __init__(self, tasks: TextIO, answers: TextIO) -> None:
        self._tasks = tasks
        self._answers = answers

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Serves until the input ends."""
        from tensorflow.python.eager import context

        # No thread is there after a fork but the one that forks.
        assert context.context()._context_handle is None, "a test file computes when it is imported"
        items = {item.nodeid: item for item in session.items}

        def run_of(task: Task) -> Callable[[list[str]], str]:
            return lambda tests: self._run([items[test] for test in tests])

        _serve(run_of, self._tasks, self._answers)
        return True

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tells what there is."""
        self._answers.write(json.dumps([item.nodeid for item in session.items]) + "\n")
        self._answers.flush()

    def _run(self, items: list[pytest.Item]) -> str:
        from _pytest.runner import runtestprotocol

        for item, after in zip(items, [*items[1:], None], strict=True):
            if any(r.failed for r in runtestprotocol(item, log=False, nextitem=after)):
                return item.nodeid
        return ""


class _Suites:
    """A plugin of pytest that leaves out tests of no suite, and keeps the first that fails."""

    def __init__(self, suites: list[Suite]) -> None:
        self._suites = suites
        self.found = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [i for i in items if any(suite.takes(i.nodeid) for suite in self._suites)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.found = self.found or report.nodeid


def _run_pytest(task: Task) -> Callable[[list[str]], str]:
    """For a mutant of the package that lies in a folder of its own."""
    suites = [Suite(**suite) for suite in task["suites"]]

    def run(tests: list[str]) -> str:
        sys.path.insert(0, task["package"])
        import tf_deformable  # noqa: F401  what pytest finds imported, it does not look for

        plugin = _Suites(suites)
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], plugins=[plugin])
        return plugin.found or ("" if code == 0 else f"pytest: {code}")

    return run


def main() -> None:
    """Serves tasks until the standard input ends."""
    tasks, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
    import keras  # noqa: F401
    import tensorflow as tf

    import tests.conftest  # noqa: F401  it sets what TensorFlow reads

    tf.keras  # noqa: B018  it is loaded lazily
    faulthandler.disable()
    if files := sys.argv[3:]:
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
        sys.exit(pytest.main([*options, *files], plugins=[Collected(tasks, answers)]))
    _serve(_run_pytest, tasks, answers)


if __name__ == "__main__":
    main()
