"""Fixtures of the tests that run once per Keras: as they are, and with TF_USE_LEGACY_KERAS=1."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def random_seed():
    tf.keras.utils.set_random_seed(20)


@pytest.fixture
def is_keras_3():
    return hasattr(tf.keras, "ops")
