"""Where the operators sample: their offsets as absolute positions.

The samples of a convolution, and the bins of a box:

    q[n, p, g, k] = p * stride - pad + k * dilation + offsets[n, p, g, k]
    bin[r, i, j] = corner + (i, j) * bin_size + gamma * offsets[r, i, j] * box_size

(Dai et al., Deformable Convolutional Networks, ICCV 2017, sections 2.1 and 2.2.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.boxes import box_extent
from tf_deformable._geometry.padding import Padding, same_axes, window_starts
from tf_deformable._geometry.sizes import Checks, Dim, Pair
from tf_deformable.ops import _arguments
from tf_deformable.ops._symbolic import accepts_keras_tensors

_OPERATOR = "sampling_positions"


@accepts_keras_tensors
def sampling_positions(
    offsets: Any,
    *,
    kernel_size: int | Sequence[int],
    input_size: Any,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    dilations: int | Sequence[int] = 1,
) -> tf.Tensor:
    """Returns the positions at which `tf_deformable.deformable_conv2d` samples its inputs.

    Args:
        offsets: `[N, Ho, Wo, G*kh*kw*2]`, what the operator is given: in pixels of its inputs,
            last axis = (offset group, tap row, tap column, (dy, dx)), the last fastest. Any
            floating dtype; batch and spatial sizes may be unknown.
        kernel_size: int or (kh, kw).
        input_size: height and width of the operator's inputs, two integers or an integer tensor
            of shape `[2]`. "SAME" padding follows from it.
        strides: int or (y, x).
        padding: "SAME", "VALID" or `[[0,0],[top,bottom],[left,right],[0,0]]`.
        dilations: int or (y, x).

    Returns:
        `[N, Ho, Wo, G, kh, kw, 2]`: (y, x) in pixels of the inputs, (0, 0) is the centre of the
        first pixel. float32, or float64 for float64 offsets. Differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: one breaks its rule, or offsets has another rank, or channels that are not a
            positive multiple of kh*kw*2.
    """
    kernel_size = _arguments.positive_pair(_OPERATOR, "kernel_size", kernel_size)
    strides = _arguments.positive_pair(_OPERATOR, "strides", strides)
    dilations = _arguments.positive_pair(_OPERATOR, "dilations", dilations)
    padding = _arguments.padding(_OPERATOR, padding, "NHWC")
    offsets = _arguments.real(_OPERATOR, "offsets", offsets)
    input_size = _arguments.indices(_OPERATOR, "input_size", input_size)
    if not input_size.shape.is_compatible_with([2]):
        raise ValueError(
            f"{_OPERATOR}: input_size must be 2 integers (height, width), got shape "
            f"{_arguments.shape_text(input_size)}"
        )
    Checks(_OPERATOR, {"offsets": "[N,Ho,Wo,G*kh*kw*2]"}).rank("offsets", offsets)
    dtype = tf.float64 if offsets.dtype == tf.float64 else tf.float32
    offsets = _split_channels(tf.cast(offsets, dtype), kernel_size)

    y, x = regular_positions(
        tf.shape(offsets)[1:3], kernel_size, input_size, strides, padding, dilations, dtype
    )
    return tf.stack([y + offsets[..., 0], x + offsets[..., 1]], axis=-1)


def regular_positions(
    output_size: Any,
    kernel_size: Sequence[Dim],
    input_size: Any,
    strides: Pair,
    padding: Padding,
    dilations: Pair,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where a convolution samples without offsets.

    Args:
        output_size: Ho and Wo.
        kernel_size: kh and kw.
        input_size: height and width of the inputs; "SAME" padding follows from it.
        strides: y and x.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: y and x.
        dtype: of the results.

    Returns:
        Coordinates y and x, each of a shape that broadcasts to `[N, Ho, Wo, G, kh, kw]`.
    """
    pads: Sequence[Dim]
    if padding == "SAME":
        axes = same_axes(input_size, kernel_size, strides, dilations)
        pads = [axis.pad_before for axis in axes]
    elif padding == "VALID":
        pads = 0, 0
    else:
        pads = [before for before, _ in padding]

    def of_axis(axis: int) -> tf.Tensor:  # [Ho, kh] or [Wo, kw]
        starts = window_starts(_count(output_size[axis]), strides[axis], pads[axis])
        taps = _count(kernel_size[axis]) * dilations[axis]
        return tf.cast(starts[:, None] + taps, dtype)

    return of_axis(0)[:, None, None, :, None], of_axis(1)[:, None, None, :]


def _count(size: Any) -> tf.Tensor:
    """0 to size - 1 in 64 bits, which a multiple by any attribute fits into."""
    return tf.range(tf.cast(size, tf.int64), dtype=tf.int64)


