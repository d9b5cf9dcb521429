"""What is not a tensor of a convolution, normalised, and how each backend spells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tf_deformable._geometry import attributes
from tf_deformable._geometry.data_format import DataFormat
from tf_deformable._geometry.padding import Padding, padding_attributes
from tf_deformable._geometry.sizes import Pair


@dataclasses.dataclass(frozen=True)
class ConvolutionAttributes:
    """Strides, padding and dilations, y before x."""

    strides: Pair
    padding: Padding
    dilations: Pair

    @classmethod
    def normalised(
        cls,
        op: str,
        strides: int | Sequence[int],
        padding: str | Sequence[Sequence[int]],
        dilations: int | Sequence[int],
        data_format: DataFormat,
    ) -> ConvolutionAttributes:
        """Returns the attributes of a call.

        Raises:
            TypeError: one is of the wrong kind.
            ValueError: one breaks its rule, as far as it needs no tensors.
        """
        return cls(
            strides=attributes.pair(op, "strides", strides),
            padding=attributes.padding(op, padding, data_format),
            dilations=attributes.pair(op, "dilations", dilations),
        )

    def for_native(self) -> dict[str, Any]:
        """As the compiled operators and handlers take them."""
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            **padding_attributes(self.padding),
        }

    def for_reference(self) -> dict[str, Any]:
        """As the functions of `tf_deformable.reference`, and those of the geometry, take them."""
        return {"strides": self.strides, "padding": self.padding, "dilations": self.dilations}
