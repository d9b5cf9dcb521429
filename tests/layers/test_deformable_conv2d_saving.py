"""Every way to save a `DeformableConv2D`, and to get it back."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import DeformableConv2D

OTHER_THAN_DEFAULT = {
    "filters": 6,
    "kernel_size": (3, 2),
    "strides": (2, 1),
    "padding": "same",
    "data_format": "channels_first",
    "dilation_rate": (1, 2),
    "groups": 3,
    "offset_groups": 2,
    "modulated": True,
    "activation": "relu",
    "use_bias": False,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l1",
    "kernel_constraint": "unit_norm",
    "bias_constraint": "non_neg",
    "mask_initial_value": 1.0,
    "offset_kernel_initializer": "glorot_normal",
    "offset_bias_initializer": "ones",
    "offset_kernel_regularizer": "l2",
    "offset_bias_regularizer": "l1",
    "offset_source": "features",
    "adds_flow": True,
    "max_offset": 8.0,
    "offset_learning_rate_multiplier": 0.1,
}
BASE_LAYER_ARGUMENTS = {"name": "deformable", "dtype": "float64", "trainable": False}


@pytest.fixture
def images():
    return np.random.default_rng(2).normal(size=[2, 9, 10, 3]).astype(np.float32)


@pytest.fixture
def model(images):
    """A functional model whose layer deforms: with zero offsets much could be lost unnoticed."""
    inputs = tf.keras.Input((None, None, 3))
    features = tf.keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    features = DeformableConv2D(
        6,
        3,
        strides=2,
        padding="same",
        dilation_rate=2,
        groups=2,
        offset_groups=2,
        modulated=True,
        activation="relu",
        offset_kernel_initializer="he_normal",
        offset_bias_initializer="random_normal",
        offset_learning_rate_multiplier=0.1,
    )(features)
    outputs = tf.keras.layers.GlobalAveragePooling2D()(features)
    return tf.keras.Model(inputs, outputs)


def predict(model, images):
    return model.predict(images, verbose=0)


# --- Configuration -------------------------------------------------------------------------------


def test_config_holds_every_constructor_argument():
    parameters = set(inspect.signature(DeformableConv2D.__init__).parameters) - {"self", "kwargs"}
    assert parameters == set(OTHER_THAN_DEFAULT)  # or this test is to be completed
    config = DeformableConv2D(**OTHER_THAN_DEFAULT, **BASE_LAYER_ARGUMENTS).get_config()
    default = DeformableConv2D(4, 3).get_config()
    for argument in [*OTHER_THAN_DEFAULT, *BASE_LAYER_ARGUMENTS]:
        assert config[argument] != default[argument], argument


def test_config_round_trip_through_json():
    layer = DeformableConv2D(**OTHER_THAN_DEFAULT, **BASE_LAYER_ARGUMENTS)
    config = json.loads(json.dumps(layer.get_config()))
    twin = DeformableConv2D.from_config(config)
    assert json.loads(json.dumps(twin.get_config())) == config
    for argument in ("kernel_size", "strides", "dilation_rate", "activation", "modulated"):
        assert getattr(twin, argument) == getattr(layer, argument)


def test_serialized_under_the_packages_name():
    assert tf.keras.utils.get_registered_name(DeformableConv2D) == "tf_deformable>DeformableConv2D"


def test_clone_model(model, images):
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(predict(clone, images), predict(model, images), atol=1e-6)


def test_build_twice_creates_the_weights_once(images):
    layer = DeformableConv2D(4, 3, modulated=True)
    layer.build(images.shape)
    weights = layer.get_weights()
    layer.build(images.shape)
    layer(images)
    assert len(layer.weights) == 4
    for before, after in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


# --- Files ---------------------------------------------------------------------------------------


def test_keras_file(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[2], DeformableConv2D)
    np.testing.assert_allclose(predict(loaded, images), predict(model, images), atol=1e-6)


def test_keras_file_of_a_trained_model_trains_on(model, images, tmp_path):
    model.compile("adam", "mse")
    model.fit(images, np.zeros([2, 6]), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded, images), predict(model, images), atol=1e-6)
    assert np.isfinite(loaded.fit(images, np.zeros([2, 6]), verbose=0).history["loss"]).all()


def test_keras_file_in_a_process_that_only_imports_the_layers(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, numpy as np, tensorflow as tf, tf_deformable.layers; "
        "model = tf.keras.models.load_model(sys.argv[1] + '/model.keras'); "
        "images = np.load(sys.argv[1] + '/images.npy'); "
        "np.save(sys.argv[1] + '/outputs.npy', model.predict(images, verbose=0))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    outputs = np.load(tmp_path / "outputs.npy")
    np.testing.assert_allclose(outputs, predict(model, images), atol=1e-6)


def test_weights_file(model, images, tmp_path):
    expected = predict(model, images)
    model.save_weights(tmp_path / "model.weights.h5")
    twin = tf.keras.models.clone_model(model)
    assert not np.allclose(predict(twin, images), expected)
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(predict(twin, images), expected, atol=1e-6)


def test_checkpoint(model, images, tmp_path):
    expected = predict(model, images)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    twin = tf.keras.models.clone_model(model)
    tf.train.Checkpoint(model=twin).restore(path).expect_partial()
    np.testing.assert_allclose(predict(twin, images), expected, atol=1e-6)


def test_export(model, images, tmp_path):
    model.export(str(tmp_path / "export"))
    loaded = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(loaded.serve(images), predict(model, images), atol=1e-6)
    other = np.random.default_rng(3).normal(size=[5, 12, 7, 3]).astype(np.float32)
    np.testing.assert_allclose(loaded.serve(other), predict(model, other), atol=1e-6)


def test_saved_model(model, images, tmp_path):
    tf.saved_model.save(model, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    (outputs,) = loaded.signatures["serving_default"](tf.constant(images)).values()
    np.testing.assert_allclose(outputs, predict(model, images), atol=1e-6)


@pytest.mark.parametrize("multiplier", [1.0, 0.125])
def test_saved_model_keeps_the_offset_multiplier(multiplier, images, tmp_path):
    def offset_bias_gradient(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(tf.constant(images)) ** 2)
        variables = tape.watched_variables()
        (index,) = [i for i, variable in enumerate(variables) if "offset_bias" in variable.name]
        return tape.gradient(loss, variables)[index]

    layer = DeformableConv2D(4, 3)
    layer.build(images.shape)
    scaled = DeformableConv2D(4, 3, offset_learning_rate_multiplier=multiplier)
    scaled.build(images.shape)
    scaled.set_weights(layer.get_weights())

    module = tf.Module()
    module.layer = scaled
    module.serve = tf.function(
        lambda inputs: scaled(inputs), [tf.TensorSpec([None, None, None, 3], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        offset_bias_gradient(loaded.serve), multiplier * offset_bias_gradient(layer), rtol=1e-4
    )


def test_tf_keras_saved_model_format(model, images, tmp_path, is_keras_3):
    if is_keras_3:
        pytest.skip("Keras 3 has model.export instead")
    model.save(tmp_path / "model", save_format="tf")
    loaded = tf.keras.models.load_model(tmp_path / "model")
    assert isinstance(loaded.layers[2], DeformableConv2D)
    assert loaded.layers[2].get_config() == model.layers[2].get_config()
    np.testing.assert_allclose(predict(loaded, images), predict(model, images), atol=1e-6)
