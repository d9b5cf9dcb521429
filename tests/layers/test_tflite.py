"""The layers, with the reference as backend, in LiteRT (TensorFlow Lite)."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests import litert
from tf_deformable import (
    DeformableConv2D,
    DeformablePSRoIPool,
    DeformableRoIPool,
    PSRoIPool,
    RoIPool,
)

pytestmark = [
    litert.ignore_deprecation,
    # Keras 3 calls np.array(tf.Variable), which NumPy 2 deprecates.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

SIZE = (13, 10)


@pytest.fixture(autouse=True)
def reference_backend():
    with tf_deformable.config.use_backend("reference"):
        yield


def _offset_kernel():
    """Offsets of a pixel or so."""
    return tf.keras.initializers.RandomNormal(stddev=0.3, seed=1)


def _assert_converts(model, arguments):
    expected = model(list(arguments.values()) if len(arguments) > 1 else arguments["features"])
    converted = litert.convert_model(model)
    litert.assert_is_plain(converted)
    litert.assert_same(converted, arguments, expected)


@pytest.mark.parametrize("size", [SIZE, (None, None)], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "same", "modulated": True, "offset_groups": 3, "groups": 2},
        {"padding": "same", "strides": 2, "modulated": True, "mask_initial_value": 1.0},
        {"dilation_rate": (1, 2), "activation": "relu", "use_bias": False},
        {"padding": "same", "dilation_rate": 2},
        # where the offset branch pads by itself
        {"padding": "same", "strides": 2, "dilation_rate": 2},
        {"padding": "same", "strides": (2, 1), "dilation_rate": (3, 2), "modulated": True},
        {"strides": 2, "dilation_rate": 3, "offset_learning_rate_multiplier": 0.1},
    ],
    ids=str,
)
def test_deformable_conv2d(size, arguments):
    inputs = tf.keras.Input((*size, 6), name="features")
    layer = DeformableConv2D(4, 3, offset_kernel_initializer=_offset_kernel(), **arguments)
    model = tf.keras.Model(inputs, layer(inputs))
    features = np.random.default_rng(0).normal(size=(2, *SIZE, 6)).astype(np.float32)

    _assert_converts(model, {"features": features})


@pytest.mark.parametrize("size", [SIZE, (None, None)], ids=["known", "unknown"])
def test_deformable_conv2d_channels_first(size):
    inputs = tf.keras.Input((6, *size), name="features")
    layer = DeformableConv2D(
        4, 3, data_format="channels_first", offset_kernel_initializer=_offset_kernel()
    )
    model = tf.keras.Model(inputs, layer(inputs))
    features = np.random.default_rng(0).normal(size=(2, 6, *SIZE)).astype(np.float32)

    _assert_converts(model, {"features": features})


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "geometry",
    [{}, {"aligned": True, "samples_per_bin": 2}, {"aligned": True, "samples_per_bin": 0}],
    ids=["default", "aligned", "as many samples as pixels"],
)
@pytest.mark.parametrize("layer", [RoIPool, PSRoIPool, DeformableRoIPool, DeformablePSRoIPool])
def test_roi_pooling(layer, geometry, unknown):
    geometry = {"spatial_scale": 0.5, **geometry}
    channels = 6
    if layer is PSRoIPool:
        channels = 3 * 3 * 2
        pool = PSRoIPool(3, 3, **geometry)
    elif layer is DeformableRoIPool:
        pool = DeformableRoIPool(
            (3, 2),
            offset_units=(5,),
            modulated=True,
            offset_kernel_initializer=_offset_kernel(),
            **geometry,
        )
    elif layer is DeformablePSRoIPool:
        pool = DeformablePSRoIPool(
            3, 3, score_filters=4, offset_kernel_initializer=_offset_kernel(), **geometry
        )
    else:
        pool = RoIPool((3, 2), **geometry)
    size, count = ((None, None), None) if unknown else (SIZE, 3)
    inputs = [
        tf.keras.Input((*size, channels), name="features"),
        tf.keras.Input((count, 4), name="boxes"),
    ]
    model = tf.keras.Model(inputs, pool(inputs))
    random = np.random.default_rng(0)
    corners = random.uniform(-3, 15, [2, 3, 2])
    boxes = np.concatenate([corners, corners + random.uniform(1, 12, corners.shape)], axis=-1)
    boxes[0, 1], boxes[1, 2] = 0, -1  # padding

    _assert_converts(
        model,
        {
            "features": random.normal(size=(2, *SIZE, channels)).astype(np.float32),
            "boxes": boxes.astype(np.float32),
        },
    )
