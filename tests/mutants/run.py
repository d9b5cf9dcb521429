"""Runs fast tests against single faults, mutants, that are put into the code: `make mutants`.

Every mutant should be killed: a test should fail, the process end, or the time be up. One that
survives is a fault that no test would see. The libraries are built once, with all mutants of C++
in them, each behind a switch; those of Python are put into a copy of the package. Status 1: a test
fails without a mutant, or less than 98 % of the mutants that are not equivalent were killed.

    python tests/mutants/run.py                  all of them
    python tests/mutants/run.py roi_pool/bins    those in files whose paths have this in them
    python tests/mutants/run.py --again          those that the last run did not kill
    python tests/mutants/run.py --equivalent     those said to be equivalent, which should survive
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.mutants import (
    build,
    py_analysis,
    py_convert,
    py_layers,
    py_models,
    py_operators,
)
from tests.mutants.mutant import File, Mutant, mutated
from tests.mutants.suites import OPERATORS, PACKAGE

Chosen = tuple[int, File, Mutant]  # the number of its switch, 0 in Python

ENOUGH = 0.98
RESULTS = build.TREE / "results.json"

PY_FILES = (
    *py_operators.FILES,
    *py_layers.FILES,
    *py_models.FILES,
    *py_convert.FILES,
    *py_analysis.FILES,
)

_LEAST_SECONDS = 40.0  # a mutant has this, or many times what its tests take without it
_TIMES = 10


class Worker:
    """A process of worker.py."""

    def __init__(self, files: Iterable[str]) -> None:
        (read_tasks, tasks), (answers, write_answers) = os.pipe(), os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": str(build.TREE),
            "TF_DEFORMABLE_BACKEND": "native",
            "CXX": f"g++ {build.switch_flags()} {build.TREE}/cc/kernels/base/switch.cc",
        }
        script = pathlib.Path(__file__).with_name("worker.py")
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(read_tasks), str(write_answers), *files],
            cwd=build.TREE,
            env=environment,
            pass_fds=(read_tasks, write_answers),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        os.close(read_tasks)
        os.close(write_answers)
        self._tasks, self._answers = os.fdopen(tasks, "w"), os.fdopen(answers)

    def answer(self) -> Any:
        """Returns what the process says next."""
        if line := self._answers.readline():
            return json.loads(line)
        self._log.seek(0)
        raise RuntimeError(f"the worker ended:\n{self._log.read()[-4000:]}")

    def run(self, **task: Any) -> Any:
        """Returns the result of a task."""
        try:
            self._tasks.write(json.dumps(task) + "\n")
            self._tasks.flush()
        except BrokenPipeError:
            pass  # its log says why
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._tasks.close()
        self._process.wait()


class Runner:
    """Runs mutants, and the tests without one first."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.seconds: dict[str, float] = {}  # that suites take without a mutant
        self.results: dict[str, str] = {}
        self.lock = threading.Lock()  # of the results, here and in their file

    def check(self, workers: Sequence[Worker], chosen: Sequence[Chosen]) -> None:
        """Runs the suites of mutants without one.

        Raises:
            RuntimeError: a test fails.
        """
        queue = list(dict.fromkeys(name for _, file, _ in chosen for name in file.tests))

        def work(worker: Worker) -> None:
            while queue:
                name = queue.pop(0)
                result = worker.run(id=name, seconds=900, **self.task([name], 0, build.TREE))
                if result["found"]:
                    raise RuntimeError(f"{name} fails without a mutant: {result['found']}")
                self.seconds[name] = result["seconds"]
                print(f"{name}: {result['seconds']:.1f} s", flush=True)

        _each(workers, work)

    def task(self, names: Iterable[str], number: int, package: pathlib.Path) -> dict[str, Any]:
        """What a worker is told of the suites."""
        raise NotImplementedError

    def limit(self, names: Iterable[str]) -> float:
        """The seconds that a mutant has."""
        return max(_LEAST_SECONDS, _TIMES * sum(self.seconds[name] for name in names))


class OperatorRunner(Runner):
    """Of C++: pytest has collected the tests of all suites."""

    def files(self, chosen: Iterable[File]) -> list[str]:
        names = {name for file in chosen for name in file.tests}
        return sorted({file for name in names for file in OPERATORS[name].files})

    def start(self, files: list[str]) -> Worker:
        worker = Worker(files)
        self._tests = worker.answer()
        return worker

    def task(self, names: Iterable[str], number: int, package: pathlib.Path) -> dict[str, Any]:
        steps: list[dict[str, list[str]]] = []
        environment, done = {build.SWITCH: str(number)}, set()
        for suite in map(OPERATORS.__getitem__, names):
            environment.update(suite.environment)
            if suite.program:
                program = build.build_programs() / suite.program[0]
                steps.append({"program": [str(program), *suite.program[1:]]})
            tests = [test for test in self._tests if suite.takes(test) and test not in done]
            done.update(tests)
            if tests:
                steps.append({"tests": tests})
        return {"steps": steps, "environment": environment}


class PackageRunner(Runner):
    """Of Python: a copy of the package for each mutant."""

    def task(self, names: Iterable[str], number: int, package: pathlib.Path) -> dict[str, Any]:
        suites = [PACKAGE[name] for name in names]
        path = f"{package}{os.pathsep}{build.TREE}"
        return {
            "steps": [{"tests": list(dict.fromkeys(f for suite in suites for f in suite.files))}],
            "suites": [dataclasses.asdict(suite) for suite in suites],
            "environment": dict(pair for suite in suites for pair in suite.environment)
            | {"PYTHONPATH": path},
            "package": str(package),
        }


