"""Model servers that are processes of their own, asked by many clients over HTTP.

Those that are not installed are skipped: `pip install nvidia-pytriton` has Triton's own binary, and
`pip install kserve` KServe's server. Both speak the Open Inference Protocol.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.export import small_models

EXAMPLES = Path(__file__).parents[2] / "examples/model_servers"
CLIENTS = 8
SECONDS_TO_START = 300
SECONDS_TO_STOP = 60

Arrays = dict[str, np.ndarray]

pytestmark = pytest.mark.slow


def deformified():
    """A small network of which two convolutions have become deformable."""
    inputs = tf.keras.Input((None, None, 3), name="images")
    maps = tf.keras.layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    for number in (2, 3):
        layer = tf.keras.layers.Conv2D(6, 3, padding="same", name=f"conv{number}")
        maps = tf.keras.layers.ReLU()(layer(maps))
    model = tf_deformable.models.deformify(
        tf.keras.Model(inputs, tf.keras.layers.Dense(5)(maps)),
        ["conv2", "conv3"],
        modulated=True,
        offset_kernel_initializer=small_models.offset_kernel(),
    )
    sizes = [(1, 9, 7), (3, 16, 16), (2, 5, 21), (1, 30, 30)]
    return model, [[small_models.images(*size, 3)] for size in sizes]


def pooling():
    """Maps and boxes, whose number differs from request to request."""
    model, (maps, _), _ = small_models.pooling("DeformableRoIPool")
    channels = maps.shape[-1]
    sizes = [(1, 9, 8, 1), (2, 13, 10, 5), (3, 6, 17, 40), (1, 8, 8, 0)]
    requests = [
        [small_models.images(batch, height, width, channels), _boxes(batch, count)]
        for batch, height, width, count in sizes
    ]
    return model, requests


def _boxes(batch: int, count: int) -> np.ndarray:
    return small_models.boxes(batch, count, 16) if count else np.zeros([batch, 0, 4], np.float32)


def detector():
    """From images to boxes, with non-maximum suppression."""
    model = small_models.detector().model
    return model, [[small_models.images(*size, 3)] for size in ((1, 64, 64), (2, 48, 64))]


MODELS = (deformified, pooling, detector)


class Exported:
    """A native SavedModel with the library beside it, requests to it, and Keras' answers."""

    def __init__(self, folder: Path, make) -> None:
        tf.keras.utils.set_random_seed(20)
        model, requests = make()
        self.name, self.folder = make.__name__, folder
        tf_deformable.export.saved_model(model, folder, portable=False)
        signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
        _, specs = signature.structured_input_signature
        ranks = {name: spec.shape.rank for name, spec in specs.items()}
        self.requests = [small_models.by_name(inputs, ranks) for inputs in requests]
        self.expected = [small_models.Case(model, inputs).expected() for inputs in requests]


