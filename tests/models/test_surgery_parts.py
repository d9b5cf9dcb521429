"""What stands for one layer, how a layer is copied, and what one costs: in small models."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import compare, deformable_layer, deformify
from tf_deformable.models.costs import layer_costs
from tf_deformable.models.surgery.replace import holds_convolutions

layers = tf.keras.layers


def images_of(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# --- What stands for a convolution ---------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        lambda **each: layers.Conv2D(4, 3, kernel_regularizer="l1", **each),
        lambda **each: layers.DepthwiseConv2D(3, depthwise_regularizer="l1", **each),
        lambda **each: layers.SeparableConv2D(
            4, 3, depthwise_regularizer="l1", pointwise_regularizer="l2", **each
        ),
    ],
    ids=["Conv2D", "DepthwiseConv2D", "SeparableConv2D"],
)
def test_what_it_adds_to_the_loss_stays(layer):
    layer = layer(bias_regularizer="l2", bias_initializer="ones", activity_regularizer="l2")
    images = images_of(2, 7, 8, 3)
    layer(images)
    new = deformable_layer(layer)
    for each in (layer, new):
        each(images)
    np.testing.assert_allclose(sum(new.losses), sum(layer.losses), rtol=1e-5)


def test_a_separable_convolution_becomes_a_deformable_one_and_one_of_one_pixel():
    layer = layers.SeparableConv2D(
        4, (2, 3), strides=2, depth_multiplier=2, activation="relu", name="separable"
    )
    images = images_of(2, 7, 8, 3)
    expected = layer(images)
    new = deformable_layer(layer)
    np.testing.assert_allclose(new(images), expected, atol=1e-5)
    depthwise, pointwise = new.layers
    assert isinstance(depthwise, DeformableConv2D) and not depthwise.use_bias
    assert depthwise.strides == (2, 2) and depthwise.groups == 3 and depthwise.filters == 6
    assert depthwise.activation is tf.keras.activations.linear
    assert pointwise.strides == pointwise.kernel_size == (1, 1) and pointwise.use_bias
    assert pointwise.activation is tf.keras.activations.relu


def test_a_convolution_of_maps_with_channels_first():
    last = layers.Conv2D(4, 3, groups=2)
    images = images_of(2, 7, 8, 6)
    expected = last(images)
    first = layers.Conv2D(4, 3, groups=2, data_format="channels_first")
    first.build((None, 6, 7, 8))
    first.set_weights(last.get_weights())

    new = deformable_layer(first)

    assert new.data_format == "channels_first"
    outputs = new(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(np.transpose(outputs, [0, 2, 3, 1]), expected, atol=1e-5)


def test_a_layer_holds_what_is_inside_of_it():
    convolution = layers.Conv2D(4, 3)
    assert not holds_convolutions(convolution)
    assert not holds_convolutions(layers.Dense(3))
    assert holds_convolutions(layers.TimeDistributed(convolution))


# --- Copies --------------------------------------------------------------------------------------


def scaled(tensor, factor=1.0):
    return tensor * factor


def no_mask(inputs, mask=None):
    return None


def test_lambda_layers_keep_what_they_were_given():
    images = tf.keras.Input((8, 8, 3))
    features = layers.Lambda(
        scaled, arguments={"factor": 3.0}, mask=no_mask, dtype="float64", name="scaled"
    )(images)
    model = tf.keras.Model(images, layers.Conv2D(4, 3, dtype="float64", name="last")(features))

    copy = deformify(model, ["last"])

    old, new = (each.get_layer("scaled") for each in (model, copy))
    assert new is not old and new.function.__name__ == "scaled"
    assert new.arguments == {"factor": 3.0} and new.mask.__name__ == "no_mask"
    assert new.compute_dtype == "float64"
    given = images_of(2, 8, 8, 3)
    np.testing.assert_allclose(copy(given), model(given), atol=1e-5)


class Plain(layers.Layer):
    """A layer whose constructor does not take what all layers do."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_a_constructor_that_takes_no_dtype_keeps_it_anyway(is_keras_3):
    if not is_keras_3:
        pytest.skip("this Keras cannot give a layer its dtype later")
    layer = Plain(2.0)
    layer.dtype_policy = tf.keras.mixed_precision.Policy("mixed_float16")
    images = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(images, layers.Conv2D(4, 3, name="last")(layer(images)))

    copy = deformify(model, ["last"])

    (new,) = (each for each in copy.layers if isinstance(each, Plain))
    assert new is not layer and new.name == layer.name
    assert new.compute_dtype == "float16" and new.variable_dtype == "float32"


# --- Costs ---------------------------------------------------------------------------------------


def test_a_layer_that_is_called_twice_costs_twice():
    images = tf.keras.Input((8, 9, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    once = shared(images)
    cost = layer_costs(tf.keras.Model(images, once))["shared"]
    assert cost.multiply_adds == 8 * 9 * 9 * 3 * 3
    twice = layer_costs(tf.keras.Model(images, shared(shared(images))))["shared"]
    assert twice.multiply_adds == 2 * cost.multiply_adds
    assert twice.parameters == cost.parameters == 9 * 3 * 3 + 3


def test_the_size_of_images_that_a_model_asks_for_is_not_changed():
    def model(height, width):
        images = tf.keras.Input((height, width, 3))
        return tf.keras.Model(images, layers.Conv2D(4, 3, padding="same", name="last")(images))

    for size, expected in (((8, 9), 8 * 9), ((None, 9), 20 * 9), ((None, None), 20 * 30)):
        cost = layer_costs(model(*size), input_size=(20, 30))["last"]
        assert cost.multiply_adds == expected * 9 * 3 * 4


@pytest.mark.parametrize("modulated", [False, True])
def test_a_deformable_convolution_samples_and_predicts(modulated):
    images = tf.keras.Input((8, 9, 6))
    layer = DeformableConv2D(4, (3, 2), groups=2, modulated=modulated, name="deformable")
    model = tf.keras.Model(images, layer(images))
    outputs, taps = 6 * 8, 6
    branch = taps * (3 if modulated else 2)
    samples = 5 if modulated else 4
    assert layer_costs(model)["deformable"].multiply_adds == outputs * taps * (
        6 * samples + 3 * 4 + 6 * branch
    )


def test_layers_of_one_network_alone_are_no_change():
    def model(*names):
        images = tf.keras.Input((8, 8, 3))
        features = images
        for name in names:
            features = layers.Conv2D(3, 3, name=name)(features)
        return tf.keras.Model(images, features)

    comparison = compare(model("a"), model("a", "ab"))
    assert not comparison.changes
    assert comparison.parameters == (84, 168)
