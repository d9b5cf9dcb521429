"""An exported model is served by processes that know TensorFlow and the library, nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import tf_deformable
from tests.xla import needs_lowering

HERE = Path(__file__).parent


def classifier():
    """A model, and two requests of different sizes."""
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
    random = np.random.default_rng(5)
    requests = [random.normal(size=shape) for shape in ([1, 16, 16, 3], [3, 21, 13, 3])]
    return model, [images.astype(np.float32) for images in requests]


def detector():
    """A model of images and boxes, and two requests that differ in the number of boxes, too."""
    images, boxes = tf.keras.Input((None, None, 3)), tf.keras.Input((None, 4))
    features = tf.keras.layers.Conv2D(8, 3, strides=2, activation="relu")(images)
    geometry = {"spatial_scale": 0.5, "offset_kernel_initializer": "he_normal", "gamma": 0.5}
    pooled = [
        tf_deformable.DeformableRoIPool(2, offset_units=(6,), modulated=True, **geometry),
        tf_deformable.DeformablePSRoIPool(2, 2, score_filters=3, **geometry),
    ]
    pooled = tf.keras.layers.concatenate([layer([features, boxes]) for layer in pooled])
    scores = tf.keras.layers.Dense(5, activation="softmax")(
        tf.keras.layers.Reshape((-1, 2 * 2 * 11))(pooled)
    )
    random = np.random.default_rng(6)
    requests = []
    for batch, height, width, count in ((1, 16, 16, 2), (3, 21, 13, 7)):
        corners = random.uniform(0, 9, [batch, count, 4]) + [0, 0, 9, 9]
        corners[:, -1] = 0  # padding
        values = [random.normal(size=[batch, height, width, 3]), corners]
        requests.append([value.astype(np.float32) for value in values])
    return tf.keras.Model([images, boxes], scores), requests


def attender():
    """A model of one map and queries, which read it twice, and two requests of other sizes."""
    query, maps = tf.keras.Input((None, 12)), tf.keras.Input((None, None, 6))
    references = tf.keras.Input((None, None, None, 2))
    layers = tf.keras.layers
    # The signature knows inputs by their ranks.
    points = layers.Lambda(lambda points: points[:, 0])(references)
    attended = query
    for _ in range(2):
        attend = tf_deformable.MultiScaleDeformableAttention(num_heads=3, num_levels=1)
        attended = layers.add([attended, attend([query, points, maps])])
    random = np.random.default_rng(7)
    requests = []
    for batch, queries, size in ((1, 4, (5, 6)), (3, 9, (8, 3))):
        values = [
            random.normal(size=[batch, queries, 12]),
            random.uniform(size=[batch, 1, queries, 1, 2]),
            random.normal(size=[batch, *size, 6]),
        ]
        requests.append([value.astype(np.float32) for value in values])
    return tf.keras.Model([query, references, maps], attended), requests


@pytest.fixture(scope="module")
def served(request, tmp_path_factory):
    """A model exported with one backend, a request, what is expected, the library to load."""
    make_model, backend = request.param
    tf.keras.utils.set_random_seed(4)
    folder = tmp_path_factory.mktemp(backend)
    with tf_deformable.config.use_backend(backend):
        model, (other, batch) = make_model()
        model.predict(other, verbose=0)  # Another size than the one served.
        model.export(str(folder / "model"))
        expected = model.predict(batch, verbose=0)
    library = [tf_deformable.get_library_path()] if backend == "native" else []
    return folder, batch, expected, library


def served_with(*backends):
    cases = [(model, backend) for model in (classifier, detector, attender) for backend in backends]
    return pytest.mark.parametrize(
        "served", cases, indirect=True, ids=[f"{model.__name__}-{name}" for model, name in cases]
    )


def signature_of(folder):
    """Names of the inputs, of their operations by rank, and of the output's operation."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "model/saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    (output,) = signature.outputs.values()
    inputs = {len(info.tensor_shape.dim): (key, info) for key, info in signature.inputs.items()}
    names = {rank: key for rank, (key, _) in inputs.items()}
    operations = {rank: info.name.split(":")[0] for rank, (_, info) in inputs.items()}
    return names, operations, output.name.split(":")[0]


