"""Backbones by name: of keras.applications, of KerasHub, and a small one to try things out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from recipes.problems import DataError

_HUB = "keras_hub:"
HELP = (
    "a class of keras.applications (ResNet50, MobileNetV2, EfficientNetB0, ...); "
    f"{_HUB}PRESET for a preset of KerasHub, its name or its folder; or 'small', a network of six "
    "convolutions to try things out on a CPU"
)


def build_backbone(name: str, weights: str | None = None) -> Any:
    """Returns a backbone for images of any size, 0 to 255, in RGB: it does the rest itself.

    Args:
        name: see `HELP`.
        weights: None for random ones, which needs no network; "imagenet", or a weights file; of
            KerasHub, "preset" for those of the preset.

    Raises:
        DataError: there is no such backbone, or no such weights.
    """
    if name == "small":
        return _small(weights)
    if name.startswith(_HUB):
        return _of_keras_hub(name[len(_HUB) :], weights)
    function = getattr(tf.keras.applications, name, None)
    if not callable(function):
        names = sorted(n for n in dir(tf.keras.applications) if n[0].isupper())
        raise DataError(f"--backbone must be {HELP}; got {name!r}. There are {', '.join(names)}")
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise DataError(f"--weights must be none, imagenet or a file, got {weights!r}")
    images = tf.keras.Input((None, None, 3), name="images")
    network = function(weights=weights, include_top=False, input_shape=(None, None, 3))
    # The module of the class knows what its weights were trained on.
    preprocess = sys.modules[function.__module__].preprocess_input
    return tf.keras.Model(images, network(preprocess(images)), name=network.name)


def _small(weights: str | None) -> Any:
    if weights is not None:
        raise DataError(f"--backbone small has no weights, got --weights {weights}")
    layers = tf.keras.layers
    images = tf.keras.Input((None, None, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(images)
    maps = {}
    for number, (filters, strides, level) in enumerate(
        ((16, 2, "P1"), (32, 2, "P2"), (48, 1, "P2"), (64, 2, "P3"), (64, 1, "P3"), (64, 1, "P3")),
        start=1,
    ):
        x = layers.Conv2D(
            filters, 3, strides=strides, padding="same", use_bias=False, name=f"conv{number}"
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{number}")(x)
        maps[level] = x = layers.ReLU(name=f"relu{number}")(x)
    return tf.keras.Model(images, maps, name="small")


def _of_keras_hub(preset: str, weights: str | None) -> Any:
    try:
        import keras_hub
    except ImportError as error:
        raise DataError(f"--backbone {_HUB}...: pip install keras-hub ({error})") from error
    if weights not in (None, "preset"):
        raise DataError(f"--weights must be none or preset for {_HUB}..., got {weights!r}")
    try:
        backbone = keras_hub.models.Backbone.from_preset(
            preset, load_weights=weights is not None, image_shape=(None, None, 3)
        )
    except Exception as error:  # of the network, of a name, of a file
        raise DataError(f"--backbone {_HUB}{preset} cannot be loaded: {error}") from error
    scale, offset = 1 / 255, 0.0
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
        if converter.scale is not None:
            scale = converter.scale
        if converter.offset is not None:
            offset = converter.offset
    except Exception:  # A preset need not say how its images were scaled.
        print(f"{preset} does not say how its images are scaled: they are 0 to 1")
    rescale = tf.keras.layers.Rescaling(scale, offset, name="rescaling")
    images = tf.keras.Input((None, None, 3), name="images")
    pyramid = dict(getattr(backbone, "pyramid_outputs", {}))
    outputs = {**pyramid, "output": backbone.output} if pyramid else backbone.output
    network = tf.keras.Model(backbone.inputs, outputs, name=backbone.name)
    return tf.keras.Model(images, network(rescale(images)), name=backbone.name)
