"""The strides of maps: exact where a quotient of sizes is not, and none where there is none."""

import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable.graphs.strides import walk_strides

layers = tf.keras.layers


def strides_of(*stack, size=(None, None)):
    """The stride of what a stack of layers makes of images of this size."""
    inputs = tf.keras.Input((*size, 3))
    x = inputs
    for layer in stack:
        x = layer(x)
    _, (stride,) = walk_strides(tf.keras.Model(inputs, x))
    return stride


@tf.keras.utils.register_keras_serializable(package="test")
class Within(layers.Layer):
    """A layer of one's own that runs a function, and layers in it."""

    def __init__(self, function, *inner, **kwargs):
        super().__init__(**kwargs)
        self.function, self.inner = function, list(inner)

    def call(self, inputs):
        for layer in self.inner:
            inputs = layer(inputs)
        return self.function(inputs)


def valid_convolution(x):
    return tf.nn.conv2d(x, tf.ones([9, 9, 3, 4]), 1, "VALID")


@pytest.mark.parametrize("size", [(12, 14), (13, 40), (None, None)])
def test_what_borders_take_is_no_stride(size):
    """12 pixels, of which a kernel of 9 leaves 4, are no stride of 3."""
    assert strides_of(Within(valid_convolution), size=size) == (1, 1)
    assert strides_of(layers.Conv2D(3, 9), Within(valid_convolution), size=(21, 22)) == (1, 1)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (None, None), (48, None)])
def test_layers_of_keras(size):
    assert strides_of(layers.Conv2D(4, 3, strides=2), size=size) == (2, 2)
    assert strides_of(layers.MaxPooling2D((3, 2)), size=size) == (3, 2)
    assert strides_of(layers.SeparableConv2D(4, 3, strides=2, padding="same"), size=size) == (2, 2)
    assert strides_of(layers.UpSampling2D((2, 4)), size=size) == (1 / 2, 1 / 4)
    up = layers.UpSampling2D(2, interpolation="bilinear")
    assert strides_of(layers.AveragePooling2D(4), up, size=size) == (2, 2)
    assert strides_of(layers.Conv2DTranspose(2, 3, strides=2), size=size) == (1 / 2, 1 / 2)
    same = layers.Conv2DTranspose(2, 3, strides=(2, 1), padding="same")
    assert strides_of(same, size=size) == (1 / 2, 1)
    assert strides_of(layers.ZeroPadding2D(5), layers.Cropping2D(2), size=size) == (1, 1)
    deformable = tf_deformable.DeformableConv2D(4, 3, strides=3, padding="same")
    assert strides_of(deformable, layers.Dense(4), size=size) == (3, 3)
    assert strides_of(layers.GlobalMaxPooling2D(keepdims=True), size=size) is None
    assert strides_of(layers.Flatten(), size=(8, 8)) is None


def test_layers_inside_of_a_layer_of_ones_own():
    inner = [
        tf_deformable.DeformableConv2D(4, 3, strides=2, padding="same"),
        layers.Conv2D(4, 3, strides=2),
    ]
    assert strides_of(Within(tf.nn.relu, *inner)) == (4, 4)
    assert strides_of(Within(lambda x: tf.nn.space_to_depth(x, 4))) == (4, 4)
    assert strides_of(Within(lambda x: x[:, ::3, 1::2])) == (3, 2)


def test_nested_models_in_several_places():
    inputs = tf.keras.Input((None, None, 4))
    half = tf.keras.Model(inputs, layers.Conv2D(4, 3, strides=2, padding="same", name="c")(inputs))
    images = tf.keras.Input((None, None, 4))
    x = tf.keras.Sequential([half, layers.MaxPooling2D()], name="stage")(images)
    model = tf.keras.Model(images, [half(x), x])
    calls, outputs = walk_strides(model)
    assert outputs == [(8, 8), (4, 4)]
    of_half = [s for s in calls if s.call.layer is half.layers[-1]]
    assert [(s.read, s.made) for s in of_half] == [
        ([(1, 1)], [(2, 2)]),
        ([(4, 4)], [(8, 8)]),
    ]


def test_a_stride_that_depends_on_the_images_is_none():
    resize = layers.Resizing(24, 24)
    assert strides_of(resize, layers.Conv2D(4, 3, strides=2)) is None
    assert strides_of(resize, layers.Conv2D(4, 3, strides=2), size=(48, 36)) == (4, 3)


def test_a_layer_that_no_rule_follows_keeps_the_stride_of_a_map_that_keeps_its_size():
    reverse = Within(lambda x: tf.map_fn(lambda row: tf.reverse(row, [0]), x))
    half = layers.Conv2D(3, 3, strides=2, padding="same")
    assert strides_of(half, reverse) == (2, 2)
    assert strides_of(reverse, half, size=(9, 9)) == (2, 2)
    transposed = Within(lambda x: tf.map_fn(lambda row: tf.reverse(row, [0])[:3], x))
    assert strides_of(half, transposed) is None


def test_a_layer_that_refuses_large_images_is_walked_through_without_a_size():
    def small(x):
        if x.shape[1] is not None and x.shape[1] > 100:
            raise ValueError("too large")
        return x

    assert strides_of(layers.Conv2D(3, 3, strides=2, padding="same"), Within(small)) == (2, 2)


def test_several_images_and_other_inputs():
    one, other = tf.keras.Input((32, 32, 3)), tf.keras.Input((64, 64, 3))
    values = tf.keras.Input((5,))
    x = layers.concatenate([layers.Conv2D(4, 1)(one), layers.MaxPooling2D()(other)])
    x = layers.multiply([x, layers.Reshape((1, 1, 7))(layers.Dense(7)(values))])
    _, strides = walk_strides(tf.keras.Model([one, other, values], [x, values]))
    assert strides == [(2, 2), None]
