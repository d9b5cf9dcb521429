"""Runs frameworks against each other, each in its own process, and writes what was measured.

A benchmark is a module with `Case`, `make_data`, `FRAMEWORKS`, `SECTIONS` and `BOUNDS`. For every
case, mode and number of threads, all frameworks get ready, their results are compared, and then
they take turns: a pass times each of them once, so that whatever slows the machine down for a while
slows down all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import instructions
import machine
import numpy as np

OURS = "tf_deformable"

RESULTS = machine.ROOT / "build" / "benchmarks"

# Differences to ours, relative to the largest number of a tensor, that rounding may leave. A few
# numbers may differ by more: a derivative jumps where a sample crosses a pixel, and whether it has
# is a matter of rounding too. A framework with more of them computes something else: no timing.
TOLERANCES = {"float32": 1e-4, "float64": 1e-9, "float16": 1e-2, "bfloat16": 1e-1}
MOST_OUTLIERS = 1e-3

Record = dict[str, Any]  # one line of results, see _Run


@dataclasses.dataclass(frozen=True)
class Section:
    """Cases that are measured and reported together."""

    name: str
    cases: Sequence[Any]
    frameworks: tuple[str, ...]
    modes: tuple[str, ...] = ("forward", "step")
    one_thread: bool = False  # not with more
    seconds: float = 1  # of a pass, times what --seconds says
    memory: bool = False  # too, of the last mode that a framework has


@dataclasses.dataclass(frozen=True)
class Bound:
    """What the quick mode holds: the time of ours is at most `most` times that of `framework`."""

    case: Any
    mode: str
    framework: str
    most: float


class WorkerError(Exception):
    """A worker cannot do what it was asked; it says why."""


class Worker:
    """A process that has one framework loaded."""

    def __init__(self, benchmark: ModuleType, framework: str, threads: int, python: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(machine.ROOT),
            "PYTHONWARNINGS": "ignore",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_ENABLE_ONEDNN_OPTS": "1",  # the default on Intel's processors, not on AMD's
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            **benchmark.FRAMEWORKS[framework].environment,
        }
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                python,
                str(machine.ROOT / "benchmarks" / "worker.py"),
                Path(benchmark.__file__).stem,
                framework,
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def wait_for_start(self) -> None:
        """Returns when the framework is loaded; raises WorkerError if it cannot be."""
        self._answer()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Has the worker call a method of worker.Session."""
        with suppress(BrokenPipeError):  # the answer says that it ended
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """Ends the process."""
        with suppress(BrokenPipeError):  # it ended by itself
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last_words = self._log.read().strip().rpartition("\n")[2]
            raise WorkerError(f"the process ended, status {self._process.wait()}: {last_words}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]


class Pool:
    """Workers of one benchmark, each started when it is first needed."""

    def __init__(self, benchmark: ModuleType, pythons: Sequence[str]) -> None:
        self._benchmark = benchmark
        self._pythons = pythons
        self._workers: dict[tuple[str, int], Worker] = {}
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}  # why a framework is left out

    def get(self, framework: str, threads: int) -> Worker:
        """Returns the worker; raises WorkerError where there cannot be one.

        Those with another number of threads end: they hold memory.
        """
        if any(other != threads for _, other in self._workers):
            self.stop()
        key = framework, threads
        if key not in self._workers:
            self._workers[key] = self.start(framework, threads)
        return self._workers[key]

    def start(self, framework: str, threads: int) -> Worker:
        """Starts a worker with the first interpreter that has the framework."""
        if framework in self.missing:
            raise WorkerError(self.missing[framework])
        is_tensorflow = self._benchmark.FRAMEWORKS[framework].is_tensorflow
        errors = []
        for python in [sys.executable] if is_tensorflow else self._pythons:
            worker = Worker(self._benchmark, framework, threads, python)
            try:
                worker.wait_for_start()
                self.versions |= worker.ask("versions")
                return worker
            except WorkerError as error:
                errors.append(str(error))
                worker.stop()
        self.missing[framework] = errors[-1]
        raise WorkerError(errors[-1])

    def drop(self, framework: str, threads: int) -> None:
        """Ends a worker, to start with a new one."""
        worker = self._workers.pop((framework, threads), None)
        if worker is not None:
            worker.stop()

    def stop(self) -> None:
        """Ends all workers."""
        while self._workers:
            self.drop(*next(iter(self._workers)))


@contextmanager
def pool_of(benchmark: ModuleType, pythons: Sequence[str]) -> Iterator[Pool]:
    """A pool whose workers end with the block."""
    pool = Pool(benchmark, pythons)
    try:
        yield pool
    finally:
        pool.stop()


