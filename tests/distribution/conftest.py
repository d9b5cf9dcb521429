"""The tests of distribution run once per Keras, as those of the layers."""

from tests.keras_fixtures import is_keras_3

__all__ = ["is_keras_3"]
