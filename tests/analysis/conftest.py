"""The analysis tests run once per Keras: `pytest tests/analysis`, and with the legacy one."""

from tests.keras_fixtures import is_keras_3, random_seed

__all__ = ["is_keras_3", "random_seed"]
