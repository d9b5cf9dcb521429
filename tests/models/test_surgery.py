"""`deformify`: networks made deformable compute, train, save and serve as before."""

import re

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import compare, deformable_layer, deformify

layers = tf.keras.layers

# Network, size of the images, layers that "conv5" chooses: the first of them, and how many.
NETWORKS = {
    "ResNet50": (64, "conv5_block1_2_conv", 3),
    "ResNet101V2": (64, "conv5_block1_2_conv", 3),
    "EfficientNetB0": (64, "block6b_dwconv", 4),
    "MobileNet": (64, "conv_dw_13", 1),
    "MobileNetV2": (64, "block_14_depthwise", 3),
}
OTHER_NETWORKS = {
    "DenseNet121": (64, "conv5_block1_2_conv", 16),
    "VGG16": (32, "block5_conv1", 3),
    "InceptionV3": (96, None, 10),
    "Xception": (80, "block14_sepconv1/block14_sepconv1_depthwise", 2),
    "ConvNeXtTiny": (64, "convnext_tiny_stage_3_block_0_depthwise_conv", 3),
    "RegNetY002": (64, "regnety002_Stage_3_YBlock_1_conv_3x3", 6),
}


def images_of(model, size=None, count=2):
    shape = [count, *(extent or size for extent in tuple(model.inputs[0].shape)[1:])]
    return np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)


