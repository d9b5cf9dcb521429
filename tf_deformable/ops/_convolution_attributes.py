"""The attributes of the registered operators that are convolutions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def convolution_attributes_of(op: tf.Operation) -> dict[str, Any]:
    """Returns those of `ConvolutionAttributes`, as its constructor takes them."""
    padding = tf.compat.as_str(op.get_attr("padding"))
    if padding == "EXPLICIT":
        top, bottom, left, right = op.get_attr("explicit_paddings")
        padding = ((top, bottom), (left, right))
    return {
        "strides": tuple(op.get_attr("strides")),
        "padding": padding,
        "dilations": tuple(op.get_attr("dilations")),
    }
