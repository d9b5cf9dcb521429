"""DCNv3, the operator of InternImage: a call of multi-scale deformable attention on one map."""

from __future__ import annotations

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

_OP = "dcnv3"
_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_LAST = {"offsets": "G*K*2", "mask": "G*K"}
_check = Checks(_OP)


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
    the same at borders, for NaN and for infinities, differentiable as often. DCNv4 is the same
    operator with a mask that no softmax bounds: it is for the caller to apply one.

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
    layout = _arguments.data_format(_OP, data_format)
    kernel = _arguments.positive_pair(_OP, "kernel_size", kernel_size)
    steps = _arguments.positive_pair(_OP, "strides", strides)
    rates = _arguments.positive_pair(_OP, "dilations", dilations)
    pads = _arguments.padding(_OP, padding, layout)
    if not np.isfinite(_arguments.number(_OP, "offset_scale", offset_scale)):
        raise _check.error(f"offset_scale must be finite, got {offset_scale:g}")
    scale = float(offset_scale)  # no attribute of an operator: it need not be float32
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    if _arguments.boolean(_OP, "remove_center", remove_center):
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise _check.error(f"remove_center needs an odd kernel_size, got {text(kernel)}")
        del taps[len(taps) // 2]

    with tf.name_scope(name or _OP):
        values = _arguments.tensors(
            _OP,
            {"inputs": inputs, "offsets": offsets, "mask": mask},
            sampling=("offsets", "mask"),
        )
        for argument, tensor in values.items():
            axes = "[N,H,W,C]" if argument == "inputs" else f"[N,Ho,Wo,{_LAST[argument]}]"
            if layout == "NCHW":
                axes = "[N,C,H,W]" if argument == "inputs" else f"[N,{_LAST[argument]},Ho,Wo]"
            _arguments.check_rank(_OP, argument, axes, tensor)
            if layout == "NCHW":
                values[argument] = tf.transpose(tensor, _TO_NHWC)
        outputs = _sum_of_samples(
            values["inputs"],
            values["offsets"],
            values["mask"],
            kernel,
            np.array(taps),
            steps,
            pads,
            rates,
            scale,
        )
        return tf.transpose(outputs, _TO_NCHW) if layout == "NCHW" else outputs


def _sum_of_samples(
    inputs: tf.Tensor,
    offsets: tf.Tensor,
    mask: tf.Tensor,
    kernel: Pair,
    taps: np.ndarray,  # [K, 2]: row, column
    strides: Pair,
    padding: Any,
    dilations: Pair,
    scale: float,
) -> tf.Tensor:
    batch, height, width, channels = dims(inputs, 4)
    axes = resolve_axes((height, width), kernel, strides, dilations, padding)
    if any(axis.kernel_is_too_large for axis in axes):
        extent, padded = ([getattr(axis, size) for axis in axes] for size in ("extent", "padded"))
        raise _check.error(rules.kernel_does_not_fit(extent, padded))
    count = len(taps)
    groups = _groups(inputs, offsets, count)
    output = [batch, axes[0].output, axes[1].output]
    for argument, tensor, size in (("offsets", offsets, 2 * count), ("mask", mask, count)):
        got, expected = dims(tensor, 4), [*output, groups * size]
        expected_text = text([*output, f"G*{size}"]) if argument == "offsets" else text(expected)
        layout = f"[N,Ho,Wo,{_LAST[argument]}]"
        if differ(got, expected):
            raise _check.error(
                f"{argument} must have shape {layout} = {expected_text}, "
                f"got shape {shape_text(tensor)}"
            )
        _check.at_run_time(argument, layout, got, expected)

    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    queries = axes[0].output * axes[1].output
    # Rows and columns are one axis: LiteRT takes no more than five.
    moved = tf.reshape(tf.cast(offsets, dtype), shape_of(batch, queries, groups, count, 2))
    grid = _grid(axes, taps, kernel, strides, dilations, scale, dtype)
    grid = tf.reshape(grid, shape_of(queries, 1, count, 2))
    attended = multi_scale_deformable_attention(
        tf.reshape(inputs, shape_of(batch, height * width, groups, channels // groups)),
        tf.reshape(tf.stack([height, width]), [1, 2]),
        tf.reshape(moved * scale + grid, shape_of(batch, queries, groups, 1, count, 2)),
        tf.reshape(tf.cast(mask, dtype), shape_of(batch, queries, groups, 1, count)),
        coordinates="pixels",
    )
    return tf.reshape(attended, shape_of(batch, axes[0].output, axes[1].output, channels))


def _groups(inputs: tf.Tensor, offsets: tf.Tensor, taps: int) -> Dim:
    """The groups that the offsets have, which must divide the channels."""
    channels, sizes = dims(inputs, 4)[3], dims(offsets, 4)[3]
    if known(sizes) and (sizes == 0 or sizes % (2 * taps)):
        raise _check.error(
            f"offsets channels must be a positive multiple of K*2={2 * taps}, got {sizes}"
        )
    groups = sizes // (2 * taps)
    if known(channels, groups) and channels % groups:
        raise _check.error(f"inputs channels must be a multiple of G, got C={channels}, G={groups}")
    return groups


def _grid(
    axes: tuple[Axis, Axis],
    taps: np.ndarray,
    kernel: Pair,
    strides: Pair,
    dilations: Pair,
    scale: float,
    dtype: tf.DType,
) -> tf.Tensor:
    """Positions without offsets: `[Ho, Wo, 1, K, 2]`."""

    def along(i: int) -> tf.Tensor:  # [Ho, K] or [Wo, K]
        axis = axes[i]
        center = dilations[i] * (kernel[i] - 1) // 2
        starts = tf.range(axis.output, dtype=tf.int64) * strides[i] - axis.pad_before + center
        distances = (taps[:, i] * dilations[i] - center) * scale
        return tf.cast(starts, dtype)[:, None] + tf.constant(distances, dtype)

    y, x = along(0)[:, None, None, :], along(1)[None, :, None, :]
    return tf.stack([y + tf.zeros_like(x), x + tf.zeros_like(y)], axis=-1)