class Server:
    """The process of a server, in a process group of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], port: int, log: Path):
        self._port, self.log = port, log
        # Neither the working directory nor PYTHONPATH lead to the package.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=inherited | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, models: list[str]) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if all(self.send(f"/v2/models/{name}/ready")[0] == 200 for name in models):
                    return
            except OSError:
                pass  # Nobody listens yet.
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def send(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the body of an answer; a request with a body is a POST."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def infer(self, model: str, arrays: Arrays) -> Arrays:
        status, answer = self.send(f"/v2/models/{model}/infer", encoded(arrays))
        assert status == 200, answer
        return {
            one["name"]: np.array(one["data"], TYPES[one["datatype"]]).reshape(one["shape"])
            for one in json.loads(answer)["outputs"]
        }

    def stop(self) -> int:
        """Asks it to end, and returns its exit status once its whole process group is gone."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(SECONDS_TO_STOP)
            end = time.monotonic() + SECONDS_TO_STOP
            while self._is_alive():
                assert time.monotonic() < end, "processes of the server are left"
                time.sleep(0.1)
            return status
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends what is left of it."""
        if self._is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _is_alive(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


TYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}


def encoded(arrays: Arrays) -> bytes:
    """A request of the protocol."""
    names = {np.dtype(dtype): name for name, dtype in TYPES.items()}
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": names[array.dtype],
            "data": array.ravel().tolist(),
        }
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def start_kserve(models: list[Exported], folder: Path, port: int) -> Server:
    script = str(EXAMPLES / "serve_with_kserve.py")
    pairs = [f"{model.name}={model.folder}" for model in models]
    command = [sys.executable, script, *pairs, "--port", str(port)]
    return Server(command, {}, port, folder / "log")


def start_triton(models: list[Exported], folder: Path, port: int) -> Server:
    import pytriton

    package = Path(pytriton.__file__).parent
    binaries = package / "tritonserver"
    # What runs Python in Triton is there once for each version.
    version = ".".join(map(str, sys.version_info[:2]))
    stub = "triton_python_backend_stub"
    shutil.copytree(binaries / "backends", folder / "backends")
    shutil.copy2(
        binaries / "python_backend_stubs" / version / stub, folder / "backends/python" / stub
    )
    for number, model in enumerate(models):
        version_folder = folder / "models" / model.name / "1"
        shutil.copytree(model.folder, version_folder / "saved_model")
        for file in ("saved_model.py", "triton/model.py"):
            shutil.copy2(EXAMPLES / file, version_folder)
        # This environment; and two processes that answer for the first model, one for others.
        (version_folder.parent / "config.pbtxt").write_text(
            'parameters: { key: "EXECUTION_ENV_PATH" '
            f'value: {{ string_value: "{sys.prefix}" }} }}\n'
            f"instance_group [{{ kind: KIND_CPU count: {1 if number else 2} }}]\n"
        )
    libraries = [sysconfig.get_config_var("LIBDIR"), package.parent / "nvidia_pytriton.libs"]
    command = [
        str(binaries / "bin/tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        # Half a minute is not enough where many processes load TensorFlow at once.
        "--backend-config=python,stub-timeout-seconds=300",
        "--model-load-thread-count=1",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    return Server(command, environment, port, folder / "log")


SERVERS = {"kserve": (start_kserve, "kserve"), "triton": (start_triton, "pytriton")}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return [Exported(folder / make.__name__, make) for make in MODELS]


@pytest.fixture(scope="module", params=SERVERS)
def server(request, exported, tmp_path_factory):
    start, package = SERVERS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = start(exported, tmp_path_factory.mktemp(request.param), port)
    try:
        started.wait_until_ready([model.name for model in exported])
        yield started
        assert started.stop() == 0, started.log.read_text()
    finally:
        started.kill()


def check(server: Server, model: Exported, number: int) -> None:
    got = server.infer(model.name, model.requests[number])
    expected = model.expected[number]
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_many_clients_at_once(server, exported):
    """Every client asks all that there is to ask, each in another order."""
    questions = [(model, n) for model in exported for n in range(len(model.requests))]

    def ask(client: int) -> None:
        for number in np.random.default_rng(client).permutation(len(questions)):
            check(server, *questions[number])

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(ask, range(CLIENTS)))


def _malformed(arrays: Arrays) -> dict[str, bytes]:
    name, array = next((n, a) for n, a in arrays.items() if a.ndim == 4)
    request = json.loads(encoded(arrays))
    (first,) = (one for one in request["inputs"] if one["name"] == name)
    first["data"] = first["data"][:-1]
    return {
        "no JSON": b"{inputs",
        "no inputs": b"{}",
        "too few numbers": json.dumps(request).encode(),
        "another name": encoded({f"{n}_": a for n, a in arrays.items()}),
        "no batch": encoded({**arrays, name: array[0]}),
        "too few channels": encoded({**arrays, name: array[..., 1:]}),
        "integers": encoded({**arrays, name: array.astype(np.int64)}),
    }


def test_malformed_requests_are_refused_and_others_answered(server, exported):
    for model in exported:
        for kind, body in _malformed(model.requests[0]).items():
            status, answer = server.send(f"/v2/models/{model.name}/infer", body)
            assert 400 <= status <= 500, (kind, status, answer)
            assert json.loads(answer), kind
        check(server, model, 0)
    status, _ = server.send("/v2/models/nothing/infer", encoded(exported[0].requests[0]))
    assert status in (400, 404)


def test_what_an_operator_refuses_is_the_clients_error(server, exported):
    (model,) = (model for model in exported if model.name == "pooling")
    # Boxes of one image, and two images.
    arrays = {n: a[:1] if a.ndim == 3 else a for n, a in model.requests[1].items()}
    status, answer = server.send(f"/v2/models/{model.name}/infer", encoded(arrays))
    assert status == 400, answer
    check(server, model, 1)
