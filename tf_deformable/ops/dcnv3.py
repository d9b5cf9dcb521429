"""DCNv3 and DCNv4, of InternImage and FlashInternImage: deformable attention on one map.

The two are one operator: what differs is what their layers do to the mask before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable._geometry.data_format import TO_NCHW
from tf_deformable._geometry.dcnv3 import Window, dcnv3_checks, dcnv3_geometry, dcnv3_window
from tf_deformable._geometry.padding import Axis, resolve_axes, window_starts
from tf_deformable._geometry.sizes import Dim, dims, shape_of
from tf_deformable.ops import _arguments
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention


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
        ValueError: dtypes or known shapes do not fit, or an attribute breaks its rule.
        tf.errors.InvalidArgumentError: shapes that only the run shows do not fit.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    return _dcn(
        "dcnv3", inputs, offsets, mask,
        kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format, name,
    )  # fmt: skip


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

    It computes what `tf_deformable.dcnv3` computes. DCNv3 applies a softmax to the mask before, and
    DCNv4 does not; neither function does. DCNv4's own packs offsets and mask of each group into one
    tensor, padded to a multiple of 8: `tf_deformable.convert.offsets_and_mask_from_dcnv4` takes it
    apart.

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
        "dcnv4", inputs, offsets, mask,
        kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format, name,
    )  # fmt: skip


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
    window = dcnv3_window(
        op, kernel_size, strides, padding, dilations, offset_scale, remove_center, "NHWC"
    )
    axes = resolve_axes(
        input_size, window.kernel_size, window.strides, window.dilations, window.padding
    )
    batch, rows, columns, sizes = dims(offsets, 4)
    groups = sizes // (2 * len(window.taps))
    positions = _positions(offsets, axes, groups, window, offsets.dtype)
    return tf.reshape(positions, shape_of(batch, rows, columns, groups, len(window.taps), 2))


def _dcn(
    op: str,
    inputs: Any,
    offsets: Any,
    mask: Any,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str | Sequence[Sequence[int]],
    dilations: int | Sequence[int],
    offset_scale: float,
    remove_center: bool,
    data_format: str,
    name: str | None,
) -> tf.Tensor:
    window = dcnv3_window(
        op, kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format
    )
    with tf.name_scope(name or op):
        values = _arguments.tensors(
            op,
            {"inputs": inputs, "offsets": offsets, "mask": mask},
            sampling=("offsets", "mask"),
        )
        maps = dcnv3_checks(op, window.data_format).channels_last(values, tf.transpose)
        outputs = _sum_of_samples(op, **maps, window=window)
        return tf.transpose(outputs, TO_NCHW) if window.data_format == "NCHW" else outputs


def _sum_of_samples(
    op: str, inputs: tf.Tensor, offsets: tf.Tensor, mask: tf.Tensor, window: Window
) -> tf.Tensor:
    g = dcnv3_geometry(op, inputs, offsets, mask, window)
    batch, rows, columns = g.output
    count = len(window.taps)
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    positions = _positions(offsets, g.axes, g.groups, window, dtype)
    attended = multi_scale_deformable_attention(
        tf.reshape(inputs, shape_of(batch, g.height * g.width, g.groups, g.channels // g.groups)),
        tf.reshape(tf.stack([g.height, g.width]), [1, 2]),
        tf.reshape(positions, shape_of(batch, rows * columns, g.groups, 1, count, 2)),
        tf.reshape(tf.cast(mask, dtype), shape_of(batch, rows * columns, g.groups, 1, count)),
        coordinates="pixels",
    )
    return tf.reshape(attended, shape_of(*g.output, g.channels))


def _positions(
    offsets: tf.Tensor, axes: tuple[Axis, Axis], groups: Dim, window: Window, dtype: tf.DType
) -> tf.Tensor:
    """Where the taps sample, in pixels: `[N, Ho*Wo, G, K, 2]`.

    Rows and columns are one axis: LiteRT takes no more than five.
    """

    def along(i: int) -> tf.Tensor:  # [Ho, K] or [Wo, K]
        pixels = tf.range(axes[i].output, dtype=tf.int64)
        starts = window_starts(pixels, window.strides[i], axes[i].pad_before)
        whole, rest = window.distances(i)
        nearest = (starts + window.center(i))[:, None] + whole
        return tf.cast(nearest, dtype) + tf.constant(rest, dtype)

    y, x = along(0)[:, None, None, :], along(1)[None, :, None, :]
    grid = tf.stack([y + tf.zeros_like(x), x + tf.zeros_like(y)], axis=-1)
    batch, rows, columns, _ = dims(offsets, 4)
    taps = len(window.taps)
    moved = tf.reshape(tf.cast(offsets, dtype), shape_of(batch, rows * columns, groups, taps, 2))
    return moved * window.scale + tf.reshape(grid, shape_of(rows * columns, 1, taps, 2))
