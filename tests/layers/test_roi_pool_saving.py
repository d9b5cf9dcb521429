"""Every way to save the RoI pooling layers, and to get them back."""

import inspect
import json

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import DeformablePSRoIPool, DeformableRoIPool, PSRoIPool, RoIPool

GEOMETRY = {
    "output_size": (3, 2),
    "spatial_scale": 0.25,
    "samples_per_bin": 3,
    "aligned": False,
    "data_format": "channels_first",
}
OFFSETS = {
    "gamma": 0.25,
    "offset_kernel_initializer": "glorot_normal",
    "offset_bias_initializer": "ones",
    "offset_kernel_regularizer": "l2",
    "offset_bias_regularizer": "l1",
    "offset_learning_rate_multiplier": 0.1,
}
OTHER_THAN_DEFAULT = {
    RoIPool: GEOMETRY,
    PSRoIPool: {**GEOMETRY, "group_size": 2},
    DeformableRoIPool: {
        **GEOMETRY,
        **OFFSETS,
        "offset_units": (5, 6),
        "modulated": True,
        "mask_initial_value": 1.0,
        "offset_hidden_kernel_initializer": "he_normal",
    },
    DeformablePSRoIPool: {
        **GEOMETRY,
        **OFFSETS,
        "score_filters": 3,
        "offset_source": "features",
        "group_size": 2,
        "class_agnostic": True,
        "use_bias": False,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "activity_regularizer": "l1",
        "kernel_constraint": "unit_norm",
        "bias_constraint": "non_neg",
    },
}
REQUIRED = {
    RoIPool: {"output_size": 7},
    PSRoIPool: {"output_size": 7, "group_size": 7},
    DeformableRoIPool: {"output_size": 7},
    DeformablePSRoIPool: {"output_size": 7, "group_size": 7},
}
BASE_LAYER_ARGUMENTS = {"name": "pool", "dtype": "mixed_bfloat16", "trainable": False}

every_class = pytest.mark.parametrize("cls", list(OTHER_THAN_DEFAULT), ids=lambda c: c.__name__)


@pytest.fixture
def arrays():
    """Images and boxes, some of them padding."""
    random = np.random.default_rng(2)
    boxes = random.uniform(0, 8, [2, 5, 4]) + [0, 0, 8, 8]
    boxes[1, 3:] = 0
    images = random.normal(size=[2, 18, 20, 3])
    return [images.astype(np.float32), boxes.astype(np.float32)]


@pytest.fixture
def model():
    """One functional model with all four layers; bins move, or much could be lost unnoticed."""
    images, boxes = tf.keras.Input((None, None, 3)), tf.keras.Input((None, 4))
    features = tf.keras.layers.Conv2D(8, 3, strides=2, activation="relu")(images)
    geometry = {"output_size": 2, "spatial_scale": 0.5}
    moving = {
        "offset_kernel_initializer": "he_normal",
        "offset_bias_initializer": "random_normal",
        "gamma": 0.5,
    }
    pooled = [
        layer([features, boxes])
        for layer in (
            RoIPool(**geometry),
            PSRoIPool(group_size=2, **geometry),
            DeformableRoIPool(**geometry, **moving, offset_units=(6, 5), modulated=True),
            DeformablePSRoIPool(group_size=2, score_filters=3, **geometry, **moving),
        )
    ]
    outputs = tf.keras.layers.Dense(4)(tf.keras.layers.concatenate(pooled))
    return tf.keras.Model([images, boxes], outputs)


def predict(model, arrays):
    return model.predict(arrays, verbose=0)


# --- Configuration -------------------------------------------------------------------------------


@every_class
def test_config_holds_every_constructor_argument(cls):
    arguments = OTHER_THAN_DEFAULT[cls]
    parameters = set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    assert parameters == set(arguments)  # or this test is to be completed
    config = cls(**arguments, **BASE_LAYER_ARGUMENTS).get_config()
    default = cls(**REQUIRED[cls]).get_config()
    for argument in [*arguments, *BASE_LAYER_ARGUMENTS]:
        assert config[argument] != default[argument], argument


# What version 0.1 wrote, but for the initializers and what has not changed.
OF_0_1 = {
    "name": "pool",
    "trainable": True,
    "output_size": [2, 2],
    "spatial_scale": 0.5,
    "samples_per_bin": 4,
    "aligned": False,
    "data_format": "channels_last",
    "gamma": 0.1,
    "filters": 3,
    "group_size": 2,
    "class_agnostic": False,
    "use_bias": True,
}