class _Run:
    """A run of a benchmark.

    A record of `records` has the keys section, case, description, operations, dtype, framework,
    mode, threads, and
    - seconds: the time of a call in each pass; difference: to ours, the largest, relative to the
      largest number of a tensor; outliers: the share of numbers that differ by more than rounding
      explains; or
    - bytes: the peak of the resident memory; or
    - error: why there is neither.
    """

    def __init__(self, benchmark: ModuleType, pool: Pool, arguments: argparse.Namespace) -> None:
        self._benchmark = benchmark
        self._pool = pool
        self._arguments = arguments
        self.records: list[Record] = []

    def section(self, section: Section) -> None:
        """Measures a section."""
        chosen = self._arguments.frameworks
        names = [name for name in section.frameworks if not chosen or name in chosen]
        pattern = re.compile(self._arguments.cases)
        cases = [case for case in section.cases if pattern.search(case.name)]
        frameworks = self._benchmark.FRAMEWORKS

        def able(case: Any, mode: str) -> list[str]:
            return [
                n for n in names if frameworks[n].supports(case) and mode in frameworks[n].modes
            ]

        if "time" in self._arguments.measure:
            for threads in self._arguments.threads[: 1 if section.one_thread else None]:
                for case in cases:
                    for mode in section.modes:
                        records = self.times(section, able(case, mode), case, mode, threads)
                        self.records += records
                        _print_times(records)
        if "memory" in self._arguments.measure and section.memory:
            self._pool.stop()
            tasks = [
                (section, name, case, [mode for mode in section.modes if name in able(case, mode)])
                for case in cases
                for name in names
                if frameworks[name].supports(case)
            ]
            with ThreadPoolExecutor(2) as executor:  # memory does not depend on load
                for record in executor.map(lambda task: self.memory(*task), tasks):
                    self.records.append(record)
                    _print_memory(record)

    def times(
        self, section: Section, names: list[str], case: Any, mode: str, threads: int
    ) -> list[Record]:
        """Times one case in all frameworks."""
        frameworks = self._benchmark.FRAMEWORKS
        budget = section.seconds * self._arguments.seconds
        records = {name: _record(section, case, name, mode, threads) for name in names}
        ready: dict[str, Worker] = {}

        def attempt(name: str, work: Callable[[Worker], None]) -> None:
            try:
                work(self._pool.get(name, threads))
            except WorkerError as error:
                records[name]["error"] = str(error)
                ready.pop(name, None)
                self._pool.drop(name, threads)  # whatever state it is in

        def get_ready(name: str, worker: Worker) -> None:
            variant = frameworks[name].agrees_on
            results = _results(worker, case, mode, variant)
            agreement = _compare(results, expected[variant], TOLERANCES[case.dtype])
            records[name] |= agreement
            if agreement["outliers"] > MOST_OUTLIERS:
                raise WorkerError("computes something else: {outliers:.1%}".format(**agreement))
            if variant != "deformed":
                _load(worker, case, mode, "deformed")
            ready[name] = worker
            records[name]["seconds"] = []

        def take_turn(name: str, worker: Worker) -> None:
            seconds = worker.ask("time", seconds=budget, calls=2)
            records[name]["seconds"].append(seconds)

        ours = self._pool.get(OURS, threads)
        expected = {
            variant: _results(ours, case, mode, variant)
            for variant in {frameworks[name].agrees_on for name in names}
        }
        for name in names:
            attempt(name, lambda worker, name=name: get_ready(name, worker))
        for turn in range(self._arguments.passes):
            order = list(ready)
            first = turn % max(len(order), 1)
            for name in order[first:] + order[:first]:  # nobody always runs after the same one
                attempt(name, lambda worker, name=name: take_turn(name, worker))
        for name in list(ready):
            attempt(name, lambda worker: worker.ask("unload"))
        return list(records.values())

    def memory(self, section: Section, name: str, case: Any, modes: list[str]) -> Record:
        """Measures the memory of one case, in a new process."""
        threads = max(self._arguments.threads)
        record = _record(section, case, name, modes[-1], threads)
        try:
            worker = self._pool.start(name, threads)
        except WorkerError as error:
            return record | {"error": str(error)}
        try:
            record["bytes"] = worker.ask(
                "memory",
                case=dataclasses.asdict(case),
                mode=modes[-1],
                like=dataclasses.asdict(case.warm_up),
            )
        except WorkerError as error:
            record["error"] = str(error)
        finally:
            worker.stop()
        return record


def _load(worker: Worker, case: Any, mode: str, variant: str) -> None:
    worker.ask("load", case=dataclasses.asdict(case), mode=mode, variant=variant)


