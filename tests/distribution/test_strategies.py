"""Training under the strategies of tf.distribute gives the weights that one device gives.

Everything is float64, so that what differs is a mistake and not the order of a sum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import clusters

TIMEOUT = 300  # seconds, for a loaded machine; a cluster takes some 10 to 20

Results = dict[str, np.ndarray]


def results_of(strategy: str, folder: Path, jobs: dict[str, int], job: str) -> list[Results]:
    """Trains under a strategy, and returns what each task of a job has written."""
    command = ["-m", "tests.distribution.train", strategy, folder]
    with clusters.running(jobs, command, folder) as cluster:
        cluster.wait(job, timeout=TIMEOUT)
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def way(results: Results, name: str) -> list[np.ndarray]:
    return [results[key] for key in sorted(results) if key.startswith(f"{name}/")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device gives."""
    folder = tmp_path_factory.mktemp("alone")
    (results,) = results_of("alone", folder, {"worker": 1}, "worker")
    return results


def assert_same_weights(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected) == 26
    for weight, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-8, atol=1e-10)


def assert_refused(results: Results, way_of_training: str, message: str) -> None:
    """Keras itself says so, of a network that has no layer of this package."""
    assert message in str(results[f"refused/{way_of_training}"])
    assert not way(results, way_of_training)


def test_training_moves_every_weight(alone):
    for name in ("loop", "fit"):
        moved = zip(way(alone, name), way(alone, "start"), strict=True)
        assert all(np.any(np.abs(weight - before) > 1e-3) for weight, before in moved)
    assert_same_weights(way(alone, "fit"), way(alone, "loop"))


def test_mirrored_strategy(alone, tmp_path):
    (results,) = results_of("mirrored", tmp_path, {"worker": 1}, "worker")
    assert_same_weights(way(results, "loop"), way(alone, "loop"))
    assert_same_weights(way(results, "fit"), way(alone, "fit"))


def test_data_parallel_of_keras_3(alone, tmp_path, is_keras_3):
    if not is_keras_3:
        pytest.skip("tf-keras has no keras.distribution")
    (results,) = results_of("data_parallel", tmp_path, {"worker": 1}, "worker")
    assert_same_weights(way(results, "fit"), way(alone, "fit"))


@pytest.mark.slow
def test_multi_worker_mirrored_strategy(alone, tmp_path, is_keras_3):
    workers = results_of("multi_worker_mirrored", tmp_path, {"worker": 2}, "worker")
    assert len(workers) == 2
    for results in workers:
        assert_same_weights(way(results, "loop"), way(alone, "loop"))
        if is_keras_3 and "refused/fit" in results:
            assert_refused(results, "fit", "PerReplica")
        else:
            assert_same_weights(way(results, "fit"), way(alone, "fit"))


@pytest.mark.slow
def test_parameter_server_strategy(alone, tmp_path, is_keras_3):
    jobs = {"chief": 1, "worker": 2, "ps": 1}
    (results,) = results_of("parameter_server", tmp_path, jobs, "chief")
    assert_same_weights(way(results, "coordinator"), way(alone, "loop"))
    if is_keras_3 and "refused/fit" in results:
        assert_refused(results, "fit", "ClusterCoordinator")
    else:
        losses = way(results, "fit")  # of epochs; workers take turns as it comes
        assert losses[-1] < 0.9 * losses[0]