def trained(model):
    """Gives every weight another value than its first one, as training does."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        value = np.asarray(tf.convert_to_tensor(weight))
        if np.issubdtype(value.dtype, np.floating):
            noise = 0.1 * rng.uniform(size=value.shape)
            weight.assign(value + noise * np.abs(value) + (0.01 * noise if value.ndim == 1 else 0))
    return model


def network(name, size, **arguments):
    build = getattr(tf.keras.applications, name)
    shape = (size, size, 3)
    return trained(build(weights=None, include_top=False, input_shape=shape, **arguments))


def deformable_layers(model, prefix=""):
    found = {}
    for layer in model.layers:
        if isinstance(layer, DeformableConv2D):
            found[prefix + layer.name] = layer
        elif isinstance(layer, tf.keras.Model):
            found |= deformable_layers(layer, f"{prefix}{layer.name}/")
    return found


def assert_same_outputs(deformed, model, size=None):
    images = images_of(model, size)
    expected, got = model(images).numpy(), deformed(images).numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def user_network():
    """Everything that has to be kept: groups, biases, activations, regularizers, policies."""
    inputs = tf.keras.Input((None, None, 4), name="images")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(
        12, (3, 2), groups=4, use_bias=False, kernel_regularizer="l2", name="grouped"
    )(x)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.DepthwiseConv2D(
        3, depth_multiplier=2, padding="same", activation="tanh", name="depthwise"
    )(x)
    y = layers.SeparableConv2D(12, 3, padding="same", depth_multiplier=2, name="separable")(y)
    x = layers.add([x, y], name="sum")
    x = layers.Conv2DTranspose(6, 3, strides=2, name="up")(x)
    return trained(tf.keras.Model(inputs, {"map": layers.Conv2D(3, 5, name="last")(x)}))


def small_network(**arguments):
    return tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="second"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="classifier"),
        ],
        **arguments,
    )


# --- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_did(name):
    size, first, number = NETWORKS[name]
    model = network(name, size)
    deformed = deformify(model, modulated=name == "MobileNet")
    found = deformable_layers(deformed)
    assert len(found) == number and next(iter(found)) == first
    assert_same_outputs(deformed, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_other_networks_compute_what_they_did(name):
    size, first, number = OTHER_NETWORKS[name]
    if name == "InceptionV3":  # Its layers are numbered: by all those of this process.
        tf.keras.backend.clear_session()
    if not hasattr(tf.keras.applications, name):
        pytest.skip("this Keras does not have it")
    model = network(name, size)
    deformed = deformify(model)
    found = deformable_layers(deformed)
    assert len(found) == number and first in (None, next(iter(found)))
    assert_same_outputs(deformed, model)


@pytest.mark.parametrize("modulated", [False, True])
def test_users_own_network_of_every_kind_of_layer(modulated):
    model = user_network()
    deformed = deformify(
        model,
        ["grouped", "depthwise", "separable", "last"],
        modulated=modulated,
        offset_learning_rate_multiplier=0.5,
    )
    assert sorted(deformable_layers(deformed)) == [
        "depthwise",
        "grouped",
        "last",
        "separable/separable_depthwise",
    ]
    images = images_of(model, 12)
    np.testing.assert_allclose(
        deformed(images)["map"].numpy(), model(images)["map"].numpy(), atol=1e-5
    )
    grouped, last = deformed.get_layer("grouped"), deformed.get_layer("last")
    assert grouped.groups == 4 and grouped.kernel_size == (3, 2) and not grouped.use_bias
    assert grouped.modulated == modulated and grouped.offset_learning_rate_multiplier == 0.5
    assert isinstance(grouped.kernel_regularizer, tf.keras.regularizers.L2)
    assert last.padding == "valid"
    assert [layer.name for layer in deformed.layers] == [layer.name for layer in model.layers]


def test_sequential_network_stays_one():
    model = trained(small_network(name="small"))
    deformed = deformify(model)
    assert type(deformed) is type(model) and deformed.name == "small"
    assert list(deformable_layers(deformed)) == ["second"]
    assert_same_outputs(deformed, model, 9)


def test_sequential_network_without_an_input_layer():
    model = tf.keras.Sequential([layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")])
    with pytest.raises(ValueError, match="not built"):
        deformify(model)
    model(np.zeros([1, 9, 9, 3], np.float32))
    deformed = deformify(trained(model), "b")
    assert_same_outputs(deformed, model, 9)


def test_nested_networks_and_shared_layers():
    backbone = small_backbone()
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    one, other = tf.keras.Input((16, 16, 3), name="one"), tf.keras.Input((16, 16, 3), name="other")
    maps = [shared(shared(backbone(images))) for images in (one, other)]
    model = trained(tf.keras.Model([one, other], layers.subtract(maps, name="difference")))
    deformed = deformify(model, ["backbone/second", "shared"])
    assert sorted(deformable_layers(deformed)) == ["backbone/second", "shared"]

    images = np.random.default_rng(0).normal(size=[2, 2, 16, 16, 3]).astype(np.float32)
    np.testing.assert_allclose(deformed(list(images)), model(list(images)), atol=1e-4)
    # One layer each, not one per call: as many weights as there were, and two offset branches.
    branches = sum(
        int(np.prod(weight.shape))
        for layer in deformable_layers(deformed).values()
        for weight in (layer.offset_kernel, layer.offset_bias)
    )
    assert deformed.count_params() == model.count_params() + branches


def small_backbone():
    inputs = tf.keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="first")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    return tf.keras.Model(inputs, x, name="backbone")


def test_a_layer_that_two_nested_networks_share_stays_shared():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    parts = []
    for name in ("a", "b"):
        inputs = tf.keras.Input((8, 8, 3))
        parts.append(tf.keras.Model(inputs, shared(inputs), name=name))
    inputs = tf.keras.Input((8, 8, 3))
    model = trained(tf.keras.Model(inputs, parts[1](parts[0](inputs))))
    deformed = deformify(model, "shared")
    assert deformed.get_layer("a").layers[-1] is deformed.get_layer("b").layers[-1]
    assert_same_outputs(deformed, model)


def test_lambda_layers_and_operations_are_kept():
    inputs = tf.keras.Input((8, 8, 3))
    factor = 2.0
    x = layers.Lambda(lambda t: t * factor, name="double")(inputs)
    x = tf.keras.activations.relu(x + 1.0)
    x = layers.Conv2D(4, 3, name="conv")(x)[:, 1:]
    model = trained(tf.keras.Model(inputs, x))
    assert_same_outputs(deformify(model, "conv"), model)


def test_normalization_layer_keeps_what_it_has_adapted_to():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, [64, 8, 8, 3]))
    inputs = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(normalization(inputs)))
    assert_same_outputs(deformify(model, "conv"), model)


def test_model_stays_as_it_is():
    model = trained(small_network())
    before = model.get_weights()
    deformed = deformify(model)
    for weight in deformed.weights:
        weight.assign(tf.ones_like(weight))
    assert not deformable_layers(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


# --- Choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        "second",
        "sec.*",
        re.compile("s.co.d"),
        ["second"],
        ("second",),
        lambda layer: layer.strides == (1, 1),
    ],
)
def test_ways_to_choose(chosen):
    assert list(deformable_layers(deformify(small_network(), chosen))) == ["second"]


def test_conv5_reads_the_coarsest_maps_and_no_pointwise_kernels():
    inputs = tf.keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="to_2")(inputs)
    skip = x
    x = layers.MaxPooling2D(name="to_4")(x)
    x = layers.Conv2D(4, 3, padding="same", name="at_4")(x)
    x = layers.Conv2D(4, 1, name="pointwise_at_4")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.multiply([x, layers.Conv2D(4, 1, name="gate")(gate)])
    x = layers.Conv2D(4, (1, 3), padding="same", name="row_at_4")(x)
    x = layers.UpSampling2D(name="back_to_2")(x)
    x = layers.Conv2D(4, 3, padding="same", name="at_2")(layers.add([x, skip]))
    x = layers.Conv2DTranspose(4, 2, strides=2, name="back_to_1")(x)
    x = layers.Conv2D(4, 3, name="at_1")(x)
    model = tf.keras.Model(inputs, x)
    assert list(deformable_layers(deformify(model))) == ["at_4", "row_at_4"]


@pytest.mark.parametrize("size", [(12, 16), (None, None)])
def test_channels_first_is_what_the_layers_say(size):
    """Keras itself is set to channels last; the CPU cannot run such a network, but a GPU can."""
    inputs = tf.keras.Input((3, *size))
    first = {"padding": "same", "data_format": "channels_first"}
    x = layers.Conv2D(4, 3, strides=2, name="to_2", **first)(inputs)
    x = layers.Conv2D(4, 3, strides=2, name="to_4", **first)(x)
    y = layers.Conv2D(4, 3, name="a", **first)(x)
    y = layers.Concatenate(axis=1)([x, y])
    model = tf.keras.Model(inputs, layers.Conv2D(4, 3, name="b", **first)(y))
    deformed = deformify(model)
    assert list(deformable_layers(deformed)) == ["a", "b"]
    before, after = compare(model, deformed, input_size=(12, 16)).multiply_adds
    assert before == 6 * 8 * 9 * 3 * 4 + 3 * 4 * 9 * (4 + 4 + 8) * 4
    assert after - before == 3 * 4 * 9 * (4 + 8) * (18 + 4)


def test_what_cannot_be_chosen_is_refused_by_name():
    class Custom(layers.Conv2D):
        pass

    inputs = tf.keras.Input((8, 8, 4))
    x = Custom(4, 3, padding="same", name="custom")(inputs)
    x = layers.Conv2DTranspose(4, 3, padding="same", name="transposed")(x)
    x = layers.TimeDistributed(layers.Conv1D(4, 3, padding="same"), name="rows")(x)
    x = layers.BatchNormalization(name="norm")(x)
    model = tf.keras.Model(inputs, x)
    for name, words in {
        "custom": "'custom' cannot be replaced: it is a Custom",
        "transposed": "UpSampling2D and a Conv2D",
        "norm": "it is a BatchNormalization, not a Conv2D",
        "rows": "it is a TimeDistributed",
        "costum": "no layer 'costum'; similar names: custom",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            deformify(model, [name])
    with pytest.raises(ValueError, match="no convolution has a name that matches 'x.*'; there are"):
        deformify(model, "x.*")
    with pytest.raises(ValueError, match="no convolution is a plain convolution .* custom, trans"):
        deformify(model)
    deformed = deformify(small_network(), "second")
    with pytest.raises(ValueError, match="deformable already"):
        deformify(deformed, "second")
    assert list(deformable_layers(deformify(deformed, "first"))) == ["first", "second"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": 3}, TypeError, "layers must be a string, a pattern, .* got 3"),
        ({"layers": "("}, ValueError, r"layers must be a regular expression, got '\(': missing"),
        ({"filters": 3}, TypeError, "filters is what the convolution has, .* got filters=3"),
        ({"padding": "same"}, TypeError, "padding is what the convolution has"),
        ({"modulate": True}, TypeError, "no argument 'modulate'"),
        (
            {"offset_kernel_regularisor": "l2"},
            TypeError,
            "no argument .*; similar names: offset_kernel_regularizer",
        ),
        (
            {"offset_groups": 3},
            ValueError,
            "'second': inputs channels .* offset groups, got C=8 and G=3",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        deformify(small_network(), **arguments)


def test_subclassed_models_are_refused_and_told_what_to_do():
    class Network(tf.keras.Model):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def call(self, inputs):
            return self.conv(inputs)

    model = Network(layers.Conv2D(6, 3, groups=2))
    images = np.random.default_rng(0).normal(size=[2, 8, 8, 4]).astype(np.float32)
    expected = model(images).numpy()
    with pytest.raises(ValueError, match=r"subclassed \(Network\).*deformable_layer"):
        deformify(model)
    twin = Network(deformable_layer(model.conv))
    np.testing.assert_allclose(twin(images), expected, atol=1e-5)

    with pytest.raises(TypeError, match="must be a Keras model, got .*Conv2D"):
        deformify(layers.Conv2D(3, 3))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(6, (2, 3), groups=3, dilation_rate=2),
        layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same"),
        layers.SeparableConv2D(4, 3, activation="relu", strides=2, use_bias=False),
    ],
)
def test_layer_by_itself(layer):
    images = np.random.default_rng(0).normal(size=[2, 8, 9, 6]).astype(np.float32)
    with pytest.raises(ValueError, match="no weights yet"):
        deformable_layer(layer)
    expected = layer(images)
    deformable = deformable_layer(layer, modulated=True)
    assert deformable.built and deformable.name == layer.name
    np.testing.assert_allclose(deformable(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match="it is a Dense"):
        deformable_layer(layers.Dense(3))
    with pytest.raises(TypeError, match="deformable_layer: strides is what the convolution has"):
        deformable_layer(layer, strides=1)


# --- Dilation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNet50", "ResNet101V2", "MobileNetV2"])
def test_dilated_last_stage_computes_the_features_between(name):
    """Every second pixel of the denser map is the pixel that the network had."""
    model = network(name, 96)
    dilated = deformify(model, dilate_last_stage=True)
    images = images_of(model)
    expected, got = model(images).numpy(), dilated(images).numpy()
    assert expected.shape[1] == 3 and got.shape[1] == 6
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got[:, ::2, ::2], expected, atol=1e-4 * scale)
    rates = {layer.dilation_rate for layer in deformable_layers(dilated).values()}
    assert rates == {(2, 2)}


def test_dilation_includes_what_is_not_deformable():
    inputs = tf.keras.Input((None, None, 3))
    x = layers.Conv2D(4, 2, strides=2, name="patches")(inputs)
    x = layers.ZeroPadding2D(1, name="pad_a")(x)
    x = layers.Conv2D(4, 3, name="a")(x)
    x = layers.ZeroPadding2D(((2, 2), (1, 1)), name="pad_b")(x)
    x = layers.Conv2D(4, (5, 3), name="b")(x)
    model = trained(tf.keras.Model(inputs, x))
    dilated = deformify(model, ["b"], dilate_last_stage=True)
    assert dilated.get_layer("patches").strides == (1, 1)
    assert dilated.get_layer("a").dilation_rate == (2, 2)
    assert dilated.get_layer("pad_b").padding == ((4, 4), (2, 2))
    images = images_of(model, 16)
    got = dilated(images).numpy()
    assert got.shape == (2, 16, 16, 4)
    np.testing.assert_allclose(got[:, ::2, ::2], model(images).numpy(), atol=1e-5)


def test_dilation_alone():
    model = trained(small_network())
    dilated = deformify(model, None, dilate_last_stage=True)
    assert not deformable_layers(dilated)
    assert dilated.get_layer("second").dilation_rate == (2, 2)
    with pytest.raises(ValueError, match="nothing to do"):
        deformify(model, None)


def test_dilation_that_does_not_fit_is_refused():
    flat = tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.Conv2D(4, 3, padding="same"),
            layers.Flatten(),
            layers.Dense(2, name="classifier"),
        ]
    )
    with pytest.raises(ValueError, match="layer 'classifier' is made for feature maps of another"):
        deformify(flat, dilate_last_stage=True)

    inputs = tf.keras.Input((16, 16, 3))
    down = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    up = layers.UpSampling2D()(layers.Conv2D(4, 3, padding="same")(down))
    with pytest.raises(ValueError, match="where its layers meet"):
        deformify(tf.keras.Model(inputs, layers.concatenate([inputs, up])), dilate_last_stage=True)
    with pytest.raises(ValueError, match="no map coarser than its input"):
        deformify(
            tf.keras.Sequential([tf.keras.Input((8, 8, 3)), layers.Conv2D(4, 3)]),
            dilate_last_stage=True,
        )


# --- Training, precision, files ------------------------------------------------------------------


def test_trains_and_gradients_reach_every_new_weight():
    model = trained(small_network())
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    deformed = deformify(model, "first|second", modulated=True)
    before = deformed.get_weights()
    images = images_of(model, 12, count=8)
    targets = np.random.default_rng(2).normal(size=[8, 3]).astype(np.float32)
    first = deformed.evaluate(images, targets, verbose=0)[0]
    for _ in range(3):  # The offset kernels move once the others have.
        deformed.fit(images, targets, verbose=0)
    assert deformed.evaluate(images, targets, verbose=0)[0] < first
    for weight, old, new in zip(deformed.weights, before, deformed.get_weights(), strict=True):
        assert np.abs(new - old).max() > 0, weight.name
    assert type(deformed.optimizer) is type(model.optimizer)


def test_a_loss_that_keras_cannot_load_leaves_the_copy_uncompiled():
    def loss(truth, prediction):
        return tf.reduce_mean((truth - prediction) ** 2)

    model = small_network()
    model.compile("sgd", loss)
    deformed = deformify(model)
    deformed.compile("sgd", loss)
    history = deformed.fit(images_of(model, 8), np.zeros([2, 3]), verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_trainable_flags_are_kept():
    model = small_network()
    model.get_layer("first").trainable = False
    model.get_layer("second").trainable = False
    deformed = deformify(model)
    assert [layer.trainable for layer in deformed.layers] == [la.trainable for la in model.layers]
    assert not deformed.get_layer("second").trainable_weights
    backbone = small_backbone()
    backbone.trainable = False
    inputs = tf.keras.Input((8, 8, 3))
    outer = tf.keras.Model(inputs, layers.Conv2D(2, 1, name="head")(backbone(inputs)))
    deformed = deformify(outer)
    assert not deformed.get_layer("backbone").trainable
    assert len(deformed.trainable_weights) == 2


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_dtype_policies_are_kept(policy):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = small_network()
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    deformed = deformify(model)
    layer = deformed.get_layer("second")
    assert layer.compute_dtype == model.get_layer("second").compute_dtype != "float32"
    assert layer.dtype == model.get_layer("second").dtype
    images = images_of(model, 9)
    np.testing.assert_allclose(deformed(images), model(images), atol=1e-2)


def test_saves_loads_and_serves(tmp_path):
    model = network("MobileNetV2", 32, alpha=0.35)
    deformed = deformify(model, "block_1[56]_depthwise", modulated=True)
    for layer in deformable_layers(deformed).values():  # Offsets of zero could be lost unnoticed.
        layer.offset_bias.assign(tf.random.normal(layer.offset_bias.shape))
    images = images_of(model)
    expected = deformed(images).numpy()
    plain = model(images).numpy()
    assert np.abs(expected - plain).max() > 1e-3 * np.abs(plain).max()

    deformed.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-4, atol=1e-7)
    deformed.save_weights(tmp_path / "model.weights.h5")
    twin = deformify(model, "block_1[56]_depthwise", modulated=True)
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(twin(images), expected, rtol=1e-4, atol=1e-7)
    deformed.export(str(tmp_path / "export"))
    served = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(served.serve(images), expected, rtol=1e-4, atol=1e-7)


# --- Costs ---------------------------------------------------------------------------------------


def test_comparison_says_what_changed_and_what_it_costs():
    model = small_network()
    comparison = compare(model, deformify(model, dilate_last_stage=True), input_size=(20, 30))
    first, second = comparison.changes
    assert first.before.path == "first"
    assert (first.before.multiply_adds, first.after[0].multiply_adds) == (
        10 * 15 * 9 * 3 * 8,
        20 * 30 * 9 * 3 * 8,
    )
    assert second.before.parameters == 9 * 8 * 8 + 8
    assert second.after[0].parameters - second.before.parameters == 9 * 8 * 18 + 18
    assert second.before.multiply_adds == 10 * 15 * 9 * 8 * 8
    # The convolution, that of the offsets, and the bilinear samples.
    assert second.after[0].multiply_adds == 20 * 30 * 9 * 8 * (8 + 18 + 4)
    assert comparison.parameters[1] - comparison.parameters[0] == 9 * 8 * 18 + 18
    dense = 8 * 3
    assert comparison.multiply_adds[0] == 10 * 15 * 9 * 8 * (3 + 8) + dense
    text = str(comparison)
    assert "Conv2D -> DeformableConv2D, dilation_rate (1, 1) -> (2, 2)" in text
    assert "strides (2, 2) -> (1, 1)" in text and f"{comparison.parameters[1]:,}" in text

    unknown = compare(model, model)
    assert not unknown.changes and unknown.multiply_adds == (None, None)
    assert "input_size" in str(unknown)


@pytest.mark.skipif(hasattr(tf.keras, "ops"), reason="Keras 3 allows no slashes in names")
def test_comparison_of_names_with_slashes():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, name="block"),
            layers.BatchNormalization(name="block/norm"),
            layers.SeparableConv2D(4, 3, name="block/last"),
        ]
    )
    (change,) = compare(model, deformify(model, ["block/last"])).changes
    assert change.before.path == "block/last"
    assert [cost.kind for cost in change.after] == ["DeformableConv2D", "Conv2D"]


def test_costs_of_every_kind_of_layer_and_of_nested_networks():
    model = user_network()
    deformed = deformify(model, ["grouped", "separable"])
    comparison = compare(model, deformed, input_size=(12, 12))
    # 12x12 to 6x6, (3, 2) valid: 4x5, transposed: 9x11, 5x5 valid: 5x7.
    expected = (
        36 * 9 * 4 * 8
        + 20 * 6 * 2 * 12
        + 20 * 9 * 12 * 2
        + 20 * (9 * 24 * 2 + 48 * 12)
        + 20 * 9 * 12 * 6
        + 35 * 25 * 6 * 3
    )
    assert comparison.multiply_adds[0] == expected
    offsets = 20 * 6 * 8 * (12 + 4) + 20 * 9 * 24 * (18 + 4)
    assert comparison.multiply_adds[1] == expected + offsets
    assert [change.before.path for change in comparison.changes] == ["grouped", "separable"]
    assert "SeparableConv2D -> DeformableConv2D + Conv2D" in str(comparison)

    backbone = small_backbone()
    inputs = tf.keras.Input((None, None, 3))
    outer = tf.keras.Model(inputs, layers.Dense(5)(backbone(inputs)))
    comparison = compare(outer, deformify(outer, "second"), input_size=(8, 8))
    assert comparison.changes[0].before.path == "backbone/second"
    assert comparison.multiply_adds[0] == 16 * (9 * 3 * 8 + 9 * 8 * 8 + 8 * 5)


def test_public_name():
    assert tf_deformable.models.deformify is deformify