def save_request(path, names, batch):
    """Writes the arrays under the names that their ranks have."""
    np.savez(path, **{names[array.ndim]: array for array in tf.nest.flatten(batch)})
    return path


def run(script, *arguments):
    # -I: neither the working directory nor PYTHONPATH lead to the package.
    result = subprocess.run(
        [sys.executable, "-I", HERE / script, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@served_with("native")
def test_process_that_imports_only_tensorflow(served):
    folder, batch, expected, library = served
    names, _, _ = signature_of(folder)
    request = save_request(folder / "by_name.npz", names, batch)
    answer = folder / "from_tensorflow.npy"
    run("serve_with_tensorflow.py", folder / "model", request, answer, *library)
    np.testing.assert_allclose(np.load(answer), expected, atol=1e-6)


@needs_lowering
def test_process_that_runs_what_was_compiled_by_xla(tmp_path):
    served = tf.Module()
    served.layer = tf_deformable.DeformableConv2D(4, 3, modulated=True)
    inputs = np.random.default_rng(5).normal(size=[1, 9, 8, 3]).astype(np.float32)
    expected = served.layer(inputs)

    @tf.function(input_signature=[tf.TensorSpec([1, 9, 8, 3])], jit_compile=True)
    def serve(images):
        return {"maps": served.layer(images)}

    tf.saved_model.save(served, tmp_path / "model", {"serving_default": serve})
    np.savez(tmp_path / "request.npz", images=inputs)
    library = Path(tf_deformable.get_library_path())
    lowering = library.with_name(library.name.replace("_tensorflow_", "_xla_tensorflow_"))
    answer = tmp_path / "answer.npy"
    arguments = [tmp_path / "model", tmp_path / "request.npz", answer, library, lowering]
    run("serve_with_tensorflow.py", *arguments)
    np.testing.assert_allclose(np.load(answer), expected, rtol=1e-4, atol=1e-5)


@served_with("native", "reference")
def test_c_api(served):
    folder, batch, expected, library = served
    libtensorflow = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    if not libtensorflow.exists():
        pytest.skip("this TensorFlow keeps its C API elsewhere")
    _, operations, output = signature_of(folder)
    request = save_request(folder / "by_operation.npz", operations, batch)
    answer = folder / "from_c_api.npy"
    run("serve_with_c_api.py", libtensorflow, folder / "model", request, output, answer, *library)
    np.testing.assert_allclose(np.load(answer), expected, atol=1e-6)


class Trained(tf.Module):
    """The operator with the function that trains its weights."""

    def __init__(self):
        super().__init__()
        self.images = tf.random.normal([2, 9, 9, 3], seed=1)
        self.filters = tf.Variable(tf.random.normal([3, 3, 3, 4], seed=2) / 5)
        self.offset_filters = tf.Variable(tf.random.normal([3, 3, 3, 18], seed=3) / 20)

    def _outputs(self):
        offsets = tf.nn.conv2d(self.images, self.offset_filters, 1, "SAME")
        return tf_deformable.deformable_conv2d(self.images, self.filters, offsets)

    @tf.function(input_signature=[])
    def predict(self):
        return self._outputs()

    @tf.function(input_signature=[])
    def train(self):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self._outputs() - 1) ** 2)
        variables = [self.filters, self.offset_filters]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(gradient / 10)
        return loss


def test_training_in_a_process_that_imports_only_tensorflow(tmp_path):
    """With a training step that was exported; other gradients need the package."""
    module = Trained()
    tf.saved_model.save(module, str(tmp_path / "module"))
    library = tf_deformable.get_library_path()
    run("train_with_tensorflow.py", tmp_path / "module", 4, tmp_path / "losses.npy", library)
    losses = np.load(tmp_path / "losses.npy")
    np.testing.assert_allclose(losses, [module.train() for _ in range(4)], rtol=1e-5)
    assert losses[-1] < losses[0]
