"""Convolutions inside of custom layers: found where all that such a layer does can be seen."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import compare, deformify

layers = tf.keras.layers
needs_keras_3 = pytest.mark.skipif(
    not hasattr(tf.keras, "ops"), reason="with tf-keras custom layers stay closed"
)


@tf.keras.utils.register_keras_serializable(package="test")
class Block(layers.Layer):
    """A residual block."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.5, name="drop")

    def call(self, inputs, training=None):
        x = self.norm(self.conv(inputs), training=training)
        return inputs + tf.nn.relu(self.drop(x, training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class OfKeras(Block):
    def call(self, inputs, training=None):
        x = self.drop(self.norm(self.conv(inputs)))
        scale = tf.keras.ops.mean(x, axis=(1, 2), keepdims=True)
        return inputs + tf.keras.ops.relu(x) * scale


class WithOwnWeight(OfKeras):
    def build(self, shape):
        self.own = self.add_weight(shape=(1,), name="own")

    def call(self, inputs):
        return super().call(inputs) * self.own


class BranchesOnTraining(OfKeras):
    def call(self, inputs, training=None):
        x = super().call(inputs)
        return tf.keras.ops.relu(x) if training else x


class TakesTwo(OfKeras):
    def call(self, inputs, other=None):
        return super().call(inputs) + (0.0 if other is None else other)


class Outer(layers.Layer):
    """Blocks in a block."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.first, self.second = kind(4, name="first"), kind(4, name="second")

    def call(self, inputs):
        return [self.second(self.first(inputs)), inputs]

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def of(*blocks, dtype=None):
    inputs = tf.keras.Input((16, 16, 4))
    x = inputs
    for block in blocks:
        x = block(x)
    return tf.keras.Model(inputs, x)


def images():
    return np.random.default_rng(0).normal(size=[2, 16, 16, 4]).astype(np.float32)


def assert_same(copy, model, **tolerance):
    for one, other in zip(
        tf.nest.flatten(copy(images())), tf.nest.flatten(model(images())), strict=True
    ):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


@needs_keras_3
def test_a_block_of_layers_and_keras_ops_is_opened():
    model = of(OfKeras(4, name="a"), OfKeras(4, name="b"))
    copy = deformify(model, ["b/conv"])
    assert [layer.name for layer in copy.layers[1:]] == ["a", "b"]
    assert isinstance(copy.get_layer("b").get_layer("conv"), DeformableConv2D)
    assert type(copy.get_layer("a")) is OfKeras  # Nothing in it was replaced.
    assert_same(copy, model)
    # It still is dropped in training, and only there.
    calls = [np.asarray(copy(images(), training=True)) for _ in range(2)]
    assert np.any(calls[0] != calls[1])
    (change,) = compare(model, copy, input_size=(16, 16)).changes
    assert change.before.path == "b/conv" and str(change) == "Conv2D -> DeformableConv2D"


@needs_keras_3
def test_blocks_in_blocks_and_several_outputs():
    model = of(Outer(OfKeras, name="outer"))
    copy = deformify(model, ["outer/second/conv"])
    outer = copy.get_layer("outer")
    assert isinstance(outer.get_layer("second").get_layer("conv"), DeformableConv2D)
    assert type(outer.get_layer("first")) is OfKeras
    assert_same(copy, model)


@needs_keras_3
def test_model_and_its_blocks_stay_as_they_are(tmp_path):
    model = of(OfKeras(4, name="block"))
    expected = model(images()).numpy()
    copy = deformify(model)
    copy.save(tmp_path / "copy.keras")
    loaded = tf.keras.models.load_model(tmp_path / "copy.keras")
    assert_same(loaded, copy)
    for weight in copy.weights:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_array_equal(model(images()), expected)
    assert type(model.get_layer("block")) is OfKeras


@needs_keras_3
def test_mixed_precision_inside_of_a_block():
    policy = tf.keras.mixed_precision.Policy("mixed_float16")
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = of(OfKeras(4, name="block"))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    copy = deformify(model)
    assert copy.get_layer("block").get_layer("conv").compute_dtype == "float16"
    assert copy(images()).dtype == model(images()).dtype
    assert_same(copy, model, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [Block, WithOwnWeight, BranchesOnTraining])
def test_what_cannot_be_seen_stays_closed(kind, is_keras_3):
    if not is_keras_3 and kind is not Block:
        pytest.skip("its blocks use keras.ops")
    model = of(kind(4, name="block"), layers.Conv2D(4, 3, strides=2, name="last"))
    copy = deformify(model, "last")
    assert type(copy.get_layer("block")) is kind
    assert_same(copy, model)
    with pytest.raises(
        ValueError, match=rf"there are: last; .* cannot be reached: block \({kind.__name__}\)"
    ):
        deformify(model, "block/conv")


@needs_keras_3
def test_layers_with_several_arguments_or_calls_stay_closed():
    inputs = tf.keras.Input((16, 16, 4))
    two = TakesTwo(4, name="two")
    model = tf.keras.Model(inputs, two(inputs, other=inputs))
    with pytest.raises(ValueError, match="cannot be reached: two"):
        deformify(model)
    shared = OfKeras(4, name="shared")
    with pytest.raises(ValueError, match="cannot be reached: shared"):
        deformify(tf.keras.Model(inputs, shared(shared(inputs))))


@needs_keras_3
def test_layers_that_cannot_be_copied_are_opened_or_named():
    class Forgetful(OfKeras):
        def get_config(self):
            return layers.Layer.get_config(self)  # not `filters`

    class Secretive(Forgetful):
        def call(self, inputs):
            return tf.nn.relu(super().call(inputs))

    last = layers.Conv2D(4, 3, strides=2, name="last")
    model = of(Forgetful(4, name="block"), last)
    assert_same(deformify(model, "last"), model)
    with pytest.raises(
        ValueError, match=r"(?s)layer 'block' \(Secretive\) cannot be copied: .*filters"
    ):
        deformify(of(Secretive(4, name="block"), last), "last")
