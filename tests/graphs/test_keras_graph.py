"""What a walk over a model finds: calls, by their paths, with shapes; and which axes are first."""

import pytest
import tensorflow as tf

from tf_deformable.graphs.keras_graph import is_channels_first, walk
from tf_deformable.layers import DeformableConv2D, RoIPool

layers = tf.keras.layers
FORMATS = ("channels_last", "channels_first")


@pytest.fixture(params=FORMATS)
def format_of_keras(request):
    """What is set for all of Keras."""
    tf.keras.backend.set_image_data_format(request.param)
    yield request.param
    tf.keras.backend.set_image_data_format("channels_last")


def model_of(*inside):
    images = tf.keras.Input((8, 8, 8))
    features = images
    for layer in inside:
        features = layer(features)
    return tf.keras.Model(images, features)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    "kind",
    [
        lambda **each: layers.Conv2D(8, 1, **each),
        lambda **each: layers.MaxPooling2D(1, **each),
        lambda **each: DeformableConv2D(8, 1, **each),
    ],
    ids=["convolution", "pool", "deformable"],
)
def test_convolutions_and_pools_say_which_axis_the_channels_are(kind, data_format, format_of_keras):
    other = FORMATS[data_format == FORMATS[0]]
    # Of layers that have no window it does not say what the maps are.
    model = model_of(kind(data_format=data_format), layers.GlobalMaxPooling2D(data_format=other))
    assert is_channels_first(model) == (data_format == "channels_first")


@pytest.mark.parametrize("formats", [(), FORMATS], ids=["none", "both"])
def test_where_they_do_not_what_is_set_for_all_of_keras_does(formats, format_of_keras):
    model = model_of(*(layers.MaxPooling2D(1, data_format=each) for each in formats))
    assert is_channels_first(model) == (format_of_keras == "channels_first")


@pytest.mark.parametrize("data_format", FORMATS)
def test_images_have_the_size_given_where_a_model_takes_any(data_format):
    first = data_format == "channels_first"
    images = tf.keras.Input((3, None, 9) if first else (None, 9, 3))
    model = tf.keras.Model(images, layers.MaxPooling2D(2, data_format=data_format)(images))

    (pool,) = (call for call in walk(model, (20, 30)).calls if call.layer is model.layers[1])

    assert pool.input_shapes == [(None, 3, 20, 9) if first else (None, 20, 9, 3)]
    assert pool.output_shapes == [(None, 3, 10, 4) if first else (None, 10, 4, 3)]


def test_paths_and_the_convolutions_of_the_package():
    inner = model_of(DeformableConv2D(4, 3, name="deformable"))
    features, boxes = tf.keras.Input((8, 8, 8)), tf.keras.Input((5, 4))
    maps = inner(features)
    pooled = RoIPool(2, name="pooled")([maps, boxes])
    model = tf.keras.Model([features, boxes], pooled)

    found = walk(model)

    paths = [call.path for call in found.calls]
    assert f"{inner.name}/deformable" in paths and "pooled" in paths
    assert [call.layer.name for call in found.convolutions] == ["deformable"]
