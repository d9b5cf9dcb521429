"""The bins that a model's pooling layers averaged."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import analysis

layers = tf.keras.layers
BOXES = np.array([[[4, 8, 20, 40], [0, 0, 0, 0]], [[0, 0, 16, 16], [10, 12, 30, 28]]], np.float32)


def detector(pooling):
    images, boxes = tf.keras.Input((None, None, 1)), tf.keras.Input((None, 4))
    features = layers.Conv2D(3, 3, strides=2, padding="same")(images)
    return tf.keras.Model([images, boxes], pooling([features, boxes]))


def test_moved_and_regular_bins():
    pooling = tf_deformable.DeformableRoIPool((2, 4), spatial_scale=0.5, aligned=True, name="pool")
    model = detector(pooling)
    inputs = [np.ones((2, 32, 48, 1), np.float32), BOXES]
    model(inputs)
    bias = np.arange(16.0) - 8
    pooling.offset_bias.assign(bias)
    (found,) = analysis.roi_bins(model, inputs)
    assert (found.name, found.layer, found.map_size) == ("pool", pooling, (16, 24))
    np.testing.assert_array_equal(found.boxes, BOXES)
    np.testing.assert_array_equal(found.present, [[True, False], [True, True]])
    np.testing.assert_array_equal(found.regular[0, 0, 1, 2], [12, 24, 20, 32])
    np.testing.assert_array_equal(found.regular[0, 1], 0)
    moved = found.bins - found.regular
    shift = 0.1 * bias.reshape(2, 4, 2) * (16, 32)  # gamma times the size of the box
    np.testing.assert_allclose(moved[0, 0], np.tile(shift, 2), atol=1e-5)


def test_plain_layers_and_bins_of_classes():
    plain = tf_deformable.PSRoIPool(2, 2, spatial_scale=0.5)
    classes = tf_deformable.DeformablePSRoIPool(2, 2, score_filters=3, spatial_scale=0.5)
    images, boxes = tf.keras.Input((None, None, 1)), tf.keras.Input((None, 4))
    features = layers.Conv2D(4, 3, strides=2, padding="same")(images)
    model = tf.keras.Model(
        [images, boxes], [layer([features, boxes]) for layer in (plain, classes)]
    )
    found = analysis.roi_bins(model, [np.ones((2, 32, 48, 1), np.float32), BOXES])
    found.sort(key=lambda f: f.layer is classes)  # Keras calls them in an order of its own
    assert [f.layer for f in found] == [plain, classes]
    np.testing.assert_array_equal(found[0].bins, found[0].regular)
    assert found[1].bins.shape == (2, 2, 2, 2, 3, 4)
    np.testing.assert_array_equal(
        found[1].bins, np.broadcast_to(found[1].regular[..., None, :], found[1].bins.shape)
    )


def test_a_model_without_pooling_layers_is_refused():
    with pytest.raises(ValueError, match="must call a RoI pooling layer"):
        analysis.roi_bins(tf.keras.Sequential([layers.ReLU()]), np.ones((1, 4), np.float32))
