"""The analysis tests run once per Keras: `pytest tests/analysis`, and with the legacy one."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def random_seed():
    tf.keras.utils.set_random_seed(20)


@pytest.fixture
def is_keras_3():
    return hasattr(tf.keras, "ops")
