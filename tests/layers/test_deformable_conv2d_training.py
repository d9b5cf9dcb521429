"""Training with `DeformableConv2D`: compile and fit, custom steps, precision, regularisation."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.xla import needs_lowering
from tf_deformable import config
from tf_deformable.layers import DeformableConv2D


@pytest.fixture(scope="module")
def shifted():
    """Noise, and the same noise sampled 0.4 pixels further down: what one offset can learn."""
    images = np.random.default_rng(1).normal(size=[64, 9, 9, 1]).astype(np.float32)
    below = np.pad(images, [(0, 0), (0, 1), (0, 0), (0, 0)])[:, 1:]
    return images, 0.6 * images + 0.4 * below


@pytest.fixture
def policy(request):
    """The global policy, as a user sets it for a whole model."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf.keras.mixed_precision.set_global_policy(before)


def one_tap(**arguments):
    return DeformableConv2D(1, 1, kernel_initializer="ones", name="deformable", **arguments)


def gradients_of(layer, inputs):
    """Gradients of some loss by the layer's weights and by the inputs."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        loss = tf.reduce_sum(outputs**2)
    variables = {weight.name.split("/")[-1].split(":")[0]: weight for weight in layer.weights}
    return tape.gradient(loss, {"inputs": inputs, **variables})


@pytest.mark.parametrize(
    "policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"], indirect=True
)
def test_fit_learns_the_offset(shifted, policy):
    model = tf.keras.Sequential([tf.keras.Input((None, None, 1)), one_tap()])
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss="mse")
    history = model.fit(*shifted, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.1 * history[0]
    offset = np.asarray(model.get_layer("deformable").get_weights()[3])
    np.testing.assert_allclose(offset, [0.4, 0.0], atol=0.03)


def test_default_compile_chooses_xla_on_an_accelerator(monkeypatch, is_keras_3):
    if not is_keras_3:
        pytest.skip("tf-keras chooses XLA only when it is told to")
    accelerator = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [accelerator])
    model = tf.keras.Sequential([tf.keras.Input((None, None, 1)), one_tap()])
    with tf_deformable.config.use_backend("native"):
        model.compile("sgd", "mse")
    assert model.jit_compile is config.build_info()["xla"]


def fitted(shifted, **options):
    """Returns a network, trained from the same weights, and its losses."""
    tf.keras.utils.set_random_seed(3)
    model = tf.keras.Sequential(
        [
            tf.keras.Input((9, 9, 1)),
            DeformableConv2D(4, 3, padding="same", activation="relu"),
            DeformableConv2D(1, 3, padding="same", modulated=True, offset_groups=2, groups=1),
        ]
    )
    model.compile(tf.keras.optimizers.SGD(0.05), "mse", **options)
    return model, model.fit(*shifted, batch_size=16, epochs=3, verbose=0).history["loss"]


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_lowering), "reference"])
def test_fit_under_xla(shifted, backend):
    with tf_deformable.config.use_backend(backend):
        compiled, losses = fitted(shifted, jit_compile=True)
        plain, expected = fitted(shifted)
    assert compiled.jit_compile
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for got, want in zip(compiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@needs_lowering
@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"], indirect=True)
def test_fit_under_xla_learns_the_offset(shifted, policy):
    model = tf.keras.Sequential([tf.keras.Input((9, 9, 1)), one_tap()])
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    model.fit(*shifted, batch_size=16, epochs=6, verbose=0)
    offset = np.asarray(model.get_layer("deformable").get_weights()[3])
    np.testing.assert_allclose(offset, [0.4, 0.0], atol=0.03)


def test_modulated_layer_in_a_network_moves_every_weight(shifted):
    images, targets = shifted
    model = tf.keras.Sequential(
        [
            tf.keras.Input((9, 9, 1)),
            tf.keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            DeformableConv2D(
                4, 3, padding="same", modulated=True, offset_groups=2, activation="relu"
            ),
            tf.keras.layers.Conv2D(1, 1),
        ]
    )
    before = model.get_weights()
    model.compile("adam", "mse")
    history = model.fit(images, targets, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.abs(new - old).max() > 0, weight.name


def test_custom_training_loop(shifted):
    images, targets = shifted
    layer = one_tap(offset_learning_rate_multiplier=0.5)
    model = tf.keras.Sequential([tf.keras.Input((None, None, 1)), layer])
    optimizer = tf.keras.optimizers.SGD(0.2)

    @tf.function
    def step(images, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(images, training=True) - targets) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    losses = [float(step(images, targets)) for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]
    np.testing.assert_allclose(layer.offset_bias.numpy(), [0.4, 0.0], atol=0.05)


@pytest.mark.parametrize("strides", [1, 2, (2, 3)])
@pytest.mark.parametrize("dilation_rate", [1, 2, (3, 2)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_gradients_reach_all_weights_and_the_inputs(strides, dilation_rate, data_format):
    layer = DeformableConv2D(
        4,
        3,
        strides,
        "same",
        data_format,
        dilation_rate,
        modulated=True,
        offset_kernel_initializer="glorot_uniform",
    )
    shape = [2, 9, 8, 3] if data_format == "channels_last" else [2, 3, 9, 8]
    for name, gradient in gradients_of(layer, tf.random.normal(shape)).items():
        assert gradient is not None, name
        assert np.isfinite(gradient).all() and np.any(gradient), name


@pytest.mark.parametrize("multiplier", [0.0, 0.125, 4.0])
def test_offset_multiplier_scales_the_branch_and_nothing_else(multiplier):
    inputs = tf.random.normal([2, 9, 8, 3])
    arguments = {"modulated": True, "offset_kernel_initializer": "glorot_uniform"}
    plain = DeformableConv2D(4, 3, **arguments)
    plain.build(inputs.shape)
    scaled = DeformableConv2D(4, 3, offset_learning_rate_multiplier=multiplier, **arguments)
    scaled.build(inputs.shape)
    scaled.set_weights(plain.get_weights())
    np.testing.assert_array_equal(scaled(inputs), plain(inputs))

    expected, got = gradients_of(plain, inputs), gradients_of(scaled, inputs)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(got[name], expected[name])
    for name in ("offset_kernel", "offset_bias"):  # powers of two: nothing is rounded
        np.testing.assert_array_equal(got[name], multiplier * expected[name])


def test_regularizers_contribute_to_the_losses(shifted):
    layer = DeformableConv2D(
        2,
        1,
        kernel_initializer="ones",
        bias_initializer="ones",
        offset_kernel_initializer="ones",
        offset_bias_initializer="ones",
        kernel_regularizer=tf.keras.regularizers.L1(1.0),
        bias_regularizer=tf.keras.regularizers.L1(10.0),
        offset_kernel_regularizer=tf.keras.regularizers.L1(100.0),
        offset_bias_regularizer=tf.keras.regularizers.L1(1000.0),
    )
    layer(shifted[0][:2])
    assert sorted(float(loss) for loss in layer.losses) == [2, 20, 200, 2000]


def test_activity_regularizer_sees_the_output():
    layer = DeformableConv2D(
        1, 1, kernel_initializer="ones", activity_regularizer=tf.keras.regularizers.L1(1.0)
    )
    model = tf.keras.Sequential([tf.keras.Input((2, 2, 1)), layer])
    model(tf.ones([1, 2, 2, 1]))
    assert [float(loss) for loss in model.losses] == [4.0]


def test_constraints_hold_after_a_step(shifted):
    layer = one_tap(kernel_constraint="non_neg", bias_constraint=tf.keras.constraints.MaxNorm(0.01))
    model = tf.keras.Sequential([tf.keras.Input((None, None, 1)), layer])
    model.compile(tf.keras.optimizers.SGD(1.0), "mse")
    images, _ = shifted
    model.fit(images, 1 - images, epochs=1, verbose=0)
    kernel, bias, *_ = layer.get_weights()
    assert (kernel >= 0).all()
    assert 0 < np.linalg.norm(bias) <= 0.0101


def test_frozen_layer_stays_while_others_train(shifted):
    layer = one_tap(modulated=True)
    model = tf.keras.Sequential([tf.keras.Input((9, 9, 1)), tf.keras.layers.Conv2D(1, 1), layer])
    layer.trainable = False
    assert not layer.trainable_weights and len(model.trainable_weights) == 2
    before = model.get_weights()
    model.compile("adam", "mse")
    model.fit(*shifted, epochs=1, verbose=0)
    after = model.get_weights()
    assert not np.array_equal(before[0], after[0])
    for old, new in zip(before[2:], after[2:], strict=True):
        np.testing.assert_array_equal(old, new)
