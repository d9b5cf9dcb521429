"""Clusters of processes on the loopback device, as TensorFlow's TF_CONFIG describes them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Below what Linux gives to outgoing connections, which could take a port before its server does.
_PORTS = range(20000, 32000)


def free_addresses(count: int) -> list[str]:
    """Returns addresses with different ports that nobody listens to."""
    with contextlib.ExitStack() as stack:
        addresses: list[str] = []
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(addresses) == count:
                return addresses
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                addresses.append(f"127.0.0.1:{port}")
    raise RuntimeError(f"there are no {count} free ports")


class Cluster:
    """Processes that run one command, each with its task's TF_CONFIG.

    Args:
        jobs: number of tasks by job, as `{"chief": 1, "worker": 2, "ps": 1}`.
        command: arguments of Python.
        logs: folder for what the tasks print.
    """

    def __init__(self, jobs: dict[str, int], command: Sequence[str | Path], logs: Path) -> None:
        addresses = iter(free_addresses(sum(jobs.values())))
        self.addresses = {
            job: [next(addresses) for _ in range(tasks)] for job, tasks in jobs.items()
        }
        self.command = [sys.executable, *map(str, command)]
        self.logs = logs
        self.processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}

    def start(self, job: str, index: int) -> None:
        """Starts a task, or starts it again."""
        task = {"type": job, "index": index}
        config = json.dumps({"cluster": self.addresses, "task": task})
        with self.log_of(job, index).open("ab") as log:
            self.processes[job, index] = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment(TF_CONFIG=config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, job: str, index: int) -> None:
        """Ends a task as `kill -9` does."""
        self.processes[job, index].kill()
        self.processes[job, index].wait()

    def log_of(self, job: str, index: int) -> Path:
        """Returns the file that a task prints to."""
        return self.logs / f"{job}{index}.log"

    def wait(self, *jobs: str, timeout: float) -> None:
        """Waits until all tasks of some jobs have ended well; fails as soon as one has not."""
        waiting = {task for task in self.processes if task[0] in jobs}
        deadline = time.monotonic() + timeout
        while waiting:
            for task in sorted(waiting):
                status = self.processes[task].poll()
                assert not status, self._story(f"{task} ended with status {status}")
                if status == 0:
                    waiting.remove(task)
            assert time.monotonic() < deadline, self._story(f"{waiting} ran for {timeout} s")
            time.sleep(0.05)

    def wait_for(self, text: str, job: str, index: int, timeout: float) -> None:
        """Waits until a task has printed something."""
        deadline = time.monotonic() + timeout
        while text not in self.log_of(job, index).read_text(errors="replace"):
            status = self.processes[job, index].poll()
            assert status is None, self._story(f"{job}{index} ended without {text!r}")
            assert time.monotonic() < deadline, self._story(f"no {text!r} after {timeout} s")
            time.sleep(0.02)

    def _story(self, problem: str) -> str:
        ends = (
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.logs.glob("*.log"))
        )
        return "\n".join([problem, *ends])


@contextlib.contextmanager
def running(jobs: dict[str, int], command: Sequence[str | Path], logs: Path) -> Iterator[Cluster]:
    """Starts a cluster; none of its processes outlives the block."""
    logs.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(jobs, command, logs)
    try:
        for job, tasks in jobs.items():
            for index in range(tasks):
                cluster.start(job, index)
        yield cluster
    finally:
        for process in cluster.processes.values():
            process.kill()
            process.wait()


def environment(**variables: str) -> dict[str, str]:
    """Returns this process' environment for processes that import the package from here."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "-1",  # a cluster on one machine would fight for its GPU
        **variables,
    }
