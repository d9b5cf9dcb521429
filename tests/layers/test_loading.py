"""Models load in a new process that has imported the package, and done nothing else with it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

# Every way to load, each with what it needs; arguments: the folder, and the ways to try.
_LOAD = """
import sys
import tf_deformable
import tensorflow as tf
import numpy as np

folder, *ways = sys.argv[1:]
request = dict(np.load(folder + "/request.npz"))
expected = request.pop("scores")
exported = tf.saved_model.load(folder + "/exported")
images, boxes = request["images"], request["boxes"]
loaded = {
    "keras": lambda: tf.keras.models.load_model(folder + "/model.keras")([images, boxes]),
    "h5": lambda: tf.keras.models.load_model(folder + "/model.h5")([images, boxes]),
    "folder": lambda: tf.keras.models.load_model(folder + "/folder")([images, boxes]),
    "json": lambda: from_json()([images, boxes]),
    "saved_model": lambda: exported.serve([images, boxes]),
    "TFSMLayer": lambda: served()([images, boxes]),
}

def from_json():
    model = tf.keras.models.model_from_json(open(folder + "/model.json").read())
    model.load_weights(folder + "/model.weights.h5")
    return model

def served():
    return tf.keras.layers.TFSMLayer(folder + "/exported", call_endpoint="serve")

for way in ways:
    np.testing.assert_allclose(loaded[way](), expected, rtol=1e-4, atol=1e-4, err_msg=way)
    print(way)

# What was loaded can be trained: gradients of the operators are known too.
with tf.GradientTape() as tape:
    variable = tf.Variable(images)
    loss = tf.reduce_sum(exported.serve([variable, boxes]) ** 2)
assert np.abs(tape.gradient(loss, variable)).max() > 0

for name in ("RoIPool", "PSRoIPool", "ResizeLike", "Detector"):
    assert tf.keras.utils.get_registered_object(f"tf_deformable>{name}") is not None, name
"""


@pytest.fixture
def model():
    features = tf.keras.Input((None, None, 3))
    boxes = tf.keras.Input((None, 4))
    conv = tf_deformable.DeformableConv2D(
        8, 3, padding="same", modulated=True, offset_kernel_initializer="random_normal"
    )(features)
    pooled = [
        tf_deformable.DeformableRoIPool(2, offset_kernel_initializer="random_normal"),
        tf_deformable.DeformablePSRoIPool(
            2, 2, score_filters=8, offset_kernel_initializer="random_normal"
        ),
    ]
    pooled = tf.keras.layers.Add()([layer([conv, boxes]) for layer in pooled])
    scores = tf.keras.layers.Dense(3)(tf.keras.layers.Reshape((-1, 2 * 2 * 8))(pooled))
    return tf.keras.Model([features, boxes], scores)


def test_importing_the_package_is_enough_to_load_a_model(model, is_keras_3, tmp_path):
    random = np.random.default_rng(0)
    images = random.normal(size=[2, 9, 11, 3]).astype(np.float32)
    boxes = np.array([[[1, 2, 7, 9], [0, 0, 8, 10]], [[3, 1, 6, 5], [0, 0, 0, 0]]], np.float32)
    np.savez(tmp_path / "request.npz", images=images, boxes=boxes, scores=model([images, boxes]))
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    ways = ["keras", "h5", "json", "saved_model"]
    (tmp_path / "model.json").write_text(model.to_json())
    model.save_weights(tmp_path / "model.weights.h5")
    model.export(str(tmp_path / "exported"))
    if is_keras_3:
        ways += ["TFSMLayer"]
    else:
        ways += ["folder"]
        model.save(tmp_path / "folder", save_format="tf")

    run = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path), *ways], capture_output=True, text=True
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ways


_RELOAD = """
import importlib, sys
import tensorflow as tf
import tf_deformable

def train():
    layer = tf_deformable.DeformableConv2D(2, 3)
    pool = tf_deformable.RoIPool(2)
    inputs, boxes = tf.ones([1, 6, 6, 1]), tf.constant([[[0.0, 0, 4, 4]]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(pool([layer(inputs), boxes]))
    assert all(g is not None for g in tape.gradient(loss, layer.trainable_variables))
    return layer

train()
ours = [name for name in sys.modules if name.startswith("tf_deformable")]
for name in sorted(ours, reverse=True):
    importlib.reload(sys.modules[name])
train()
for name in ours:
    del sys.modules[name]
import tf_deformable
layer = train()
assert tf.keras.utils.get_registered_object("tf_deformable>DeformableConv2D") is type(layer)
print("reloaded")
"""


def test_the_package_can_be_reloaded_in_a_notebook():
    run = subprocess.run([sys.executable, "-c", _RELOAD], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "reloaded\n"