@accepts_keras_tensors
def bin_boxes(
    boxes: Any,
    offsets: Any = None,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
    aligned: bool = True,
) -> tf.Tensor:
    """Returns the bins that RoI pooling averages, as boxes in the image.

    The arguments are those of `tf_deformable.deformable_roi_pool` and `deformable_psroi_pool`.

    Results are (y1, x1, y2, x2) in the continuous coordinates of the image, in which pixel i
    extends from i to i+1: the bins of a box without offsets tile the box from (y1, x1) to (y2, x2)
    if `aligned`, and otherwise, coordinates being indices of pixels, from the rounded (y1, x1) to
    the rounded (y2+1, x2+1). Matplotlib's `imshow` has pixel i from i-0.5 to i+0.5: subtract 0.5.

    Args:
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image, float32 or float64.
        offsets: `[R, part_h, part_w, 2]` or `[R, part_h, part_w, classes, 2]`, normalised (dy, dx)
            of any floating dtype, or None.
        output_size: number of bins, an integer or (ph, pw).
        spatial_scale: pixels of the map per pixel of the image. Unless `aligned`, a box has at
            least 0.1 pixels of the map; nothing else depends on it.
        gamma: scale of the offsets.
        aligned: which of the two conventions holds.

    Returns:
        `[R, ph, pw, 4]`, or `[R, ph, pw, classes, 4]` if the offsets have classes, in the dtype of
        boxes. Differentiable in boxes and offsets.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: boxes or offsets have another shape or dtype, output_size or spatial_scale is
            not positive.
    """
    op = "bin_boxes"
    output_size = _arguments.positive_pair(op, "output_size", output_size)
    spatial_scale = _arguments.number(op, "spatial_scale", spatial_scale)
    if not spatial_scale > 0:
        raise ValueError(f"{op}: spatial_scale must be positive, got {spatial_scale:g}")
    gamma = _arguments.number(op, "gamma", gamma)
    boxes = _arguments.boxes(op, boxes, tf.float32)
    if not boxes.shape.is_compatible_with([None, 4]):
        raise ValueError(
            f"{op}: boxes must have shape [R,4], got shape {_arguments.shape_text(boxes)}"
        )

    aligned = _arguments.boolean(op, "aligned", aligned)
    low, high = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    low, size = box_extent(low, high, spatial_scale, aligned=aligned)
    low, size = (low + 0.5) / spatial_scale, size / spatial_scale  # from the map to the image
    rows, columns = tf.meshgrid(*map(tf.range, output_size), indexing="ij")
    bin_size = size / tf.constant(output_size, boxes.dtype)
    starts = low + tf.cast(tf.stack([rows, columns], axis=-1), boxes.dtype) * bin_size
    if offsets is not None:
        offsets = _offsets_of_bins(op, _arguments.real(op, "offsets", offsets), output_size)
        if offsets.shape.rank == 5:
            starts, size, bin_size = (t[..., None, :] for t in (starts, size, bin_size))
        starts += gamma * tf.cast(offsets, boxes.dtype) * size
    return tf.concat([starts, starts + bin_size], axis=-1)


def _split_channels(offsets: tf.Tensor, kernel_size: tuple[int, int]) -> tf.Tensor:
    """`[N, Ho, Wo, G*kh*kw*2]` to `[N, Ho, Wo, G, kh, kw, 2]`."""
    kernel_height, kernel_width = kernel_size
    per_group = 2 * kernel_height * kernel_width
    channels = offsets.shape[-1]
    if channels is not None and (channels == 0 or channels % per_group):
        raise ValueError(
            f"{_OPERATOR}: offsets channels must be a positive multiple of kh*kw*2={per_group}, "
            f"got {channels}"
        )
    batch, height, width, depth = tf.unstack(tf.shape(offsets), num=4)
    groups = (depth if channels is None else channels) // per_group
    return tf.reshape(offsets, [batch, height, width, groups, kernel_height, kernel_width, 2])


def _offsets_of_bins(op: str, offsets: tf.Tensor, output_size: tuple[int, int]) -> tf.Tensor:
    """Offsets of parts, `[R, part_h, part_w, ...]`, to those of bins, `[R, ph, pw, ...]`."""
    if offsets.shape.rank not in (4, 5) or offsets.shape[-1] not in (2, None):
        raise ValueError(
            f"{op}: offsets must have shape [R,part_h,part_w,2] or [R,part_h,part_w,classes,2], "
            f"got shape {_arguments.shape_text(offsets)}"
        )
    for axis, bins in enumerate(output_size, start=1):
        part = tf.range(bins) * tf.shape(offsets)[axis] // bins
        offsets = tf.gather(offsets, part, axis=axis)
    return offsets
