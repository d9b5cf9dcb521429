"""Training with the RoI pooling layers: fit, gradients, precision, regularisation."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.xla import needs_lowering
from tf_deformable import DeformablePSRoIPool, DeformableRoIPool, PSRoIPool, RoIPool

GEOMETRY = {"output_size": 2, "spatial_scale": 0.5, "samples_per_bin": 2, "aligned": True}


@pytest.fixture(scope="module")
def waves():
    """Smooth maps and boxes, of which the last is padding."""
    random = np.random.default_rng(1)
    y, x = np.meshgrid(np.arange(24.0), np.arange(24.0), indexing="ij")
    phase = random.uniform(0, 6, [32, 2, 1, 1])
    maps = np.sin(y / 3 + phase[:, 0]) + np.cos(x / 3 + phase[:, 1])
    boxes = random.uniform(12, 16, [32, 3, 4]) + [0, 0, 18, 18]
    boxes[:, 2] = 0
    return maps[..., None].astype(np.float32), boxes.astype(np.float32)


@pytest.fixture(scope="module")
def moved(waves):
    """What the maps are where the boxes of `waves` move by (0.15, -0.1) of their size."""
    maps, boxes = waves
    size = boxes[..., 2:] - boxes[..., :2]
    shift = size * np.float32([0.15, -0.1])
    boxes = boxes + np.concatenate([shift, shift], axis=-1)
    return RoIPool(**GEOMETRY)([maps, boxes]).numpy()


@pytest.fixture
def policy(request):
    """The global policy, as a user sets it for a whole model."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf.keras.mixed_precision.set_global_policy(before)


def model_of(layer, channels=1):
    inputs = [tf.keras.Input((None, None, channels)), tf.keras.Input((None, 4))]
    return tf.keras.Model(inputs, layer(inputs))


def variables_of(layer):
    return {weight.name.split("/")[-1].split(":")[0]: weight for weight in layer.weights}


