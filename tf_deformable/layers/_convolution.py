"""What layers share that move a window over maps: its sizes, their padding, the data format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tf_deformable._geometry import rules
from tf_deformable._geometry.padding import Padding, resolve_axes
from tf_deformable._geometry.sizes import AT_MOST_LARGEST, LARGEST_INTEGER, Pair
from tf_deformable.layers._base import OperatorLayer, as_integer


class ConvolutionLayer(OperatorLayer):
    """A layer with the window of a convolution, as `keras.layers.Conv2D` has it."""

    def __init__(
        self,
        *,
        kernel_size: Any,
        strides: Any,
        padding: Any,
        data_format: str | None,
        dilation_rate: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = self._positive_pair("kernel_size", kernel_size)
        self.strides = self._positive_pair("strides", strides)
        self.padding = self._padding(padding)
        self.data_format = self._data_format(data_format)
        self.dilation_rate = self._positive_pair("dilation_rate", dilation_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }

    @property
    def padding_of_both_axes(self) -> Padding:
        """The padding as the package's rules of sizes take it."""
        if isinstance(self.padding, tuple):
            return self.padding
        return "SAME" if self.padding == "same" else "VALID"

    def _padding(self, value: Any) -> str | tuple[Pair, Pair]:
        """Returns the argument `padding`, explicit ones as ((top, bottom), (left, right))."""
        if isinstance(value, str) and value.lower() in ("valid", "same"):
            return value.lower()
        axes = value if isinstance(value, (tuple, list)) else (value, value)
        pads = []
        for axis in axes:
            sides = axis if isinstance(axis, (tuple, list)) else (axis, axis)
            numbers = [
                n for n in map(as_integer, sides) if n is not None and 0 <= n <= LARGEST_INTEGER
            ]
            if len(numbers) == len(sides) == 2:
                pads.append((numbers[0], numbers[1]))
        if len(pads) != 2 or len(axes) != 2:
            rule = (
                "must be 'valid', 'same', a non-negative integer, two of them (y, x) or "
                f"((top, bottom), (left, right)){AT_MOST_LARGEST}"
            )
            raise self._error("padding", rule, value)
        return (pads[0], pads[1]) if any(map(any, pads)) else "valid"

    def _output_size(self, size: Sequence[int | None]) -> list[int | None]:
        """Returns height and width of the output for those of the inputs, None where unknown."""
        # Where a size is not known, one pixel stands for it.
        axes = resolve_axes(
            [1 if pixels is None else pixels for pixels in size],
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            self.padding_of_both_axes,
        )
        sized = list(zip(size, axes, strict=True))
        if any(pixels is not None and axis.padded < axis.extent for pixels, axis in sized):
            padded = ["?" if pixels is None else axis.padded for pixels, axis in sized]
            rule = rules.kernel_does_not_fit([axis.extent for axis in axes], padded)
            raise ValueError(f"{type(self).__name__}: {rule}")
        return [None if pixels is None else axis.output for pixels, axis in sized]
