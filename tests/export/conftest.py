"""These tests run once per Keras: `pytest tests/export`, and with TF_USE_LEGACY_KERAS=1."""

from tests.keras_fixtures import is_keras_3, random_seed

__all__ = ["is_keras_3", "random_seed"]
