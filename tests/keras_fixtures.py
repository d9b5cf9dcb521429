"""Fixtures of the tests that run once per Keras: as they are, and with TF_USE_LEGACY_KERAS=1."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def random_seed():
    tf.keras.utils.set_random_seed(20)


@pytest.fixture
def is_keras_3():
    return hasattr(tf.keras, "ops")


def skip_unless_conv2d_takes_an_empty_batch():
    """Skips a test of a layer that convolves what may be an empty batch."""
    shape = tf.nn.conv2d(tf.zeros([0, 4, 4, 1]), tf.zeros([3, 3, 1, 2]), 1, "VALID").shape
    if shape != (0, 2, 2, 2):
        # So Keras's Conv2D fails too, where it adds its bias.
        pytest.skip(
            "convolutions of an empty batch have the shape of their input: TensorFlow's own fault "
            "up to 2.20, with oneDNN"
        )
