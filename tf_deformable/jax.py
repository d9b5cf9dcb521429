"""The operators for JAX: the same compiled kernels, called by XLA itself.

`deformable_conv2d`, `deformable_roi_pool`, `deformable_psroi_pool`,
`multi_scale_deformable_attention`, `dcnv3` and `dcnv4` take and return JAX arrays, and have the
names, the conventions and the gradients of the functions of `tf_deformable`, which say what they
compute. They work under `jax.jit`, `jax.grad` and `jax.vmap` (one call after the other), on the CPU
and, in a library with CUDA kernels, on GPUs. They are differentiated once, in reverse.

The kernels come from the package's own library, which is there if the package was built with
TensorFlow 2.20 or later. TensorFlow need not be installed to use it.

Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from tf_deformable.jax import deformable_conv2d
    >>> inputs, filters = jnp.ones([1, 8, 8, 4]), jnp.ones([3, 3, 4, 6])
    >>> offsets = jnp.zeros([1, 8, 8, 2 * 3 * 3])
    >>> jax.jit(deformable_conv2d)(inputs, filters, offsets).shape
    (1, 8, 8, 6)
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tf_deformable import _native
from tf_deformable._geometry import attributes as _attributes
from tf_deformable._geometry.convolution_attributes import ConvolutionAttributes
from tf_deformable._geometry.data_format import TO_NCHW, DataFormat
from tf_deformable._geometry.dcnv3 import Window, dcnv3_checks, dcnv3_geometry, dcnv3_window
from tf_deformable._geometry.deformable_attention import deformable_attention_geometry
from tf_deformable._geometry.deformable_conv2d import (
    deformable_conv2d_checks,
    deformable_conv2d_geometry,
)
from tf_deformable._geometry.padding import window_starts
from tf_deformable._geometry.roi_pool import (
    OPERATORS,
    RoIPoolAttributes,
    roi_pool_checks,
    roi_pool_geometry,
)
from tf_deformable._geometry.sizes import Checks

__all__ = [
    "dcnv3",
    "dcnv4",
    "deformable_conv2d",
    "deformable_psroi_pool",
    "deformable_roi_pool",
    "multi_scale_deformable_attention",
]

_CONV2D = "deformable_conv2d"
_ROI_POOL, _PSROI_POOL = OPERATORS
_ATTENTION = "multi_scale_deformable_attention"
_ATTENTION_TENSORS = ("value", "sampling_locations", "attention_weights")
_HANDLERS = tuple(
    f"{name}{gradient}"
    for name in ("conv2d", "conv2d_branch", "roi_pool", "attention")
    for gradient in ("", "_grad")
)


def deformable_conv2d(
    inputs: Any,
    filters: Any,
    offsets: Any,
    mask: Any = None,
    *,
    bias: Any = None,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    dilations: int | Sequence[int] = 1,
    data_format: str = "NHWC",
) -> jax.Array:
    """Deformable convolution of JAX arrays, as `tf_deformable.deformable_conv2d` defines it.

    Args:
        inputs: `[N, H, W, C]`, or `[N, C, H, W]` with `data_format="NCHW"`. float16, bfloat16,
            float32 or float64.
        filters: `[kh, kw, C/groups, F]`.
        offsets: `[N, Ho, Wo, G*kh*kw*2]` (NCHW: `[N, G*kh*kw*2, Ho, Wo]`), in pixels, the last axis
            ordered (offset group, tap row, tap column, (dy, dx)).
        mask: `[N, Ho, Wo, G*kh*kw]` (NCHW: `[N, G*kh*kw, Ho, Wo]`), or None.
        bias: `[F]`, or None.
        strides: an integer or (y, x).
        padding: "SAME", "VALID", or explicit `[[0, 0], [top, bottom], [left, right], [0, 0]]` in
            the order of `data_format`.
        dilations: an integer or (y, x).
        data_format: "NHWC" or "NCHW".

    `filters` and `bias` have the dtype of `inputs`; so have `offsets` and `mask`, or they are
    float32 beside half precision.

    Returns:
        `[N, Ho, Wo, F]` (NCHW: `[N, F, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes or attributes break a rule.
        jax.errors.JaxRuntimeError: dtypes do not fit.
        tf_deformable.NativeLibraryError: the library is missing.
    """
    layout = _attributes.data_format(_CONV2D, data_format)
    attributes = ConvolutionAttributes.normalised(_CONV2D, strides, padding, dilations, layout)
    tensors = _arrays(inputs=inputs, filters=filters, offsets=offsets, mask=mask, bias=bias)
    tensors = deformable_conv2d_checks(layout).channels_last(tensors, jnp.transpose)
    output = _conv2d(attributes, layout, tensors)
    return jnp.transpose(output, TO_NCHW) if layout == "NCHW" else output


def deformable_roi_pool(
    inputs: Any,
    boxes: Any,
    box_indices: Any,
    offsets: Any = None,
    mask: Any = None,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    samples_per_bin: int = 4,
    gamma: float = 0.1,
    aligned: bool = True,
) -> jax.Array:
    """Deformable RoI pooling of JAX arrays, as `tf_deformable.deformable_roi_pool` defines it.

    Args:
        inputs: `[N, H, W, C]`, float16, bfloat16, float32 or float64.
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image; not differentiated.
        box_indices: `[R]`, the image of each box in [0, N), or -1 for padding. An index that is
            neither is an error on the CPU; on a GPU it gives NaN.
        offsets: `[R, part_h, part_w, 2]`, or None.
        mask: `[R, ph, pw]`, or None.
        output_size: an integer or (ph, pw).
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; with `aligned=True` 0 means one per pixel.
        gamma: scale of the offsets.
        aligned: False for the authors' geometry, True for that of RoIAlign.

    Returns:
        `[R, ph, pw, C]`, in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes or attributes break a rule.
        jax.errors.JaxRuntimeError: dtypes do not fit, or a box index is neither -1 nor in [0, N).
        tf_deformable.NativeLibraryError: the library is missing.
    """
    tensors = _arrays(inputs=inputs, offsets=offsets, mask=mask)
    if tensors["offsets"] is not None:
        roi_pool_checks(_ROI_POOL).rank("offsets", tensors["offsets"])
        tensors["offsets"] = jnp.expand_dims(tensors["offsets"], 3)
    return _pool(
        _ROI_POOL, tensors, boxes, box_indices,
        output_size, 1, spatial_scale, samples_per_bin, gamma, aligned,
    )  # fmt: skip


def deformable_psroi_pool(
    inputs: Any,
    boxes: Any,
    box_indices: Any,
    offsets: Any = None,
    mask: Any = None,
    *,
    output_size: int | Sequence[int],
    group_size: int,
    spatial_scale: float = 1.0,
    samples_per_bin: int = 4,
    gamma: float = 0.1,
    aligned: bool = True,
) -> jax.Array:
    """Position-sensitive RoI pooling of JAX arrays, as `tf_deformable.deformable_psroi_pool`.

    Args:
        inputs: `[N, H, W, k*k*D]`, channels ordered (map row, map column, D).
        boxes: as `deformable_roi_pool` has them, like all that is not named here.
        box_indices: `[R]`.
        offsets: `[R, part_h, part_w, classes, 2]`, or None.
        mask: `[R, ph, pw]`, or None.
        output_size: an integer or (ph, pw).
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis.
        gamma: scale of the offsets.
        aligned: False for the authors' geometry, True for that of RoIAlign.

    Returns:
        `[R, ph, pw, D]`, in the dtype of `inputs`.

    Raises:
        TypeError: as `deformable_roi_pool`.
        ValueError: likewise.
        jax.errors.JaxRuntimeError: likewise.
        tf_deformable.NativeLibraryError: likewise.
    """
    return _pool(
        _PSROI_POOL, _arrays(inputs=inputs, offsets=offsets, mask=mask), boxes, box_indices,
        output_size, group_size, spatial_scale, samples_per_bin, gamma, aligned,
    )  # fmt: skip


def multi_scale_deformable_attention(
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
    *,
    coordinates: str = "normalized",
    num_points: Sequence[int] | None = None,
) -> jax.Array:
    """Attention of JAX arrays, as `tf_deformable.multi_scale_deformable_attention` defines it.

    Args:
        value: `[N, S, heads, D]`, float16, bfloat16, float32 or float64: the pixels of the levels
            one after the other, each row by row.
        spatial_shapes: `[levels, 2]`, height and width of each level: integers or an integer array.
            On a GPU they must be known when XLA compiles: they cannot be what a function under
            `jax.jit` gets or computes.
        sampling_locations: `[N, Q, heads, levels, points, 2]`, last axis (y, x).
        attention_weights: `[N, Q, heads, levels, points]`, used as they are.
        coordinates: "normalized", where a location is at the pixel location * (H, W) - 0.5, or
            "pixels".
        num_points: the points of each level, where levels differ in them: sampling_locations are
            `[N, Q, heads, P, 2]` and attention_weights `[N, Q, heads, P]` then, P in all.

    `sampling_locations` and `attention_weights` have the dtype of `value`, or are float32 beside
    half precision.

    Returns:
        `[N, Q, heads*D]`, in the dtype of `value`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes or attributes break a rule.
        jax.errors.JaxRuntimeError: dtypes do not fit, or sizes of levels that only the run shows.
        tf_deformable.NativeLibraryError: the library is missing.
    """
    levels, sizes = _levels(spatial_shapes)
    tensors = _arrays(
        value=value, sampling_locations=sampling_locations, attention_weights=attention_weights
    )
    attributes = _AttentionAttributes(
        coordinates=_attributes.coordinates_of_maps(_ATTENTION, coordinates),
        num_points=_attributes.points_of_levels(_ATTENTION, num_points),
        levels=levels,
    )
    return _attention(attributes, tensors, sizes)


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
) -> jax.Array:
    """DCNv3 of JAX arrays, as `tf_deformable.dcnv3` defines it.

    Args:
        inputs: `[N, H, W, C]` (NCHW: `[N, C, H, W]`), float16, bfloat16, float32 or float64.
        offsets: `[N, Ho, Wo, G*K*2]` (NCHW: `[N, G*K*2, Ho, Wo]`) in pixels of the inputs, last
            axis = (group, tap row, tap column, (dy, dx)). K is kh*kw, one less without the center.
        mask: `[N, Ho, Wo, G*K]` (NCHW: `[N, G*K, Ho, Wo]`), one factor per tap.
        kernel_size: an integer or (kh, kw).
        strides: an integer or (y, x), at least 1.
        padding: "SAME", "VALID" or `[[0, 0], [top, bottom], [left, right], [0, 0]]`, in the order
            of `data_format`.
        dilations: an integer or (y, x), at least 1.
        offset_scale: factor of the offsets and of the distance of the taps from the center.
        remove_center: whether the kernel has no tap at its center; its sizes must then be odd.
        data_format: "NHWC" or "NCHW".

    `offsets` and `mask` have the dtype of `inputs`, or are float32 beside half precision.

    Returns:
        `[N, Ho, Wo, C]` (NCHW: `[N, C, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes, dtypes or attributes break a rule.
        jax.errors.JaxRuntimeError: inputs have another dtype.
        tf_deformable.NativeLibraryError: the library is missing.
    """
    return _dcn(
        "dcnv3", inputs, offsets, mask,
        kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format,
    )  # fmt: skip


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
) -> jax.Array:
    """DCNv4 of JAX arrays, as `tf_deformable.dcnv4` defines it: the arithmetic of `dcnv3`.

    DCNv4 puts no softmax on the mask. Its own code packs offsets and mask of each group into one
    tensor; here they are two.

    Args:
        inputs: as `dcnv3` has them, like all that is not named here.
        offsets: `[N, Ho, Wo, G*K*2]` (NCHW: `[N, G*K*2, Ho, Wo]`).
        mask: `[N, Ho, Wo, G*K]` (NCHW: `[N, G*K, Ho, Wo]`), one factor per tap, of any size.
        kernel_size: an integer or (kh, kw).
        strides: an integer or (y, x).
        padding: "SAME", "VALID" or explicit.
        dilations: an integer or (y, x).
        offset_scale: factor of the offsets and of the distance of the taps from the center.
        remove_center: whether the kernel has no tap at its center.
        data_format: "NHWC" or "NCHW".

    Returns:
        `[N, Ho, Wo, C]` (NCHW: `[N, C, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError: as `dcnv3`.
        ValueError: likewise.
        jax.errors.JaxRuntimeError: likewise.
        tf_deformable.NativeLibraryError: likewise.
    """
    return _dcn(
        "dcnv4", inputs, offsets, mask,
        kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format,
    )  # fmt: skip


# --- The convolution -----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(
    attributes: ConvolutionAttributes, data_format: DataFormat, tensors: dict[str, Any]
) -> jax.Array:
    """The operator of maps with channels last, which messages show in the caller's format."""
    geometry = deformable_conv2d_geometry(
        **tensors, **attributes.for_reference(), data_format=data_format
    )
    shape = (geometry.batch, geometry.output_height, geometry.output_width, geometry.filters)
    (output,) = _call(
        "conv2d",
        _present(tensors, "inputs", "filters", "offsets", "mask", "bias"),
        [jax.ShapeDtypeStruct(shape, tensors["inputs"].dtype)],
        num_masks=_count(tensors["mask"]),
        num_biases=_count(tensors["bias"]),
        **attributes.for_native(),
    )
    return output


def _conv2d_forward(
    attributes: ConvolutionAttributes, data_format: DataFormat, tensors: dict[str, Any]
) -> tuple[Any, Any]:
    return _conv2d(attributes, data_format, tensors), tensors


def _conv2d_backward(
    attributes: ConvolutionAttributes,
    data_format: DataFormat,
    tensors: dict[str, Any],
    grad_output: jax.Array,
) -> tuple[dict[str, Any]]:
    differentiated = _present(tensors, "inputs", "filters", "offsets", "mask")
    results = _call(
        "conv2d_grad",
        [*differentiated, grad_output],
        differentiated,
        num_masks=_count(tensors["mask"]),
        **attributes.for_native(),
    )
    grads = _named(tensors, results, "inputs", "filters", "offsets", "mask")
    bias = tensors["bias"]
    if bias is not None:
        accumulator = jnp.promote_types(bias.dtype, jnp.float32)
        grads["bias"] = grad_output.sum((0, 1, 2), dtype=accumulator).astype(bias.dtype)
    return ({"bias": None, **grads},)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


# --- RoI pooling ---------------------------------------------------------------------------------


def _pool(
    op: str,
    tensors: dict[str, Any],
    boxes: Any,
    box_indices: Any,
    output_size: Any,
    group_size: Any,
    spatial_scale: Any,
    samples_per_bin: Any,
    gamma: Any,
    aligned: Any,
) -> jax.Array:
    attributes = RoIPoolAttributes.normalised(
        op, output_size, group_size, spatial_scale, samples_per_bin, gamma, aligned
    )
    is_double = tensors["inputs"].dtype == jnp.float64
    regions = _arrays(boxes=boxes, box_indices=box_indices)
    regions["boxes"] = regions["boxes"].astype(jnp.float64 if is_double else jnp.float32)
    regions["box_indices"] = _as_int32(regions["box_indices"])
    return _roi_pool(op, attributes, tensors, regions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _roi_pool(
    op: str, attributes: RoIPoolAttributes, tensors: dict[str, Any], regions: dict[str, Any]
) -> jax.Array:
    geometry = roi_pool_geometry(op, **tensors, **regions, **attributes.for_reference())
    shape = (geometry.boxes, *attributes.output_size, geometry.depth)
    (output,) = _call(
        "roi_pool",
        _regions_among(tensors, regions),
        [jax.ShapeDtypeStruct(shape, tensors["inputs"].dtype)],
        **_roi_pool_attributes(attributes, tensors),
    )
    return output


def _roi_pool_forward(
    op: str, attributes: RoIPoolAttributes, tensors: dict[str, Any], regions: dict[str, Any]
) -> tuple[Any, Any]:
    return _roi_pool(op, attributes, tensors, regions), (tensors, regions)


def _roi_pool_backward(
    op: str, attributes: RoIPoolAttributes, residuals: Any, grad_output: jax.Array
) -> tuple[dict[str, Any], None]:
    tensors, regions = residuals
    results = _call(
        "roi_pool_grad",
        [*_regions_among(tensors, regions), grad_output],
        _present(tensors, "inputs", "offsets", "mask"),
        **_roi_pool_attributes(attributes, tensors),
    )
    return _named(tensors, results, "inputs", "offsets", "mask"), None


_roi_pool.defvjp(_roi_pool_forward, _roi_pool_backward)


def _regions_among(tensors: dict[str, Any], regions: dict[str, Any]) -> list[Any]:
    """The operands, in the operator's order."""
    inputs, *others = _present(tensors, "inputs", "offsets", "mask")
    return [inputs, regions["boxes"], regions["box_indices"], *others]


def _roi_pool_attributes(attributes: RoIPoolAttributes, tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_offsets": _count(tensors["offsets"]),
        "num_masks": _count(tensors["mask"]),
        **attributes.for_native(),
    }


# --- Attention -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _AttentionAttributes:
    coordinates: str
    num_points: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...] | None  # of spatial_shapes, where they are known

    def for_native(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "coordinates": self.coordinates,
            "num_points": self.num_points,
        }
        if self.levels is not None:  # CUDA handlers read them there
            attributes["spatial_shapes"] = [size for level in self.levels for size in level]
        return attributes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(attributes: _AttentionAttributes, tensors: dict[str, Any], sizes: Any) -> jax.Array:
    known = attributes.levels
    levels = sizes if known is None else np.array(known, np.int64).reshape(-1, 2)
    g = deformable_attention_geometry(
        spatial_shapes=levels, num_points=attributes.num_points, **tensors
    )
    shape = (g.batch, g.queries, g.heads * g.depth)
    (output,) = _call(
        "attention",
        _sizes_among(tensors, sizes),
        [jax.ShapeDtypeStruct(shape, tensors["value"].dtype)],
        **attributes.for_native(),
    )
    return output


def _attention_forward(
    attributes: _AttentionAttributes, tensors: dict[str, Any], sizes: Any
) -> tuple[Any, Any]:
    return _attention(attributes, tensors, sizes), (tensors, sizes)


def _attention_backward(
    attributes: _AttentionAttributes, residuals: Any, grad_output: jax.Array
) -> tuple[dict[str, Any], None]:
    tensors, sizes = residuals
    results = _call(
        "attention_grad",
        [*_sizes_among(tensors, sizes), grad_output],
        _present(tensors, *_ATTENTION_TENSORS),
        **attributes.for_native(),
    )
    return _named(tensors, results, *_ATTENTION_TENSORS), None


_attention.defvjp(_attention_forward, _attention_backward)


def _sizes_among(tensors: dict[str, Any], sizes: Any) -> list[Any]:
    """The operands, in the operator's order."""
    value, *others = _present(tensors, *_ATTENTION_TENSORS)
    return [value, sizes, *others]


def _levels(spatial_shapes: Any) -> tuple[tuple[tuple[int, ...], ...] | None, Any]:
    """The sizes of the levels as numbers, if they are known, and as an array of int32."""
    sizes = spatial_shapes
    if not isinstance(sizes, jax.core.Tracer):
        sizes = np.asarray(spatial_shapes)
        if sizes.size == 0:  # NumPy does not tell the kind of nothing
            sizes = sizes.astype(np.int64)
    if not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise TypeError(f"{_ATTENTION}: spatial_shapes must be integers, got {sizes.dtype.name}")
    Checks(_ATTENTION, {"spatial_shapes": "[levels,2]"}).rank("spatial_shapes", sizes)
    known = None if isinstance(sizes, jax.core.Tracer) else tuple(map(tuple, sizes.tolist()))
    return known, _as_int32(sizes)


# --- DCNv3, DCNv4 --------------------------------------------------------------------------------


def _dcn(
    op: str,
    inputs: Any,
    offsets: Any,
    mask: Any,
    kernel_size: Any,
    strides: Any,
    padding: Any,
    dilations: Any,
    offset_scale: Any,
    remove_center: Any,
    data_format: Any,
) -> jax.Array:
    window = dcnv3_window(
        op, kernel_size, strides, padding, dilations, offset_scale, remove_center, data_format
    )
    tensors = _arrays(inputs=inputs, offsets=offsets, mask=mask)
    tensors = dcnv3_checks(op, window.data_format).channels_last(tensors, jnp.transpose)
    output = _sum_of_taps(op, window, **tensors)
    return jnp.transpose(output, TO_NCHW) if window.data_format == "NCHW" else output


def _sum_of_taps(op: str, window: Window, inputs: Any, offsets: Any, mask: Any) -> jax.Array:
    """The operator of channels that come last, by attention on one map."""
    g = dcnv3_geometry(op, inputs, offsets, mask, window)
    for name, tensor in (("offsets", offsets), ("mask", mask)):
        allowed = [inputs.dtype] if inputs.dtype.itemsize > 2 else [inputs.dtype, jnp.float32]
        if tensor.dtype not in allowed or tensor.dtype != offsets.dtype:
            raise Checks(op).error(
                f"{name} must have the dtype of inputs ({inputs.dtype.name}), or, both of offsets "
                f"and mask, be float32 beside half precision, got {tensor.dtype.name}"
            )
    dtype = jnp.float64 if inputs.dtype == jnp.float64 else jnp.float32
    rows, columns = g.output[1:]
    taps = len(window.taps)

    def along(i: int) -> jax.Array:  # [Ho, K] or [Wo, K]
        axis = g.axes[i]
        # In NumPy, whose integers have 64 bits.
        output = np.arange(axis.output, dtype=np.int64)
        starts = window_starts(output, window.strides[i], axis.pad_before)
        whole, rest = window.distances(i)
        nearest = (starts + window.center(i))[:, None] + whole
        return jnp.asarray(nearest.astype(dtype) + rest.astype(dtype))

    y, x = along(0)[:, None, None, :], along(1)[None, :, None, :]
    grid = jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)  # [Ho, Wo, 1, K, 2]
    moved = offsets.astype(dtype).reshape(g.batch, rows, columns, g.groups, taps, 2)
    samples = (g.batch, rows * columns, g.groups, 1, taps)
    attended = multi_scale_deformable_attention(
        inputs.reshape(g.batch, g.height * g.width, g.groups, g.channels // g.groups),
        [(g.height, g.width)],
        (moved * window.scale + grid).reshape(*samples, 2),
        mask.astype(dtype).reshape(samples),
        coordinates="pixels",
    )
    return attended.reshape(*g.output, g.channels)


# --- Calls of the handlers -----------------------------------------------------------------------


@functools.cache
def _register() -> None:
    """Makes the handlers of the library known to JAX, once."""
    library = ctypes.CDLL(str(_native.xla_handlers()))
    for platform, suffix in (("cpu", "cpu"), ("CUDA", "cuda")):
        for name in _HANDLERS:
            handler = getattr(library, f"tf_deformable_{name}_{suffix}", None)
            if handler is not None:
                jax.ffi.register_ffi_target(
                    f"tf_deformable_{name}", jax.ffi.pycapsule(handler), platform=platform
                )


def _call(name: str, operands: list[Any], results: list[Any], **attributes: Any) -> list[Any]:
    _register()
    call = jax.ffi.ffi_call(
        f"tf_deformable_{name}",
        [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results],
        vmap_method="sequential",
    )
    given = {key: _attribute(value) for key, value in attributes.items()}
    # What only CUDA devices ask for: JAX's own settings.
    precision = jax.config.jax_default_matmul_precision
    given["tensor_float_32"] = np.bool_(precision not in ("highest", "float32"))
    flags = os.environ.get("XLA_FLAGS", "")
    given["deterministic"] = np.bool_("xla_gpu_deterministic_ops=true" in flags)
    return list(call(*operands, **given))


def _attribute(value: Any) -> Any:
    """A value as the handler reads it."""
    if isinstance(value, (str, bool)):
        return value if isinstance(value, str) else np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    return np.array(value, np.int64) if isinstance(value, (tuple, list)) else np.int64(value)


def _arrays(**values: Any) -> dict[str, Any]:
    return {name: None if value is None else jnp.asarray(value) for name, value in values.items()}


def _as_int32(integers: Any) -> jax.Array:
    """Integers of any dtype as int32; those beyond it become its limits."""
    limits = np.iinfo(np.int32)
    return jnp.asarray(integers.clip(limits.min, limits.max), jnp.int32)


def _present(tensors: dict[str, Any], *names: str) -> list[Any]:
    return [tensors[name] for name in names if tensors[name] is not None]


def _named(tensors: dict[str, Any], results: list[Any], *names: str) -> dict[str, Any]:
    """The results by the names of the tensors that are there, None for the others."""
    remaining = iter(results)
    return {name: None if tensors[name] is None else next(remaining) for name in names}


def _count(tensor: Any) -> int:
    return 0 if tensor is None else 1