def _each(workers: Sequence[Worker], work: Callable[[Worker], None]) -> None:
    with futures.ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))


def key(file: File, mutant: Mutant) -> str:
    """What a mutant goes by in the file of results."""
    return f"{file.path}: {mutant.context} -> {mutant.mutated}"


def describe(file: File, mutant: Mutant) -> str:
    """A mutant in a line: the place, the original, the mutant."""
    source = (build.ROOT / file.path).read_text()
    line = source.count("\n", 0, mutant.span(source)[0]) + 1
    original, new = (" ".join(text.split()) for text in (mutant.original, mutant.mutated))
    return f"{file.path}:{line}: {original}  ->  {new or 'nothing'}"


def run_operators(chosen: Sequence[Chosen], runner: OperatorRunner) -> None:
    """Runs mutants of C++."""
    files = runner.files(file for _, file, _ in chosen)
    queue = list(chosen)

    def work(worker: Worker) -> None:
        while queue:
            number, file, mutant = queue.pop(0)
            task = runner.task(file.tests, number, build.TREE)
            result = worker.run(id=number, seconds=runner.limit(file.tests), **task)
            finish(runner, file, mutant, result)

    workers = [runner.start(files) for _ in range(runner.jobs)]
    runner.check(workers, chosen)
    _each(workers, work)
    for worker in workers:
        worker.close()


def run_package(chosen: Sequence[Chosen], runner: PackageRunner) -> None:
    """Runs mutants of Python."""
    queue = list(chosen)

    def work(worker: Worker) -> None:
        with tempfile.TemporaryDirectory() as folder:
            package = pathlib.Path(folder) / "tf_deformable"
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(build.ROOT / "tf_deformable", package, ignore=ignored)
            while queue:
                _, file, mutant = queue.pop(0)
                source, copy = build.ROOT / file.path, pathlib.Path(folder) / file.path
                copy.write_text(mutated(source.read_text(), mutant))
                task = runner.task(file.tests, 0, pathlib.Path(folder))
                result = worker.run(id=0, seconds=runner.limit(file.tests), **task)
                copy.write_text(source.read_text())
                finish(runner, file, mutant, result)

    workers = [Worker([]) for _ in range(runner.jobs)]
    runner.check(workers, chosen)
    _each(workers, work)
    for worker in workers:
        worker.close()


def finish(runner: Runner, file: File, mutant: Mutant, result: dict[str, Any]) -> None:
    """Keeps and prints a result."""
    state = f"killed by {result['found']}" if result["found"] else "SURVIVED"
    print(f"{describe(file, mutant)}\n    {state} ({result['seconds']:.1f} s)", flush=True)
    with runner.lock:
        runner.results[key(file, mutant)] = result["found"]
        old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**old, **runner.results}, indent=1))


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", help="parts of paths of files whose mutants are run")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    parser.add_argument("--again", action="store_true", help="only what the last run did not kill")
    parser.add_argument("--equivalent", action="store_true", help="run those said to be equivalent")
    parser.add_argument("--no-build", action="store_true", help="take the libraries that are there")
    options = parser.parse_args()

    everything = [(number, *both) for number, both in build.CC_MUTANTS.items()]
    everything += [(0, file, mutant) for file in PY_FILES for mutant in file.mutants]
    last = json.loads(RESULTS.read_text()) if options.again and RESULTS.exists() else {}
    chosen = [
        (number, file, mutant)
        for number, file, mutant in everything
        if not options.paths or any(part in file.path for part in options.paths)
        if not last.get(key(file, mutant))
    ]
    to_run = [c for c in chosen if bool(c[2].equivalent) == options.equivalent]
    if options.list:
        for _, file, mutant in chosen:
            print(
                describe(file, mutant), *[f"  (equivalent: {r})" for r in [mutant.equivalent] if r]
            )
        return 0
    start = time.monotonic()
    if not options.no_build:
        build.build()
    of_operators = [c for c in to_run if c[0]]
    of_package = [c for c in to_run if not c[0]]
    results = {}
    for part, runner, run in (
        (of_operators, OperatorRunner(options.jobs), run_operators),
        (of_package, PackageRunner(options.jobs), run_package),
    ):
        if part:
            run(part, runner)
            results.update(runner.results)

    print("\n--- Summary")
    for _, file, mutant in chosen:
        if mutant.equivalent:
            state = results.get(key(file, mutant), "")
            wrong = f"; but it was killed by {state}" if state else ""
            print(f"equivalent: {describe(file, mutant)}\n    {mutant.equivalent}{wrong}")
    for _, file, mutant in to_run:
        if not results[key(file, mutant)] and not mutant.equivalent:
            print(f"survived: {describe(file, mutant)}")
    killed = sum(bool(found) for found in results.values())
    minutes = (time.monotonic() - start) / 60
    print(f"{killed} of {len(to_run)} killed, {minutes:.0f} minutes")
    if options.equivalent:
        return int(killed > 0)
    return int(killed < ENOUGH * len(to_run))


if __name__ == "__main__":
    sys.exit(main())
