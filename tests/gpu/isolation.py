"""Runs checks in processes of their own, so that what one does to the device hurts no other.

A worker is a process that goes through a list of items, each with a title. Its events are appended
to a file, a line of JSON each: that it starts an item, and how that ended. The supervisor watches
them. If the worker dies or hangs, the item that it was at has failed, and another process goes on
behind it. Nothing is kept in memory that a dead process could lose.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Ends a worker whose device may be of no more use to its process; the item's failure is recorded.
NEEDS_FRESH_PROCESS = 3


class Skipped(Exception):
    """Raised by an item that this machine cannot run; says why."""


@dataclasses.dataclass(frozen=True)
class Item:
    """What a worker runs. It may return a result for the events' file, or raise."""

    title: str
    run: Callable[[], Any]


class Events:
    """A file of JSON, a line to an event, which many processes append to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def append(self, **event: Any) -> None:
        """Writes one line by one system call: lines of several processes do not mix."""
        line = json.dumps({**event, "time": round(time.time(), 3)}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def read(self, worker: str | None = None) -> list[dict[str, Any]]:
        """All events, or those of one worker, in their order."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:  # a piece, of a process that was ended while it wrote
                continue
        return [e for e in events if worker is None or e["worker"] == worker]


def _plant(planted: str | None, title: str) -> None:
    """Crashes or hangs where the tests of this module ask for it: "crash:..." or "hang:..."."""
    kind, _, where = (planted or "").partition(":")
    if not where or where not in title:
        return
    if kind == "crash":
        os.abort()
    while kind == "hang":
        time.sleep(1)


def work(
    worker: str, items: Iterable[Item], events: Events, first: int = 0, planted: str | None = None
) -> int:
    """Runs the items from the number `first` on; returns the status to exit with."""
    faulthandler.enable()
    for number, item in enumerate(items):
        if number < first:
            continue
        event = {"worker": worker, "item": number, "title": item.title}
        print(f"[{worker}] {item.title}", flush=True)
        events.append(event="start", **event)
        start = time.monotonic()
        error = skipped = result = None
        fresh = False
        try:
            _plant(planted, item.title)
            result = item.run()
        except Skipped as reason:
            skipped = str(reason)
        except Exception as raised:  # whatever it is, the others are worth running
            error = f"{type(raised).__name__}: {str(raised).strip() or repr(raised)}"[:2000]
            print(f"[{worker}] FAILED {item.title}: {error}", flush=True)
            # Wrong numbers and a lack of memory leave the device as it was; others may not.
            fresh = not isinstance(raised, AssertionError) and "OutOfMemory" not in error
            if fresh:
                traceback.print_exc()
        event |= {"seconds": round(time.monotonic() - start, 3), "result": result}
        event |= {"error": error, "skipped": skipped}
        events.append(event="end", **event)
        if fresh:
            return NEEDS_FRESH_PROCESS
    events.append(event="finished", worker=worker)
    return 0


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process to be supervised: its command gets `--first NUMBER` at its end."""

    name: str
    command: Sequence[str]
    seconds: float  # for all of its items, in all of its processes
    seconds_per_item: float  # also until the first item starts
    most_restarts: int


class _Process:
    def __init__(self, worker: Worker, events: Events, log: pathlib.Path) -> None:
        self.worker, self.events, self.log = worker, events, log
        self.first, self.restarts = 0, 0
        self.deadline = time.monotonic() + worker.seconds
        self.over = False
        self._start()

    def _start(self) -> None:
        command = [*self.worker.command, "--first", str(self.first)]
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self.seen, self.changed = -1, time.monotonic()

    def kill(self) -> None:
        # The group's leader is ours and has not been waited for, so the number is still its own.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def poll(self) -> None:
        """Looks after the process: ends it if it hangs, starts the next one if it has died."""
        now = time.monotonic()
        events = self.events.read(self.worker.name)
        if len(events) != self.seen:
            self.seen, self.changed = len(events), now
        status = self.process.poll()
        if status is not None:
            events = self.events.read(self.worker.name)  # what it wrote at last
            finished = any(e["event"] == "finished" for e in events)
            if not finished:
                self._died(events, f"the process ended with status {status}")
                return
            if status != 0:  # compute-sanitizer's, if it has found something
                self._fail(f"the process ended with status {status}", title="see the log")
            self.over = True
        elif now > self.deadline:
            self.kill()
            self._died(events, f"all of it took more than {self.worker.seconds:.0f} s")
            self.over = True
        elif now - self.changed > self.worker.seconds_per_item:
            self.kill()
            self._died(events, f"it took more than {self.worker.seconds_per_item:.0f} s")

    def _died(self, events: list[dict[str, Any]], how: str) -> None:
        ended = {e["item"] for e in events if e["event"] == "end"}
        started = {e["item"]: e["title"] for e in events if e["event"] == "start"}
        unfinished = sorted(started.keys() - ended)
        if unfinished:
            number, title = unfinished[-1], started[unfinished[-1]]
            self._fail(how, item=number, title=title)
        elif not started or max(started) < self.first:
            # The process of no item can be started: another one would not get further.
            self._fail(how, title="before the first item")
            self.over = True
            return
        self.first = max(started) + 1
        if self.over or time.monotonic() > self.deadline:
            self.over = True
        elif self.restarts == self.worker.most_restarts:
            self._fail("too many restarts", title="what comes after it")
            self.over = True
        else:
            self.restarts += 1
            self._start()

    def _fail(self, error: str, **event: Any) -> None:
        print(f"[{self.worker.name}] FAILED {event['title']}: {error}", flush=True)
        common = {"worker": self.worker.name, "result": None, "skipped": None}
        self.events.append(event="end", **common, **event, error=error)


def supervise(workers: Sequence[Worker], events: Events, log: pathlib.Path) -> None:
    """Runs the workers side by side to their end; their output is appended to `log`."""
    processes: list[_Process] = []
    try:
        processes += [_Process(worker, events, log) for worker in workers]
        while not all(process.over for process in processes):
            time.sleep(0.2)
            for process in processes:
                if not process.over:
                    process.poll()
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.kill()


def ends(events: Events) -> list[dict[str, Any]]:
    """How the items that are in the file ended."""
    return [event for event in events.read() if event["event"] == "end"]


def python(script: pathlib.Path, *arguments: str) -> list[str]:
    """The command that runs a script with this interpreter."""
    return [sys.executable, str(script), *arguments]
