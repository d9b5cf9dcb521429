"""The Keras in use: Keras 3, or tf-keras where `TF_USE_LEGACY_KERAS=1` was set in time."""

from __future__ import annotations

import importlib
import os
from typing import Any

import tensorflow as tf


def _check_that_keras_imports() -> None:
    """Raises an error that says why, if `tf.keras` cannot be used.

    TensorFlow itself says so only once, and without the cause; later it fails in other ways.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") in (
        "true",
        "True",
        "1",
    )  # as TensorFlow reads it
    name = "tf_keras" if legacy else "keras"
    try:
        importlib.import_module(name)
    except Exception as error:
        settings = ", ".join(
            f"{variable}={os.environ[variable]}"
            for variable in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")
            if variable in os.environ
        )
        raise ImportError(
            f"tf_deformable: layers and models need Keras, and {name} cannot be imported"
            f"{f' with {settings}' if settings else ''} ({type(error).__name__}: {error})"
        ) from error


_check_that_keras_imports()

# The name of neither's version attribute is the other's; `keras.ops` came with Keras 3.
IS_KERAS_3 = hasattr(tf.keras, "ops")


def as_output_shape(shape: tuple[int | None, ...]) -> Any:
    """Returns the shape as the layers of the Keras in use return theirs."""
    return shape if IS_KERAS_3 else tf.TensorShape(shape)
