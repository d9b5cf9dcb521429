"""Measures the latency of a served ResNet50, as it is and with deformable layers.

    python benchmarks/serving.py [--rounds 20] [--calls 10]

Both are exported as SavedModels, and loaded and called by one process that builds no model, as a
server does. Some threads call at once, each again as soon as it has an answer; TensorFlow has its
threads for all processors. In each round both networks are called, one after the other.
docs/benchmarks.md says what else there is to know; report.py puts the results there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import harness
import machine
import numpy as np

CALLERS = (1, 4)
CASE = "ResNet50"
PLAIN = "plain"
NETWORKS = (PLAIN, harness.OURS)


def export(folder: Path, size: int) -> None:
    """Writes both networks; their weights, and so their answers, are the same."""
    import tensorflow as tf

    import tf_deformable

    tf_deformable.config.set_backend("native")
    for name in NETWORKS:
        tf.keras.utils.set_random_seed(0)
        network = tf.keras.applications.ResNet50(
            weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
        )
        if name == harness.OURS:
            network = tf_deformable.models.deformify(network)
        tf_deformable.export.saved_model(network, folder / name, portable=False, measure=False)


class Server:
    """The loaded networks."""

    def __init__(self, folder: Path, size: int) -> None:
        import tensorflow as tf

        import tf_deformable

        tf.load_op_library(tf_deformable.get_library_path())
        self._models = {name: tf.saved_model.load(str(folder / name)) for name in NETWORKS}
        random = np.random.default_rng(0)
        self._images = tf.constant(random.normal(size=(1, size, size, 3)).astype(np.float32))
        self.versions = {
            "tf_deformable": tf_deformable.__version__,
            "TensorFlow": tf.version.VERSION,
        }

    def answer(self, network: str) -> np.ndarray:
        """Returns what a network makes of the image."""
        return self._models[network].serve(self._images).numpy()

    def latencies(self, network: str, callers: int, calls: int) -> list[float]:
        """Returns the seconds of each call, `calls` by each of some threads at once."""
        seconds: list[float] = []
        barrier = threading.Barrier(callers)

        def call() -> None:
            barrier.wait()
            for _ in range(calls):
                begin = time.perf_counter()
                self.answer(network)
                seconds.append(time.perf_counter() - begin)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seconds


def measure(arguments: argparse.Namespace) -> None:
    """Measures what has been exported, and writes the results."""
    start, load = time.monotonic(), machine.load()
    server = Server(arguments.exported, arguments.size)
    answers = [server.answer(name) for name in NETWORKS]
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=1e-4 * np.abs(answers[0]).max())
    seconds: dict[tuple[str, int], list[float]] = {}
    for name in NETWORKS:
        for callers in CALLERS:
            seconds[name, callers] = []
            server.latencies(name, callers, 2)  # warms up
    for turn in range(arguments.rounds):
        for callers in CALLERS:
            for name in NETWORKS[:: 1 if turn % 2 else -1]:
                seconds[name, callers] += server.latencies(name, callers, arguments.calls)
    records = [
        {
            "section": "latencies",
            "case": CASE,
            "framework": name,
            "mode": "forward",
            "threads": callers,
            "seconds": values,
        }
        for (name, callers), values in seconds.items()
    ]
    harness.write_results(
        arguments.output,
        start,
        load,
        server.versions,
        benchmark="serving",
        missing={},
        rounds=arguments.rounds,
        calls=arguments.calls,
        size=arguments.size,
        records=records,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10, help="of each thread in a round")
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "serving.json")
    parser.add_argument("--exported", type=Path, help="where the networks are; default: made")
    arguments = parser.parse_args()
    if arguments.exported is not None:
        measure(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), arguments.size)
        subprocess.run([sys.executable, *sys.argv, "--exported", folder], check=True)


if __name__ == "__main__":
    main()