def gradients_of(layer, features, boxes):
    """Gradients of some loss by the layer's weights and by the features."""
    features = tf.convert_to_tensor(features)
    with tf.GradientTape() as tape:
        tape.watch(features)
        loss = tf.reduce_sum(layer([features, boxes]) ** 2)
    return tape.gradient(loss, {"features": features, **variables_of(layer)})


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"], indirect=True)
def test_fit_learns_how_bins_move(waves, moved, policy):
    layer = DeformableRoIPool(**GEOMETRY, gamma=1.0)
    model = model_of(layer)
    model.compile(optimizer=tf.keras.optimizers.SGD(0.05), loss="mse")
    history = model.fit(list(waves), moved, batch_size=8, epochs=12, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.1 * history[0]
    offsets, _ = layer.compute_offsets(list(waves))
    mean = np.mean(tf.cast(offsets[:, :2], tf.float32), axis=(0, 1, 2, 3))
    np.testing.assert_allclose(mean, [0.15, -0.1], atol=0.05)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_fit_moves_the_offset_fields(waves, moved, class_agnostic):
    maps, boxes = waves
    layer = DeformablePSRoIPool(
        group_size=2,
        score_filters=1,
        gamma=1.0,
        class_agnostic=class_agnostic,
        kernel_initializer="ones",
        **GEOMETRY,
    )
    model = model_of(layer)
    layer.kernel.assign(tf.ones_like(layer.kernel))
    before = model.get_weights()
    model.compile(optimizer=tf.keras.optimizers.SGD(0.05), loss="mse")
    history = model.fit([maps, boxes], moved, batch_size=8, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.abs(new - old).max() > 0, weight.name


def test_untrained_branch_trains(waves, moved):
    """From zero offsets on, every weight of a modulated branch with hidden layers moves."""
    layer = DeformableRoIPool(**GEOMETRY, offset_units=(8, 6), modulated=True)
    model = model_of(layer)
    before = model.get_weights()
    model.compile("adam", "mse")
    model.fit(list(waves), moved, batch_size=8, epochs=2, verbose=0)
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.abs(new - old).max() > 0, weight.name


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_lowering), "reference"])
def test_fit_under_xla(waves, moved, backend):
    losses, weights = [], []
    with tf_deformable.config.use_backend(backend):
        for options in ({"jit_compile": True}, {}):
            tf.keras.utils.set_random_seed(3)
            model = model_of(DeformableRoIPool(**GEOMETRY, gamma=1.0))
            model.compile(tf.keras.optimizers.SGD(0.05), "mse", **options)
            history = model.fit(list(waves), moved, batch_size=8, epochs=2, verbose=0).history
            losses.append(history["loss"])
            weights.append(model.get_weights())
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for got, want in zip(*weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        RoIPool(**GEOMETRY),
        PSRoIPool(group_size=2, **GEOMETRY),
        DeformableRoIPool(
            **GEOMETRY,
            offset_units=(5,),
            modulated=True,
            offset_kernel_initializer="glorot_uniform",
        ),
        DeformablePSRoIPool(
            group_size=2, score_filters=3, **GEOMETRY, offset_kernel_initializer="glorot_uniform"
        ),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_gradients_reach_all_weights_and_the_features(layer, waves):
    features = tf.random.normal([32, 24, 24, 8])
    for name, gradient in gradients_of(layer, features, waves[1]).items():
        assert gradient is not None, name
        assert np.isfinite(gradient).all() and np.any(gradient), name


@pytest.mark.parametrize("multiplier", [0.0, 0.125, 4.0])
@pytest.mark.parametrize("cls", [DeformableRoIPool, DeformablePSRoIPool])
def test_offset_multiplier_scales_the_branch_and_nothing_else(cls, multiplier, waves):
    maps, boxes = waves
    arguments = {**GEOMETRY, "offset_kernel_initializer": "glorot_uniform"}
    if cls is DeformablePSRoIPool:
        arguments.update(score_filters=3, group_size=2)
    plain, scaled = cls(**arguments), cls(**arguments, offset_learning_rate_multiplier=multiplier)
    for layer in (plain, scaled):
        layer.build([maps.shape, boxes.shape])
    scaled.set_weights(plain.get_weights())
    np.testing.assert_array_equal(scaled([maps, boxes]), plain([maps, boxes]))

    expected, got = gradients_of(plain, maps, boxes), gradients_of(scaled, maps, boxes)
    for name in variables_of(plain):
        factor = multiplier if name.startswith("offset") else 1.0
        np.testing.assert_allclose(got[name], factor * expected[name], rtol=1e-4, atol=1e-4)


def test_regularizers_contribute_to_the_losses(waves):
    def l1(factor):
        return tf.keras.regularizers.L1(factor)

    layer = DeformableRoIPool(
        1,
        offset_units=(1,),
        offset_hidden_kernel_initializer="ones",
        offset_kernel_initializer="ones",
        offset_bias_initializer="ones",
        offset_kernel_regularizer=l1(1.0),
        offset_bias_regularizer=l1(10.0),
    )
    layer(list(waves))
    assert sorted(float(loss) for loss in layer.losses) == [0, 1, 2, 20]  # hidden biases are 0

    layer = DeformablePSRoIPool(
        output_size=1,
        group_size=1,
        score_filters=1,
        kernel_initializer="ones",
        bias_initializer="ones",
        offset_kernel_initializer="ones",
        offset_bias_initializer="ones",
        kernel_regularizer=l1(1.0),
        bias_regularizer=l1(10.0),
        offset_kernel_regularizer=l1(100.0),
        offset_bias_regularizer=l1(1000.0),
    )
    layer(list(waves))
    assert sorted(float(loss) for loss in layer.losses) == [1, 10, 200, 2000]


def test_constraints_hold_after_a_step(waves, moved):
    layer = DeformablePSRoIPool(
        group_size=2,
        score_filters=1,
        kernel_constraint="non_neg",
        bias_constraint="non_neg",
        **GEOMETRY,
    )
    model = model_of(layer)
    model.compile(tf.keras.optimizers.SGD(1.0), "mse")
    model.fit(list(waves), -np.abs(moved), epochs=1, verbose=0)
    kernel, bias, *_ = layer.get_weights()
    assert (kernel >= 0).all() and (bias >= 0).all()


def test_frozen_layer_stays_while_others_train(waves, moved):
    layer = DeformableRoIPool(**GEOMETRY, offset_units=(4,), modulated=True)
    inputs = [tf.keras.Input((None, None, 1)), tf.keras.Input((None, 4))]
    features = tf.keras.layers.Conv2D(1, 3, padding="same")(inputs[0])
    model = tf.keras.Model(inputs, layer([features, inputs[1]]))
    layer.trainable = False
    assert not layer.trainable_weights and len(model.trainable_weights) == 2
    before = model.get_weights()
    model.compile("adam", "mse")
    model.fit(list(waves), moved, epochs=1, verbose=0)
    after = model.get_weights()
    assert not np.array_equal(before[0], after[0])
    for old, new in zip(before[2:], after[2:], strict=True):
        np.testing.assert_array_equal(old, new)
