"""An exported model is served by processes that know TensorFlow and the library, nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import tf_deformable

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def served(request, tmp_path_factory):
    """A model exported with one backend, a request, what is expected, the library to load."""
    tf.keras.utils.set_random_seed(4)
    folder = tmp_path_factory.mktemp(request.param)
    with tf_deformable.config.use_backend(request.param):
        model = tf.keras.Sequential(
            [
                tf.keras.Input((None, None, 3)),
                tf.keras.layers.Conv2D(8, 3, activation="relu"),
                tf_deformable.DeformableConv2D(
                    6,
                    3,
                    padding="same",
                    modulated=True,
                    offset_groups=2,
                    offset_kernel_initializer="he_normal",
                    offset_learning_rate_multiplier=0.1,
                    activation="relu",
                ),
                tf.keras.layers.GlobalAveragePooling2D(),
                tf.keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model(tf.zeros([1, 16, 16, 3]))  # Another size than the one served.
        model.export(str(folder / "model"))
        images = np.random.default_rng(5).normal(size=[3, 21, 13, 3]).astype(np.float32)
        np.save(folder / "inputs.npy", images)
        expected = model.predict(images, verbose=0)
    library = [tf_deformable.get_library_path()] if request.param == "native" else []
    return folder, expected, library


def run(script, *arguments):
    # -I: neither the working directory nor PYTHONPATH lead to the package.
    result = subprocess.run(
        [sys.executable, "-I", HERE / script, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("served", ["native"], indirect=True)
def test_process_that_imports_only_tensorflow(served):
    folder, expected, library = served
    answer = folder / "from_tensorflow.npy"
    run("serve_with_tensorflow.py", folder / "model", folder / "inputs.npy", answer, *library)
    np.testing.assert_allclose(np.load(answer), expected, atol=1e-6)


@pytest.mark.parametrize("served", ["native", "reference"], indirect=True)
def test_c_api(served):
    folder, expected, library = served
    libtensorflow = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    if not libtensorflow.exists():
        pytest.skip("this TensorFlow keeps its C API elsewhere")
    saved = saved_model_pb2.SavedModel.FromString((folder / "model/saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    names = [
        tensor.name.split(":")[0]
        for tensors in (signature.inputs, signature.outputs)
        for tensor in tensors.values()
    ]
    answer = folder / "from_c_api.npy"
    run(
        "serve_with_c_api.py",
        libtensorflow,
        folder / "model",
        *names,
        folder / "inputs.npy",
        answer,
        *library,
    )
    np.testing.assert_allclose(np.load(answer), expected, atol=1e-6)
