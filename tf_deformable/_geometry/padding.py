"""Output sizes and padding of convolutions, as `tf.nn.conv2d` defines them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tf_deformable._geometry.sizes import Dim, Pair, floor_divide, known

if TYPE_CHECKING:
    import tensorflow as tf

# Explicit padding is ((top, bottom), (left, right)).
Padding: TypeAlias = Literal["SAME", "VALID"] | tuple[Pair, Pair]


def padding_attributes(padding: Padding) -> dict[str, Any]:
    """Returns the attributes that the compiled operator has for it."""
    if isinstance(padding, str):
        return {"padding": padding, "explicit_paddings": []}
    return {"padding": "EXPLICIT", "explicit_paddings": [pad for axis in padding for pad in axis]}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One spatial axis: the output's size, and the padding that leads to it."""

    output: Dim
    pad_before: Dim
    pad_after: Dim
    extent: Dim  # of the dilated kernel
    padded: Dim
    kernel_is_too_large: bool


def resolve_axis(
    size: Dim, kernel: Dim, stride: int, dilation: int, padding: Padding, pads: Pair | None = None
) -> Axis:
    """Output size and padding as `tf.nn.conv2d` defines them.

    Args:
        size: of the inputs.
        kernel: number of taps.
        stride: in pixels.
        dilation: in pixels.
        padding: of both axes.
        pads: before and after, if the padding is explicit.

    Only sizes are divided, and what an attribute adds to them beforehand is negative and less than
    a stride: the dividends fit in int32, whatever the attributes.
    """
    extent = (kernel - 1) * dilation + 1
    if padding == "SAME":
        output = -floor_divide(-size, stride)
        missing = (output - 1) * stride - size  # but for the kernel
        total = maximum(missing + extent, 0)
        half = floor_divide(missing + extent % 2, 2) + extent // 2  # of missing + extent
        before = maximum(half, 0)
        return Axis(output, before, total - before, extent, size + total, False)
    before, after = pads or (0, 0)
    padded = size + before + after
    added = before + after - extent
    whole = -(-added // stride)
    # An empty map has an empty output instead of an error.
    output = floor_divide(size + (added - whole * stride), stride) + whole + 1
    too_large = known(size, padded, extent) and size > 0 and padded < extent
    return Axis(maximum(output, 0), before, after, extent, padded, too_large)


def resolve_axes(
    size: Sequence[Dim],
    kernel_size: Sequence[Dim],
    strides: Pair,
    dilations: Pair,
    padding: Padding,
) -> tuple[Axis, Axis]:
    """`resolve_axis` of rows and columns."""
    pads = (None, None) if isinstance(padding, str) else padding
    y, x = (
        resolve_axis(size[i], kernel_size[i], strides[i], dilations[i], padding, pads[i])
        for i in (0, 1)
    )
    return y, x


def window_starts(pixels: Any, stride: Any, pad_before: Any) -> Any:
    """Returns where the windows of output pixels begin along an axis, in pixels of the inputs.

    Tap k of a window lies `k * dilation` behind its start, in every operator of the package.

    Args:
        pixels: of the output: an array of TensorFlow, JAX or NumPy.
        stride: in pixels.
        pad_before: in pixels, as `Axis` has it.
    """
    return pixels * stride - pad_before


def explicit_padding(padding: Padding) -> str | list[list[int]]:
    """Returns a padding as the operators take it for "NHWC"."""
    if isinstance(padding, str):
        return padding
    return [[0, 0], *map(list, padding), [0, 0]]


def same_axes(
    input_size: Any, kernel_size: Sequence[Dim], strides: Pair, dilations: Pair
) -> tuple[Axis, Axis]:
    """`resolve_axes` of "SAME" padding; arguments as `same_padding` has them."""
    import tensorflow as tf

    # LiteRT unpacks int32, and not int64.
    size = [tf.cast(n, tf.int64) for n in tf.unstack(tf.cast(input_size, tf.int32), num=2)]
    return resolve_axes(size, kernel_size, strides, dilations, "SAME")


def same_padding(
    input_size: Any, kernel_size: Sequence[Dim], strides: Pair, dilations: Pair
) -> tf.Tensor:
    """Returns TensorFlow's "SAME" padding, int32 `[[top, bottom], [left, right]]`.

    Args:
        input_size: height and width, two integers or an integer tensor of shape `[2]`.
        kernel_size: kh and kw.
        strides: y and x.
        dilations: y and x.
    """
    import tensorflow as tf

    axes = same_axes(input_size, kernel_size, strides, dilations)
    return tf.cast(tf.stack([[axis.pad_before, axis.pad_after] for axis in axes]), tf.int32)


def maximum(a: Dim, b: int) -> Dim:
    """Returns the larger of a size, or padding, and a number."""
    if isinstance(a, int):
        return max(a, b)
    import tensorflow as tf

    return tf.maximum(a, tf.constant(b, tf.int64))
