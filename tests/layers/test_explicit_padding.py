"""Explicit padding of the layer: what it computes, beside a plain convolution of padded maps."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import DeformableConv2D, analysis
from tf_deformable.models import deformify

RANDOM = {"offset_kernel_initializer": tf.keras.initializers.RandomNormal(stddev=0.2, seed=1)}
PADDINGS = {
    "one": (1, ((1, 1), (1, 1))),
    "pair": ((2, 0), ((2, 2), (0, 0))),
    "sides": (((0, 2), (1, 3)), ((0, 2), (1, 3))),
    "lists": ([[0, 2], [1, 3]], ((0, 2), (1, 3))),
    "mixed": ((1, (0, 2)), ((1, 1), (0, 2))),
    "none": (0, "valid"),
}


@pytest.mark.parametrize(("given", "normalised"), PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize(
    ("strides", "dilation_rate"), [(1, 1), (2, 1), (1, 2), (2, 2), ((1, 2), (3, 2))], ids=str
)
def test_equals_the_valid_layer_on_padded_maps(given, normalised, strides, dilation_rate):
    inputs = tf.random.normal([2, 9, 8, 4])
    arguments = {"strides": strides, "dilation_rate": dilation_rate, "modulated": True, **RANDOM}
    layer = DeformableConv2D(3, 3, padding=given, **arguments)
    outputs = layer(inputs)
    pads = normalised if normalised != "valid" else ((0, 0), (0, 0))
    padded = DeformableConv2D(3, 3, padding="valid", **arguments)
    maps = tf.pad(inputs, [[0, 0], *pads, [0, 0]])
    padded(maps)
    padded.set_weights(layer.get_weights())

    assert layer.padding == normalised
    assert layer.compute_output_shape(inputs.shape) == outputs.shape
    np.testing.assert_allclose(outputs, padded(maps), atol=1e-5)
    # Positions are those of the map itself, not of the padded one.
    shift = [before for before, _ in pads]
    np.testing.assert_allclose(
        layer.sampling_positions(inputs) + tf.constant(shift, tf.float32),
        padded.sampling_positions(maps),
        atol=1e-5,
    )


def test_gradients_are_those_of_the_valid_layer_on_padded_maps():
    inputs = tf.random.normal([2, 7, 8, 4])
    layer = DeformableConv2D(3, 3, strides=2, padding=1, **RANDOM)
    padded = DeformableConv2D(3, 3, strides=2, **RANDOM)
    pads = [[0, 0], [1, 1], [1, 1], [0, 0]]
    layer(inputs), padded(tf.pad(inputs, pads))
    padded.set_weights(layer.get_weights())

    def gradients(one, pad):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            maps = tf.pad(inputs, pads) if pad else inputs
            loss = tf.reduce_sum(one(maps) ** 2)
        return tape.gradient(loss, [inputs, *(w for w in one.trainable_weights)])

    for got, expected in zip(gradients(layer, False), gradients(padded, True), strict=True):
        np.testing.assert_allclose(got, tf.convert_to_tensor(expected), rtol=1e-4, atol=1e-4)


def test_configuration_and_file(tmp_path):
    model = tf.keras.Sequential(
        [tf.keras.Input((None, None, 4)), DeformableConv2D(3, 3, padding=((0, 1), (2, 3)))]
    )
    config = json.loads(json.dumps(model.layers[0].get_config()))
    assert DeformableConv2D.from_config(config).padding == ((0, 1), (2, 3))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    images = tf.random.normal([1, 6, 6, 4])
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize("given", ["full", -1, 1.5, (1, 2, 3), ((1, 2), (3, -4)), True, None])
def test_refuses(given):
    with pytest.raises(ValueError, match="DeformableConv2D: padding must be 'valid', 'same'"):
        DeformableConv2D(3, 3, padding=given)


def test_analysis_finds_the_samples_where_they_are():
    # The second layer's unit reads cells 1 to 3 of the first, whose middles are pixels 2, 4 and 6:
    # both the layer itself and what follows it know of the padding.
    model = tf.keras.Sequential(
        [
            tf.keras.Input((12, 12, 2)),
            DeformableConv2D(3, 3, strides=2, padding=((1, 1), (0, 2))),
            DeformableConv2D(3, 3, padding=((1, 1), (1, 1))),
        ]
    )
    images = tf.zeros([1, 12, 12, 2])
    model(images)
    found = analysis.sampling_locations(model, images, unit=(2, 1), depth=1)
    through_plain = np.unique(np.reshape(found.positions, [-1, 2]), axis=0)
    np.testing.assert_allclose(through_plain, [(y, x) for y in (2, 4, 6) for x in (1, 3, 5)])
    found = analysis.sampling_locations(model, images, unit=(2, 1), depth=2)
    rows, columns = np.reshape(found.positions, [-1, 2]).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 7, 0, 6)


def test_dilated_with_its_stage():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 2)),
            tf.keras.layers.Conv2D(4, 3, strides=2, padding="same"),
            DeformableConv2D(4, 3, padding=((1, 1), (0, 2))),
        ]
    )
    dilated = deformify(model, layers=None, dilate_last_stage=True)
    assert dilated.layers[1].padding == ((2, 2), (0, 4))
    assert dilated.layers[1].dilation_rate == (2, 2)
    assert dilated.output_shape == (None, 16, 16, 4)
