"""The example of distributed training: alone, by two workers, and with one of them killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import clusters

pytest.importorskip("sklearn", reason="the example's data")

SCRIPT = clusters.ROOT / "examples" / "train_distributed.py"
STEPS = 30
TRAINING = "--max-scans 100 --copies 1 --batch 32 --epochs 6 --save-every 3".split()
TIMEOUT = 300  # seconds, for a loaded machine; a run takes some 10


def arguments(directory: Path) -> list[str | Path]:
    return [SCRIPT, *TRAINING, "--directory", directory]


def weights_of(directory: Path) -> dict[str, np.ndarray]:
    """Returns what the last checkpoint holds: weights, statistics, the optimizer's variables."""
    last = tf.train.latest_checkpoint(str(directory))
    assert last is not None and last.endswith(f"-{STEPS}")
    reader = tf.train.load_checkpoint(last)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.endswith("VALUE") and "save_counter" not in name
    }


def assert_same_bits(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name


def run(*extra: str | Path, directory: Path) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, arguments(directory)), *map(str, extra)],
        env=clusters.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module", autouse=True)
def double_precision(tmp_path_factory):
    """Lets all runs compute in float64: what is trained in float32 makes rounding grow."""
    home = tmp_path_factory.mktemp("keras")
    settings = {"floatx": "float64", "backend": "tensorflow", "epsilon": 1e-7}
    settings["image_data_format"] = "channels_last"
    (home / "keras.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns the folder and what two workers print that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with clusters.running({"worker": 2}, arguments(folder / "shared"), folder) as cluster:
        cluster.wait("worker", timeout=TIMEOUT)
    return folder / "shared", [cluster.log_of("worker", index).read_text() for index in (0, 1)]


def test_help_explains_itself():
    process = subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        env=clusters.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr
    assert "TF_CONFIG" in process.stdout and "--save-every" in process.stdout


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(undisturbed, tmp_path):
    shared, logs = undisturbed
    assert all("2 replicas, 180 images" in log and f"step {STEPS}" in log for log in logs)
    alone = run(directory=tmp_path)
    assert "1 replicas, 180 images" in alone
    together, expected = weights_of(shared), weights_of(tmp_path)
    assert together.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(together[name], array, rtol=1e-8, atol=1e-10, err_msg=name)
    assert "training has ended" in run(directory=tmp_path)
    assert tf.keras.models.load_model(shared / "model.keras").count_params() > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["chief", "worker"])
def test_a_worker_that_is_killed_and_restarted_changes_nothing(victim, undisturbed, tmp_path):
    shared, _ = undisturbed
    survivor = 1 - victim
    with clusters.running({"worker": 2}, arguments(tmp_path / "shared"), tmp_path) as cluster:
        for index in (0, 1):  # the checkpoint is there once the chief, too, has saved
            cluster.wait_for("step 6 of", "worker", index, timeout=TIMEOUT)
        cluster.kill("worker", victim)
        cluster.start("worker", victim)
        cluster.wait("worker", timeout=TIMEOUT)
    log = cluster.log_of("worker", survivor).read_text()
    assert "lost a worker" in log
    starts = [int(line.split()[-1]) for line in log.splitlines() if "starts at step" in line]
    assert starts[0] == 0 and 6 <= starts[-1] < STEPS
    assert_same_bits(weights_of(tmp_path / "shared"), weights_of(shared))


@pytest.mark.slow
def test_workers_that_do_not_share_the_folder_are_told(undisturbed, tmp_path):
    """One finds a checkpoint, and the other does not."""
    shared, _ = undisturbed
    shutil.copytree(shared, tmp_path / "0", ignore=shutil.ignore_patterns("*.keras"))
    folder_of_its_own = (
        "import json, os, runpy, sys\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"folder = {str(tmp_path)!r} + '/' + str(index)\n"
        f"sys.argv = [{str(SCRIPT)!r}, *{TRAINING!r}, '--directory', folder]\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    with clusters.running({"worker": 2}, ["-c", folder_of_its_own], tmp_path) as cluster:
        for index in (0, 1):
            cluster.wait_for("must be one folder", "worker", index, timeout=TIMEOUT)
