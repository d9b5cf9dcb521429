"""DeepLab on a backbone: sizes, losses, training, files."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import deeplab

layers = tf.keras.layers


def backbone():
    return tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="last"),
        ]
    )


@pytest.mark.parametrize("deformable", [False, True])
def test_learns_to_segment(deformable, tmp_path):
    model = deeplab(backbone(), 3, deformable=deformable, channels=16 if deformable else None)
    assert isinstance(model.get_layer("last"), DeformableConv2D) == deformable

    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(rng.integers(0, 3, [16, 3, 3]), 8, axis=1), 8, axis=2)
    images = (truth[..., np.newaxis] + rng.normal(0, 0.05, [16, 24, 24, 1])).astype(np.float32)
    truth[:, :2] = 255  # ignored
    model.compile(
        tf.keras.optimizers.Adam(0.01),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255),
        metrics=[tf.keras.metrics.MeanIoU(3, ignore_class=255, sparse_y_pred=False)],
    )
    model.fit(images, truth, batch_size=4, epochs=15, verbose=0)
    assert model.evaluate(images, truth, verbose=0)[1] > 0.6

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (21, 34)])
def test_logits_have_the_size_of_the_images(size):
    model = deeplab(backbone(), 5, deformable=True, dilate_last_stage=True)
    assert model.get_layer("last").dilation_rate == (2, 2)
    assert model(np.zeros([2, *size, 1], np.float32)).shape == (2, *size, 5)
    assert tuple(model.output.shape) == (None, None, None, 5)


def test_arguments_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="deformify_arguments need deformable=True, got"):
        deeplab(backbone(), 5, deformify_arguments={"modulated": True})


def test_arguments_of_deformify():
    model = deeplab(backbone(), 5, deformable=True, deformify_arguments={"modulated": True})
    assert model.get_layer("last").modulated


def test_one_of_several_maps_is_chosen():
    model = backbone()
    finer, coarser = model.layers[0].output, model.outputs[0]
    several = tf.keras.Model(model.inputs, [finer, coarser])
    images = np.zeros([1, 32, 32, 1], np.float32)
    by_default, first = deeplab(several, 5), deeplab(several, 5, level=0)
    assert by_default.get_layer("scores").input.shape[1:] == coarser.shape[1:]
    assert first.get_layer("scores").input.shape[1:] == finer.shape[1:]
    assert by_default(images).shape == first(images).shape == (1, 32, 32, 5)
    with pytest.raises(ValueError, match=r"deeplab: level must be .*got 'P9'; .*'last' \(stride"):
        deeplab(several, 5, level="P9")


def test_backbones_that_are_none_are_refused():
    model = backbone()
    two = tf.keras.Model([*model.inputs, tf.keras.Input((3,))], model.outputs)
    with pytest.raises(ValueError, match="deeplab: backbone must take images alone, got 2 inputs"):
        deeplab(two, 5)
    with pytest.raises(ValueError, match="deeplab: backbone must be a functional .* got Conv2D"):
        deeplab(layers.Conv2D(3, 3, name="last"), 5)


def test_logits_are_float32_in_mixed_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = deeplab(backbone(), 5, deformable=True)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    logits = model(np.zeros([1, 9, 9, 1], np.float32))
    assert logits.dtype == tf.float32 == tf.as_dtype(model.outputs[0].dtype)


def test_dilated_without_deformable_layers():
    last = deeplab(backbone(), 5, dilate_last_stage=True).get_layer("last")
    assert isinstance(last, layers.Conv2D) and last.dilation_rate == (2, 2)
