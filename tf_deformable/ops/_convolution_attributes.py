"""What is not a tensor of a convolution, normalised; both backends' spelling of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.padding import Padding, padding_attributes
from tf_deformable._geometry.sizes import Pair


@dataclasses.dataclass(frozen=True)
class ConvolutionAttributes:
    """Strides, padding and dilations, y before x."""

    strides: Pair
    padding: Padding
    dilations: Pair

    def for_native(self) -> dict[str, Any]:
        """As the registered operators take them."""
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            **padding_attributes(self.padding),
        }

    def for_reference(self) -> dict[str, Any]:
        """As the functions of `tf_deformable.reference` take them."""
        return {"strides": self.strides, "padding": self.padding, "dilations": self.dilations}

    @staticmethod
    def arguments_of(op: tf.Operation) -> dict[str, Any]:
        """The attributes of a registered operator, as the constructor takes them."""
        padding = tf.compat.as_str(op.get_attr("padding"))
        if padding == "EXPLICIT":
            top, bottom, left, right = op.get_attr("explicit_paddings")
            padding = ((top, bottom), (left, right))
        return {
            "strides": tuple(op.get_attr("strides")),
            "padding": padding,
            "dilations": tuple(op.get_attr("dilations")),
        }
