"""The ways in which people call the layers, and the functions, inside and outside of models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import (
    DeformableConv2D,
    DeformablePSRoIPool,
    DeformableRoIPool,
    PSRoIPool,
    RoIPool,
    config,
)

FEATURES = np.random.default_rng(0).normal(size=[2, 9, 10, 8]).astype(np.float32)
BOXES = np.array([[[1, 2, 5.5, 6.5], [0, 0, 7, 7]], [[3, 1, 6, 5], [0, 0, 0, 0]]], np.float32)
MOVED = {"offset_kernel_initializer": "random_normal", "offset_bias_initializer": "random_normal"}
POOLS = {
    "RoI": lambda **arguments: RoIPool((2, 3), **arguments),
    "PSRoI": lambda **arguments: PSRoIPool((2, 3), 2, **arguments),
    "deformable RoI": lambda **arguments: DeformableRoIPool((2, 3), **MOVED, **arguments),
    "deformable PSRoI": lambda **arguments: DeformablePSRoIPool(
        (2, 3), 2, score_filters=5, **MOVED, **arguments
    ),
}
every_pool = pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())


# --- RoI layers ----------------------------------------------------------------------------------


@every_pool
def test_all_ways_to_call(make):
    layer = make()
    expected = layer([FEATURES, BOXES])
    for outputs in (
        layer(FEATURES, BOXES),
        layer(FEATURES, boxes=BOXES),
        layer((FEATURES, BOXES)),
        layer({"boxes": BOXES, "features": FEATURES}),
        layer([FEATURES, BOXES], training=False),
    ):
        np.testing.assert_array_equal(outputs, expected)


@every_pool
def test_all_ways_to_call_in_a_functional_model(make, tmp_path):
    layer = make()
    expected = layer([FEATURES, BOXES])
    features, boxes = tf.keras.Input((None, None, 8)), tf.keras.Input((None, 4))
    for outputs in (
        layer(features, boxes),
        layer({"features": features, "boxes": boxes}),
        layer([features, boxes]),
    ):
        model = tf.keras.Model([features, boxes], outputs)
        np.testing.assert_allclose(model([FEATURES, BOXES]), expected, atol=1e-5)
        model.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded([FEATURES, BOXES]), expected, atol=1e-5)


@every_pool
@pytest.mark.parametrize("ragged_rank", [1, 2])
def test_ragged_boxes(make, ragged_rank):
    layer = make()
    expected = layer([FEATURES, BOXES])
    ragged = tf.ragged.constant([BOXES[0].tolist(), BOXES[1, :1].tolist()], ragged_rank=ragged_rank)
    np.testing.assert_array_equal(layer([FEATURES, ragged]), expected)
    np.testing.assert_array_equal(layer(FEATURES, ragged), expected)
    graph = tf.function(lambda features, boxes: layer([features, boxes]))
    np.testing.assert_allclose(graph(tf.constant(FEATURES), ragged), expected, atol=1e-5)


def test_ragged_boxes_of_a_dataset_train_a_model():
    class Pooling(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.pool = DeformableRoIPool(2, **MOVED)

        def call(self, inputs):
            return tf.reduce_mean(self.pool(inputs[0], inputs[1]), axis=[1, 2, 3, 4])

    ragged = tf.ragged.constant([BOXES[0].tolist(), BOXES[1, :1].tolist()], ragged_rank=1)
    data = tf.data.Dataset.from_tensor_slices((FEATURES, ragged)).batch(2)
    model = Pooling()
    for features, boxes in data:
        assert isinstance(boxes, tf.RaggedTensor)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model((features, boxes)) ** 2)
    assert all(g is not None for g in tape.gradient(loss, model.trainable_variables))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (FEATURES, r"must be \[features, boxes\]|2 input"),
        ([FEATURES], r"must be \[features, boxes\]|2 input"),
        ([FEATURES, BOXES, BOXES], r"must be \[features, boxes\]|2 input"),
        ({"features": FEATURES}, r"must have the keys \['features', 'boxes'\], got \['features'\]"),
        ({"features": FEATURES, "rois": BOXES}, r"must have the keys \['features', 'boxes'\], got"),
    ],
)
@every_pool
def test_what_it_is_not_called_with(make, inputs, message):
    with pytest.raises(ValueError, match=message):
        make()(inputs)


@every_pool
@pytest.mark.parametrize("in_model", [False, True], ids=["", "model"])
def test_channels_first(make, in_model):
    last = make()
    expected = np.transpose(last([FEATURES, BOXES]), [0, 1, 4, 2, 3])
    layer = make(data_format="channels_first")
    nchw = FEATURES.transpose(0, 3, 1, 2)
    call = layer
    if in_model:
        inputs = [tf.keras.Input((8, None, None)), tf.keras.Input((None, 4))]
        call = tf.keras.Model(inputs, layer(inputs))
        assert call.output_shape == (None, None, expected.shape[2], 2, 3)
    call([nchw, BOXES])
    layer.set_weights(last.get_weights())
    np.testing.assert_allclose(call([nchw, BOXES]), expected, atol=1e-5)
    assert layer.compute_output_shape([nchw.shape, BOXES.shape]) == expected.shape
    np.testing.assert_allclose(
        layer.bin_boxes([nchw, BOXES]), last.bin_boxes([FEATURES, BOXES]), atol=1e-5
    )


@every_pool
def test_channels_first_as_keras_own_setting(make):
    before = tf.keras.backend.image_data_format()
    tf.keras.backend.set_image_data_format("channels_first")
    try:
        assert make().data_format == "channels_first"
        assert make(data_format="channels_last").data_format == "channels_last"
    finally:
        tf.keras.backend.set_image_data_format(before)
    assert make().data_format == before


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [*POOLS.values(), lambda **a: DeformableConv2D(4, 3, **a)])
def test_autocast_may_be_given(make, autocast):
    layer = make(autocast=autocast, dtype="mixed_bfloat16")
    is_conv = isinstance(layer, DeformableConv2D)
    outputs = layer(FEATURES if is_conv else [FEATURES, 100 + BOXES])
    assert outputs.dtype == "bfloat16"


@every_pool
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_programs_that_compare_tensors_by_identity(make, backend):
    """`disable_v2_behavior` does that, and some converters of models do."""
    layer = make()
    with config.use_backend(backend):
        expected = layer([FEATURES, BOXES])
        tf.compat.v1.disable_tensor_equality()
        try:
            outputs = layer([FEATURES, BOXES])
            bins = layer.bin_boxes([FEATURES, BOXES])
            graph = tf.function(lambda f, b: layer([f, b]))(FEATURES, BOXES)
        finally:
            tf.compat.v1.enable_tensor_equality()
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_allclose(graph, expected, atol=1e-5)
    assert not np.any(bins[1, 1])  # padding


# --- Symbolic tensors ----------------------------------------------------------------------------


def inputs_of(*arrays):
    return [tf.keras.Input(array.shape[1:]) for array in arrays]


def test_functions_in_a_functional_model(tmp_path):
    offsets = np.random.default_rng(1).normal(size=[2, 9, 10, 18]).astype(np.float32)
    filters = np.random.default_rng(2).normal(size=[3, 3, 8, 4]).astype(np.float32)
    symbolic = inputs_of(FEATURES, offsets)
    outputs = tf_deformable.deformable_conv2d(
        symbolic[0], filters, symbolic[1], padding="same", name="sampled"
    )
    assert tuple(outputs.shape) == (None, 9, 10, 4)
    outputs = tf.keras.layers.Conv2D(2, 1)(outputs)
    model = tf.keras.Model(symbolic, outputs)
    sampled = tf_deformable.deformable_conv2d(FEATURES, filters, offsets)
    expected = model.layers[-1](sampled)
    np.testing.assert_allclose(model([FEATURES, offsets]), expected, atol=1e-4)
    np.testing.assert_allclose(model.predict([FEATURES, offsets], verbose=0), expected, atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded([FEATURES, offsets]), expected, atol=1e-4)


def test_a_model_holds_the_defaults_of_its_functions():
    """What is saved stays what it is, when a later version has others."""
    (boxes,) = inputs_of(BOXES)
    bins = tf_deformable.ops.bin_boxes(tf.reshape(BOXES, [-1, 4]), output_size=2)
    model = tf.keras.Model(boxes, tf_deformable.ops.bin_boxes(boxes[0], output_size=2))
    config = json.dumps(model.get_config(), default=str)
    assert '"aligned": true' in config and '"gamma": 0.1' in config
    np.testing.assert_allclose(model(BOXES), bins[:2], atol=1e-5)


def test_positions_and_bins_in_a_functional_model():
    offsets = np.random.default_rng(1).normal(size=[2, 9, 10, 18]).astype(np.float32)
    (symbolic,) = inputs_of(offsets)
    positions = tf_deformable.ops.sampling_positions(symbolic, kernel_size=3, input_size=(9, 10))
    model = tf.keras.Model(symbolic, positions)
    expected = tf_deformable.ops.sampling_positions(offsets, kernel_size=3, input_size=(9, 10))
    np.testing.assert_allclose(model(offsets), expected, atol=1e-5)


def test_a_model_of_what_the_layer_computes():
    layer = DeformableConv2D(4, 3, modulated=True, **MOVED)
    (images,) = inputs_of(FEATURES)
    features = tf.keras.layers.Conv2D(3, 3)(images)
    model = tf.keras.Model(images, layer(features))
    for method in (layer.compute_offsets, layer.sampling_positions):
        look = tf.keras.Model(model.input, method(layer.input))
        expected = method(tf.keras.Model(model.input, layer.input)(FEATURES))
        got = look.predict(FEATURES, verbose=0)
        tf.nest.map_structure(
            lambda g, e: np.testing.assert_allclose(g, e, atol=1e-4),
            tf.nest.flatten(got), tf.nest.flatten(expected),
        )  # fmt: skip


@every_pool
def test_a_model_of_a_layers_bins(make):
    layer = make()
    symbolic = inputs_of(FEATURES, BOXES)
    model = tf.keras.Model(symbolic, layer(symbolic))
    look = tf.keras.Model(model.input, layer.bin_boxes(layer.input))
    expected = layer.bin_boxes([FEATURES, BOXES])
    np.testing.assert_allclose(look([FEATURES, BOXES]), expected, atol=1e-4)


def test_a_model_of_a_layers_method_is_not_saved_with_a_second_copy_of_it(tmp_path):
    layer = DeformableConv2D(4, 3)
    (images,) = inputs_of(FEATURES)
    layer(images)
    look = tf.keras.Model(images, layer.sampling_positions(images))
    with pytest.raises(NotImplementedError, match="sampling_positions of a layer cannot be saved"):
        look.save(tmp_path / "model.keras")


def test_the_order_of_arguments_is_that_of_conv2d():
    positional = (4, 3, 2, "same", "channels_last", 1, 2, "relu", False, "ones", "ones", "l2")
    positional += ("l1", "l1", "non_neg", "unit_norm")
    plain = tf.keras.layers.Conv2D(*positional, name="layer").get_config()
    deformable = DeformableConv2D(*positional, name="layer").get_config()
    assert {name: deformable[name] for name in plain if name in deformable} == {
        name: value for name, value in plain.items() if name in deformable
    }
    assert len([name for name in plain if name in deformable]) >= 16
    with pytest.raises(TypeError, match="positional arguments"):
        DeformableConv2D(*positional, 2)


def test_model_optimization_finds_the_kernel():
    layer = DeformableConv2D(4, 3)
    layer.build((None, 9, 10, 8))
    assert [w is layer.kernel for w in layer.get_prunable_weights()] == [True]
    ((name, weight),) = layer.get_clusterable_weights()
    assert name == "kernel" and weight is layer.kernel