@pytest.mark.parametrize("change", [{}, {"output_size": None}], ids=["as it is", "no output size"])
def test_a_position_sensitive_layer_of_version_0_1(change, arrays):
    config = {**OF_0_1, **change}
    config["dtype"] = DeformablePSRoIPool(2, 2).get_config()["dtype"]
    layer = DeformablePSRoIPool.from_config(config)
    assert layer.output_size == (2, 2) and layer.score_filters == 3 and not layer.aligned
    images, boxes = arrays
    assert layer([images, boxes]).shape == (2, 5, 2, 2, 3)
    assert [tuple(w.shape) for w in layer.weights] == [
        (1, 1, 3, 12),
        (12,),
        (1, 1, 3, 24),
        (24,),
    ]
    again = DeformablePSRoIPool.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert config == {**OF_0_1, **change, "dtype": config["dtype"]}  # it is the caller's


@every_class
def test_config_round_trip_through_json(cls):
    layer = cls(**OTHER_THAN_DEFAULT[cls], **BASE_LAYER_ARGUMENTS)
    config = json.loads(json.dumps(layer.get_config()))
    twin = cls.from_config(config)
    assert json.loads(json.dumps(twin.get_config())) == config
    for argument in ("output_size", "spatial_scale", "samples_per_bin", "aligned"):
        assert getattr(twin, argument) == getattr(layer, argument)


@every_class
def test_serialized_under_the_packages_name(cls):
    assert tf.keras.utils.get_registered_name(cls) == f"tf_deformable>{cls.__name__}"


def test_clone_model(model, arrays):
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(predict(clone, arrays), predict(model, arrays), atol=1e-6)


@pytest.mark.parametrize("cls", [DeformableRoIPool, DeformablePSRoIPool])
def test_build_twice_creates_the_weights_once(cls, arrays):
    layer = cls(**OTHER_THAN_DEFAULT[cls])
    if cls is DeformablePSRoIPool:
        arrays = [*arrays, arrays[0]]  # what the offset fields are made of
    shapes = [array.shape for array in arrays]
    layer.build(shapes)
    weights = layer.get_weights()
    layer.build(shapes)
    layer(arrays)
    assert len(layer.weights) == len(weights) == (6 if cls is DeformableRoIPool else 3)
    for before, after in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


# --- Files ---------------------------------------------------------------------------------------


def test_keras_file(model, arrays, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_allclose(predict(loaded, arrays), predict(model, arrays), atol=1e-6)


def test_keras_file_of_a_trained_model_trains_on(model, arrays, tmp_path):
    targets = np.zeros([2, 5, 2, 2, 4])
    model.compile("adam", "mse")
    model.fit(arrays, targets, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded, arrays), predict(model, arrays), atol=1e-6)
    assert np.isfinite(loaded.fit(arrays, targets, verbose=0).history["loss"]).all()


def test_weights_file(model, arrays, tmp_path):
    expected = predict(model, arrays)
    model.save_weights(tmp_path / "model.weights.h5")
    twin = tf.keras.models.clone_model(model)
    assert not np.allclose(predict(twin, arrays), expected)
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(predict(twin, arrays), expected, atol=1e-6)


def test_checkpoint(model, arrays, tmp_path):
    expected = predict(model, arrays)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    twin = tf.keras.models.clone_model(model)
    tf.train.Checkpoint(model=twin).restore(path).expect_partial()
    np.testing.assert_allclose(predict(twin, arrays), expected, atol=1e-6)


@pytest.mark.parametrize("file", ["export", "saved"])
def test_saved_model_with_other_numbers_of_boxes(model, arrays, tmp_path, file):
    if file == "export":
        model.export(str(tmp_path / file))
    else:
        tf.saved_model.save(model, str(tmp_path / file))
    serve = tf.saved_model.load(str(tmp_path / file)).signatures["serving_default"]
    names = {spec.shape.rank: name for name, spec in serve.structured_input_signature[1].items()}

    random = np.random.default_rng(3)
    boxes = (random.uniform(0, 9, [3, 11, 4]) + [0, 0, 9, 9]).astype(np.float32)
    others = [random.normal(size=[3, 25, 16, 3]).astype(np.float32), boxes]
    for images, boxes in (arrays, others):
        request = {names[4]: tf.constant(images), names[3]: tf.constant(boxes)}
        (outputs,) = serve(**request).values()
        np.testing.assert_allclose(outputs, predict(model, [images, boxes]), atol=1e-5)


def test_tf_keras_saved_model_format(model, arrays, tmp_path, is_keras_3):
    if is_keras_3:
        pytest.skip("Keras 3 has model.export instead")
    model.save(tmp_path / "model", save_format="tf")
    loaded = tf.keras.models.load_model(tmp_path / "model")
    for twin, layer in zip(loaded.layers, model.layers, strict=True):
        assert type(twin) is type(layer) and twin.get_config() == layer.get_config()
    np.testing.assert_allclose(predict(loaded, arrays), predict(model, arrays), atol=1e-6)