def _results(worker: Worker, case: Any, mode: str, variant: str) -> dict[str, np.ndarray]:
    """Returns what a worker computes."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "results.npz"))
        _load(worker, case, mode, variant)
        worker.ask("save", path=path)
        return dict(np.load(path))


def _compare(
    results: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float
) -> Record:
    """Returns the largest difference, relative, and the share of differences above `tolerance`."""
    worst, outliers = 0.0, 0.0
    for name, result in results.items():
        differences = np.abs(result - expected[name]) / max(np.abs(expected[name]).max(), 1e-30)
        worst = max(worst, float(differences.max()))
        outliers = max(outliers, float(np.mean(~(differences <= tolerance))))
    return {"difference": worst, "outliers": outliers}


def _record(section: Section, case: Any, framework: str, mode: str, threads: int) -> Record:
    return {
        "section": section.name,
        "case": case.name,
        "description": case.description,
        "operations": case.operations,
        "dtype": case.dtype,
        "framework": framework,
        "mode": mode,
        "threads": threads,
    }


def _print_times(records: list[Record]) -> None:
    for r in records:
        if "error" not in r:
            low, middle, high = (1e3 * f(r["seconds"]) for f in (min, statistics.median, max))
            figure = f"{middle:10.3f} ms ({low:.3f} to {high:.3f}), differs {r['difference']:.1e}"
            if r["outliers"]:
                figure += f" ({r['outliers']:.1e} by more than rounding)"
        else:
            figure = f"{'-':>10}    {r['error']}"
        where = f"{r['case']}, {r['mode']}, {r['threads']} thread{'s' * (r['threads'] > 1)}"
        _say(f"{where:36} {r['framework']:24} {figure}")


def _print_memory(record: Record) -> None:
    figure = f"{record['bytes'] / 1e6:10.1f} MB" if "bytes" in record else record["error"]
    _say(f"{record['case'] + ', memory, ' + record['mode']:36} {record['framework']:24} {figure}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(benchmark: ModuleType) -> None:
    """The command line of a benchmark."""
    try:
        _main(benchmark)
    except WorkerError as error:  # of ours; others are left out
        sys.exit(f"{OURS}: {error}")


def _main(benchmark: ModuleType) -> None:
    name = Path(benchmark.__file__).stem
    parser = argparse.ArgumentParser(description=benchmark.__doc__.partition("\n")[0])
    parser.add_argument(
        "--peers-python",
        action="append",
        default=[],
        metavar="PYTHON",
        help="an interpreter that has packages to compare with; more than once for several; "
        "this interpreter is tried first",
    )
    parser.add_argument("--quick", action="store_true", help="check bounds only; half a minute")
    parser.add_argument("--sections", nargs="*", default=[s.name for s in benchmark.SECTIONS])
    parser.add_argument("--cases", default="", metavar="REGEX", help="only these")
    parser.add_argument("--frameworks", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--measure", nargs="*", default=["time", "memory"])
    parser.add_argument("--threads", type=int, nargs="*", help="default: 1 and 2, if there are 2")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a pass, at least")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or [1, 2][: os.cpu_count()]
    pythons = [sys.executable, *arguments.peers_python]

    others = machine.load()
    if others > 0.5:
        _say(f"Others use this machine (load {others:.1f}): expect the figures to be off.")
    with pool_of(benchmark, pythons) as pool:
        if arguments.quick:
            sys.exit(not _within_bounds(benchmark, name, pool, arguments))
        run = _Run(benchmark, pool, arguments)
        start = time.monotonic()
        for section in benchmark.SECTIONS:
            if section.name in arguments.sections:
                run.section(section)
        write_results(
            arguments.output,
            start,
            others,
            pool.versions,
            benchmark=name,
            missing=pool.missing,
            passes=arguments.passes,
            seconds=arguments.seconds,
            records=run.records,
        )
    for framework, reason in pool.missing.items():
        _say(f"Left out: {framework}: {reason}")
    if any("something else" in record.get("error", "") for record in run.records):
        sys.exit("A framework computes something else than tf_deformable; see above.")


def write_results(
    path: Path, start: float, load: float, versions: dict[str, str], **results: Any
) -> None:
    """Writes results, and on which machine and when they were measured.

    Args:
        path: the file.
        start: `time.monotonic()` when the run began.
        load: of others, when it began.
        versions: names and versions of what was measured.
        **results: what the benchmark itself has to say.
    """
    about = {
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "load": max(load, machine.load()),  # of others: the run is over
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": {
            **versions,
            "Python": platform.python_version(),
            "NumPy": metadata.version("numpy"),
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | results, indent=1, ensure_ascii=False) + "\n")
    _say(f"{about['minutes']} minutes; written to {path}")


def _within_bounds(
    benchmark: ModuleType, name: str, pool: Pool, arguments: argparse.Namespace
) -> bool:
    """Checks the ratios of BOUNDS and the instruction counts, and prints them."""
    arguments.passes, arguments.seconds = 3, 0.1
    bounds: Sequence[Bound] = benchmark.BOUNDS
    needed = [OURS, *{bound.framework for bound in bounds}]
    with ThreadPoolExecutor(len(needed)) as executor:  # they take seconds to start
        list(executor.map(lambda framework: pool.get(framework, 1), needed))
    held = True
    run = _Run(benchmark, pool, arguments)
    for case, mode in dict.fromkeys((bound.case, bound.mode) for bound in bounds):
        here = [b for b in bounds if (b.case, b.mode) == (case, mode)]
        names = [OURS, *(bound.framework for bound in here)]
        records = run.times(Section("quick", [], ()), names, case, mode, 1)
        best = {r["framework"]: min(r.get("seconds") or [math.nan]) for r in records}
        for bound in here:
            ratio = best[OURS] / best[bound.framework]
            held &= ratio <= bound.most
            print(
                f"{name} {case.name} {mode}: {ratio:.2f} times {bound.framework}, "
                f"at most {bound.most:.2f}: {'held' if ratio <= bound.most else 'NOT HELD'}"
            )
    return instructions.within_bounds(name) and held
