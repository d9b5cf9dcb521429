"""Messages show shapes as the caller gave them: channels first, too."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import DeformableConv2D, DeformablePSRoIPool, DeformableRoIPool, config


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request):
    with config.use_backend(request.param):
        yield request.param


def symbolic(*shapes):
    return [tf.keras.Input(shape) for shape in shapes]


# --- Functions with the symbolic tensors of Keras ------------------------------------------------


def test_a_convolution_in_a_model():
    inputs, offsets = symbolic((4, 9, 11), (18, 8, 11))
    message = (
        "deformable_conv2d: offsets must have shape [N,G*kh*kw*2,Ho,Wo] = [?,G*18,9,11], "
        "got shape [?,18,8,11]"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        tf_deformable.deformable_conv2d(
            inputs, np.zeros([3, 3, 4, 6], np.float32), offsets, data_format="NCHW"
        )


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_dcnv3_in_a_model(name):
    inputs, offsets, mask = symbolic((8, 5, 6), (36, 5, 6), (9, 5, 6))
    message = f"{name}: mask must have shape [N,G*K,Ho,Wo] = [?,18,5,6], got shape [?,9,5,6]"
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(tf_deformable, name)(inputs, offsets, mask, data_format="NCHW")


# --- Layers, built for one size and called with others -------------------------------------------

CALLS = {
    "offsets": (
        {"offset_source": "given"},
        [(4, 9, 11), (18, 9, 11)],
        [(4, 9, 11), (18, 8, 11)],
        "offsets must have shape (2, 18, 9, 11) beside inputs of shape (2, 4, 9, 11), "
        "got (2, 18, 8, 11)",
    ),
    "mask": (
        {"offset_source": "given", "modulated": True},
        [(4, 9, 11), (18, 9, 11), (9, 9, 11)],
        [(4, 7, 11), (18, 7, 11), (9, 9, 11)],
        "mask must have shape (2, 9, 7, 11) beside inputs of shape (2, 4, 7, 11), "
        "got (2, 9, 9, 11)",
    ),
    "features": (
        {"offset_source": "features"},
        [(4, 9, 11), (5, 9, 11)],
        [(4, 9, 11), (5, 9, 10)],
        "offset_features must have shape (2, None, 9, 11) beside inputs of shape (2, 4, 9, 11), "
        "got (2, 5, 9, 10)",
    ),
    "flow": (
        {"adds_flow": True},
        [(4, 9, 11), (2, 9, 11)],
        [(4, 9, 11), (2, 9, 1)],
        "flow must have shape (2, 2, 9, 11) beside inputs of shape (2, 4, 9, 11), got (2, 2, 9, 1)",
    ),
}


@pytest.mark.parametrize("call", ["layer", "compute_offsets", "sampling_positions", "graph"])
@pytest.mark.parametrize(("arguments", "good", "bad", "message"), CALLS.values(), ids=CALLS.keys())
def test_maps_of_another_size_than_the_inputs(call, arguments, good, bad, message):
    layer = DeformableConv2D(6, 3, padding="same", data_format="channels_first", **arguments)
    outputs = layer([tf.zeros((2, *shape)) for shape in good])
    assert outputs.shape == (2, 6, 9, 11)
    function = {
        "layer": layer,
        "compute_offsets": layer.compute_offsets,
        "sampling_positions": layer.sampling_positions,
        "graph": tf.function(layer),
    }[call]
    with pytest.raises(ValueError, match=re.escape(f"DeformableConv2D: {message}")):
        function([tf.zeros((2, *shape)) for shape in bad])


@pytest.mark.parametrize(("arguments", "good", "bad", "message"), CALLS.values(), ids=CALLS.keys())
def test_maps_of_another_size_in_a_model(arguments, good, bad, message):
    layer = DeformableConv2D(6, 3, padding="same", data_format="channels_first", **arguments)
    assert tuple(layer(symbolic(*good)).shape) == (None, 6, 9, 11)
    message = message.replace("(2, ", "(None, ")
    with pytest.raises(ValueError, match=re.escape(f"DeformableConv2D: {message}")):
        layer(symbolic(*bad))


@pytest.mark.parametrize(
    "layer",
    [
        DeformableRoIPool(2, data_format="channels_first"),
        DeformablePSRoIPool(2, 2, data_format="channels_first"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_unknown_channels_are_shown_in_their_place(layer):
    message = "features must have a known number of channels, got (2, None, 9, 11)"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.build([(2, None, 9, 11), (2, 5, 4)])
