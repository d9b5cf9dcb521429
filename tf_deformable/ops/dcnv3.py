"""DCNv3 and DCNv4, of InternImage and FlashInternImage: deformable attention on one map.

The two are one operator: what differs is what their layers do to the mask before.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable._geometry import rules
from tf_deformable._geometry.padding import Axis, resolve_axes
from tf_deformable._geometry.sizes import (
    Checks,
    Dim,
    Pair,
    differ,
    dims,
    known,
    shape_of,
    shape_text,
    text,
)
from tf_deformable.ops import _arguments
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_LAST = {"offsets": "G*K*2", "mask": "G*K"}


@accepts_keras_tensors
def dcnv3(
    inputs: Any,
    offsets: Any,
    mask: Any,
    *,
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    dilations: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    data_format: str = "NHWC",
    name: str | None = None,
) -> tf.Tensor:
    r"""DCNv3 (Wang et al., InternImage, CVPR 2023, equation 2), without its projections.

    Each output pixel p is a sum of samples of its group's channels, without filters:

        y(p)[c] = sum_k mask(p, g, k) * x(q(p, g, k))[c],    g = c // (C/G)
        q(p, g, k) = p * stride - pad + center + (k * dilation - center + offsets(p, g, k)) * scale

    where k = (i, j) are the taps of the kernel and center = dilation * (size - 1) // 2. Samples are
    those of `tf_deformable.multi_scale_deformable_attention`: bilinear, zero outside of the map,
    the same at borders, for NaN and for infinities, differentiable as often. The mask is used as it
    is: DCNv3 has passed it through a softmax over the taps before, as
    `tf_deformable.layers.DCNv3` does.

    Example:
        >>> inputs = tf.random.normal([2, 14, 14, 64])
        >>> offsets = tf.zeros([2, 14, 14, 4 * 9 * 2])
        >>> mask = tf.fill([2, 14, 14, 4 * 9], 1 / 9)
        >>> tf_deformable.dcnv3(inputs, offsets, mask).shape
        TensorShape([2, 14, 14, 64])

    Args:
        inputs: `[N, H, W, C]` (NCHW: `[N, C, H, W]`), float16, bfloat16, float32 or float64.
        offsets: `[N, Ho, Wo, G*K*2]` (NCHW: `[N, G*K*2, Ho, Wo]`) in pixels of the inputs, last
            axis = (group, tap row, tap column, (dy, dx)), the last fastest. K is kh*kw, one less
            without the center; the groups G follow from the shape. DCNv3's and DCNv4's own order
            differs: see `tf_deformable.convert.offsets_from_dcnv3`.
        mask: `[N, Ho, Wo, G*K]` (NCHW: `[N, G*K, Ho, Wo]`), one factor per tap.
        kernel_size: an integer or (kh, kw).
        strides: an integer or (y, x), at least 1.
        padding: "SAME", "VALID" or `[[0, 0], [top, bottom], [left, right], [0, 0]]`, in the order
            of `data_format`.
        dilations: an integer or (y, x), at least 1.
        offset_scale: factor of the offsets and of the distance of the taps from the center.
        remove_center: whether the kernel has no tap at its center; its sizes must then be odd.
        data_format: "NHWC", or "NCHW", which is transposed to NHWC and back.
        name: of the operation in a graph.

    `offsets` and `mask` have the dtype of `inputs`. Beside inputs in float16 or bfloat16 they may
    be float32, and should be, as for `tf_deformable.deformable_conv2d`. Positions are computed in
    float32 (float64 for float64 inputs) anyway.

    Returns:
        `[N, Ho, Wo, C]` (NCHW: `[N, C, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: dtypes or known shapes do not fit, or an attribute breaks its rule. Shapes in
            messages are those of NHWC.
        tf.errors.InvalidArgumentError: shapes that only the run shows do not fit.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    return _dcn(
        "dcnv3",
        {"inputs": inputs, "offsets": offsets, "mask": mask},
        _window(
            "dcnv3",
            kernel_size,
            strides,
            padding,
            dilations,
            offset_scale,
            remove_center,
            data_format,
        ),
        name,
    )


@accepts_keras_tensors
def dcnv4(
    inputs: Any,
    offsets: Any,
    mask: Any,
    *,
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    dilations: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    data_format: str = "NHWC",
    name: str | None = None,
) -> tf.Tensor:
    r"""DCNv4 (Xiong et al., FlashInternImage, CVPR 2024, section 3.1), without its projections.

    The arithmetic of `tf_deformable.dcnv3`. What is new in DCNv4 is that no softmax bounds the
    mask, which is here as it was there for the caller to do or not to do: the function is there for
    its name. DCNv4's own packs offsets and mask of each group into one tensor, padded to a multiple
    of 8: `tf_deformable.convert.offsets_and_mask_from_dcnv4` takes it apart.

    Example:
        >>> inputs = tf.random.normal([2, 14, 14, 64])
        >>> packed = tf.random.normal([2, 14, 14, 112])  # of 4 groups: 108, padded to 112
        >>> offsets, mask = tf_deformable.convert.offsets_and_mask_from_dcnv4(packed, 3, groups=4)
        >>> tf_deformable.dcnv4(inputs, offsets, mask).shape
        TensorShape([2, 14, 14, 64])

    Args:
        inputs: `[N, H, W, C]` (NCHW: `[N, C, H, W]`), float16, bfloat16, float32 or float64.
        offsets: `[N, Ho, Wo, G*K*2]` (NCHW: `[N, G*K*2, Ho, Wo]`), as `dcnv3` has them.
        mask: `[N, Ho, Wo, G*K]` (NCHW: `[N, G*K, Ho, Wo]`), one factor per tap, of any size.
        kernel_size: an integer or (kh, kw).
        strides: an integer or (y, x), at least 1.
        padding: "SAME", "VALID" or `[[0, 0], [top, bottom], [left, right], [0, 0]]`, in the order
            of `data_format`.
        dilations: an integer or (y, x), at least 1.
        offset_scale: factor of the offsets and of the distance of the taps from the center.
        remove_center: whether the kernel has no tap at its center; its sizes must then be odd.
        data_format: "NHWC", or "NCHW", which is transposed to NHWC and back.
        name: of the operation in a graph.

    Returns:
        `[N, Ho, Wo, C]` (NCHW: `[N, C, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError, tf_deformable.NativeLibraryError: as
            `dcnv3`.
    """
    return _dcn(
        "dcnv4",
        {"inputs": inputs, "offsets": offsets, "mask": mask},
        _window(
            "dcnv4",
            kernel_size,
            strides,
            padding,
            dilations,
            offset_scale,
            remove_center,
            data_format,
        ),
        name,
    )


def positions_of_taps(
    offsets: tf.Tensor,
    *,
    input_size: Sequence[Dim],
    kernel_size: Any,
    strides: Any,
    padding: Any,
    dilations: Any,
    offset_scale: float,
    remove_center: bool,
) -> tf.Tensor:
    """Returns where `dcnv3` and `dcnv4` sample, for layers.

    Args:
        offsets: `[N, Ho, Wo, G*K*2]`, float32 or float64.
        input_size: height and width of the inputs.
        kernel_size: (kh, kw), these and all others as `dcnv3` has them.
        strides: (y, x).
        padding: for "NHWC".
        dilations: (y, x).
        offset_scale: finite.
        remove_center: whether the center is no tap.

    Returns:
        `[N, Ho, Wo, G, K, 2]`, (y, x) in pixels of the inputs.
    """
    op = "positions_of_taps"
    window = _window(
        op, kernel_size, strides, padding, dilations, offset_scale, remove_center, "NHWC"
    )
    axes = resolve_axes(input_size, window.kernel, window.strides, window.dilations, window.padding)
    batch, rows, columns, sizes = dims(offsets, 4)
    groups = sizes // (2 * len(window.taps))
    positions = _positions(offsets, axes, groups, window, offsets.dtype)
    return tf.reshape(positions, shape_of(batch, rows, columns, groups, len(window.taps), 2))


@dataclasses.dataclass(frozen=True)
class _Window:
    """The attributes of a call, checked."""

    kernel: Pair
    strides: Pair
    padding: Any  # as `resolve_axes` takes it
    dilations: Pair
    scale: float
    taps: np.ndarray  # [K, 2]: row, column
    layout: str  # "NHWC" or "NCHW"

    @property
    def centers(self) -> tuple[int, int]:
        """Distance of the center from the first tap."""
        y, x = (
            rate * (size - 1) // 2 for size, rate in zip(self.kernel, self.dilations, strict=True)
        )
        return y, x


def _window(
    op: str,
    kernel_size: Any,
    strides: Any,
    padding: Any,
    dilations: Any,
    offset_scale: Any,
    remove_center: Any,
    data_format: Any,
) -> _Window:
    layout = _arguments.data_format(op, data_format)
    kernel = _arguments.positive_pair(op, "kernel_size", kernel_size)
    steps = _arguments.positive_pair(op, "strides", strides)
    rates = _arguments.positive_pair(op, "dilations", dilations)
    pads = _arguments.padding(op, padding, layout)
    if not np.isfinite(_arguments.number(op, "offset_scale", offset_scale)):
        raise Checks(op).error(f"offset_scale must be finite, got {offset_scale:g}")
    scale = float(offset_scale)  # no attribute of an operator: it need not be float32
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    if _arguments.boolean(op, "remove_center", remove_center):
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise Checks(op).error(f"remove_center needs an odd kernel_size, got {text(kernel)}")
        del taps[len(taps) // 2]
    return _Window(kernel, steps, pads, rates, scale, np.array(taps).reshape(-1, 2), layout)


def _dcn(op: str, arguments: dict[str, Any], window: _Window, name: str | None) -> tf.Tensor:
    with tf.name_scope(name or op):
        values = _arguments.tensors(op, arguments, sampling=("offsets", "mask"))
        for argument, tensor in values.items():
            axes = "[N,H,W,C]" if argument == "inputs" else f"[N,Ho,Wo,{_LAST[argument]}]"
            if window.layout == "NCHW":
                axes = "[N,C,H,W]" if argument == "inputs" else f"[N,{_LAST[argument]},Ho,Wo]"
            _arguments.check_rank(op, argument, axes, tensor)
            if window.layout == "NCHW":
                values[argument] = tf.transpose(tensor, _TO_NHWC)
        outputs = _sum_of_samples(Checks(op), **values, window=window)
        return tf.transpose(outputs, _TO_NCHW) if window.layout == "NCHW" else outputs


def _sum_of_samples(
    check: Checks, inputs: tf.Tensor, offsets: tf.Tensor, mask: tf.Tensor, window: _Window
) -> tf.Tensor:
    batch, height, width, channels = dims(inputs, 4)
    axes = resolve_axes(
        (height, width), window.kernel, window.strides, window.dilations, window.padding
    )
    if any(axis.kernel_is_too_large for axis in axes):
        extent, padded = ([getattr(axis, size) for axis in axes] for size in ("extent", "padded"))
        raise check.error(rules.kernel_does_not_fit(extent, padded))
    count = len(window.taps)
    groups = _groups(check, dims(offsets, 4)[3], count, channels)
    output = [batch, axes[0].output, axes[1].output]
    for argument, tensor, size in (("offsets", offsets, 2 * count), ("mask", mask, count)):
        got, expected = dims(tensor, 4), [*output, groups * size]
        expected_text = text([*output, f"G*{size}"]) if argument == "offsets" else text(expected)
        layout = f"[N,Ho,Wo,{_LAST[argument]}]"
        if differ(got, expected):
            raise check.error(
                f"{argument} must have shape {layout} = {expected_text}, "
                f"got shape {shape_text(tensor)}"
            )
        check.at_run_time(argument, layout, got, expected)

    queries = axes[0].output * axes[1].output
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    positions = _positions(offsets, axes, groups, window, dtype)
    attended = multi_scale_deformable_attention(
        tf.reshape(inputs, shape_of(batch, height * width, groups, channels // groups)),
        tf.reshape(tf.stack([height, width]), [1, 2]),
        tf.reshape(positions, shape_of(batch, queries, groups, 1, count, 2)),
        tf.reshape(tf.cast(mask, dtype), shape_of(batch, queries, groups, 1, count)),
        coordinates="pixels",
    )
    return tf.reshape(attended, shape_of(*output, channels))


def _groups(check: Checks, sizes: Dim, taps: int, channels: Dim) -> Dim:
    """The groups that offsets of `sizes` channels have, which must divide the channels."""
    if known(sizes) and (sizes == 0 or sizes % (2 * taps)):
        raise check.error(
            f"offsets channels must be a positive multiple of K*2={2 * taps}, got {sizes}"
        )
    groups = sizes // (2 * taps)
    if known(channels, groups) and channels % groups:
        raise check.error(f"inputs channels must be a multiple of G, got C={channels}, G={groups}")
    return groups


def _positions(
    offsets: tf.Tensor, axes: tuple[Axis, Axis], groups: Dim, window: _Window, dtype: tf.DType
) -> tf.Tensor:
    """Where the taps sample, in pixels: `[N, Ho*Wo, G, K, 2]`.

    Rows and columns are one axis: LiteRT takes no more than five.
    """

    def along(i: int) -> tf.Tensor:  # [Ho, K] or [Wo, K]
        axis, center = axes[i], window.centers[i]
        pixels = tf.range(axis.output, dtype=tf.int64)
        starts = pixels * window.strides[i] - axis.pad_before + center
        distances = (window.taps[:, i] * window.dilations[i] - center) * window.scale
        return tf.cast(starts, dtype)[:, None] + tf.constant(distances, dtype)

    y, x = along(0)[:, None, None, :], along(1)[None, :, None, :]
    grid = tf.stack([y + tf.zeros_like(x), x + tf.zeros_like(y)], axis=-1)
    batch, rows, columns, _ = dims(offsets, 4)
    taps = len(window.taps)
    moved = tf.reshape(tf.cast(offsets, dtype), shape_of(batch, rows * columns, groups, taps, 2))
    return moved * window.scale + tf.reshape(grid, shape_of(rows * columns, 1, taps, 2))
