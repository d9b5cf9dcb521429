"""The operators for JAX: the same compiled kernels, called by XLA itself.

`deformable_conv2d`, `deformable_roi_pool` and `deformable_psroi_pool` take and return JAX arrays,
and have the names, the conventions and the gradients of the functions of `tf_deformable`, which say
what they compute. They work under `jax.jit`, `jax.grad` and `jax.vmap` (one call after the other),
on the CPU and, in a library with CUDA kernels, on GPUs. They are differentiated once, in reverse.

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
from tf_deformable._geometry.deformable_conv2d import deformable_conv2d_geometry
from tf_deformable._geometry.padding import padding_attributes
from tf_deformable._geometry.roi_pool import OPERATORS, roi_pool_geometry
from tf_deformable._geometry.sizes import Checks

__all__ = ["deformable_conv2d", "deformable_psroi_pool", "deformable_roi_pool"]

_CONV2D = "deformable_conv2d"
_ROI_POOL, _PSROI_POOL = OPERATORS
_HANDLERS = ("conv2d", "conv2d_grad", "roi_pool", "roi_pool_grad")


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
        ValueError: shapes or attributes break a rule. Shapes in messages are those of NHWC.
        jax.errors.JaxRuntimeError: dtypes do not fit.
        tf_deformable.NativeLibraryError: the library is missing.
    """
    layout = _attributes.data_format(_CONV2D, data_format)
    attributes = _Conv2DAttributes(
        strides=_attributes.pair(_CONV2D, "strides", strides),
        padding=_attributes.padding(_CONV2D, padding, layout),
        dilations=_attributes.pair(_CONV2D, "dilations", dilations),
    )
    tensors = _arrays(inputs=inputs, filters=filters, offsets=offsets, mask=mask, bias=bias)
    if layout == "NCHW":
        for name, axes in (
            ("inputs", "[N,C,H,W]"),
            ("offsets", "[N,G*kh*kw*2,Ho,Wo]"),
            ("mask", "[N,G*kh*kw,Ho,Wo]"),
        ):
            if tensors[name] is not None:
                Checks(_CONV2D).rank(name, axes, 4, tensors[name])
                tensors[name] = jnp.moveaxis(tensors[name], 1, 3)
    output = _conv2d(attributes, tensors)
    return jnp.moveaxis(output, 3, 1) if layout == "NCHW" else output


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
        Checks(_ROI_POOL).rank("offsets", "[R,part_h,part_w,2]", 4, tensors["offsets"])
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


# --- The convolution -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Conv2DAttributes:
    strides: tuple[int, int]
    padding: Any
    dilations: tuple[int, int]

    def for_native(self) -> dict[str, Any]:
        return {
            "strides": self.strides,
            "dilations": self.dilations,
            **padding_attributes(self.padding),
        }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv2d(attributes: _Conv2DAttributes, tensors: dict[str, Any]) -> jax.Array:
    geometry = deformable_conv2d_geometry(**tensors, **dataclasses.asdict(attributes))
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


def _conv2d_forward(attributes: _Conv2DAttributes, tensors: dict[str, Any]) -> tuple[Any, Any]:
    return _conv2d(attributes, tensors), tensors


def _conv2d_backward(
    attributes: _Conv2DAttributes, tensors: dict[str, Any], grad_output: jax.Array
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


@dataclasses.dataclass(frozen=True)
class _RoIPoolAttributes:
    output_size: tuple[int, int]
    group_size: int
    spatial_scale: float
    samples_per_bin: int
    gamma: float
    aligned: bool


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
    attributes = _RoIPoolAttributes(
        output_size=_attributes.pair(op, "output_size", output_size),
        group_size=_attributes.integer(op, "group_size", group_size),
        spatial_scale=_attributes.number(op, "spatial_scale", spatial_scale),
        samples_per_bin=_attributes.integer(op, "samples_per_bin", samples_per_bin),
        gamma=_attributes.number(op, "gamma", gamma),
        aligned=_attributes.boolean(op, "aligned", aligned),
    )
    is_double = tensors["inputs"].dtype == jnp.float64
    regions = _arrays(boxes=boxes, box_indices=box_indices)
    regions["boxes"] = regions["boxes"].astype(jnp.float64 if is_double else jnp.float32)
    limits = jnp.iinfo(jnp.int32)
    regions["box_indices"] = regions["box_indices"].clip(limits.min, limits.max).astype(jnp.int32)
    return _roi_pool(op, attributes, tensors, regions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _roi_pool(
    op: str, attributes: _RoIPoolAttributes, tensors: dict[str, Any], regions: dict[str, Any]
) -> jax.Array:
    geometry = roi_pool_geometry(op, **tensors, **regions, **dataclasses.asdict(attributes))
    shape = (geometry.boxes, *attributes.output_size, geometry.depth)
    (output,) = _call(
        "roi_pool",
        _regions_among(tensors, regions),
        [jax.ShapeDtypeStruct(shape, tensors["inputs"].dtype)],
        **_roi_pool_attributes(attributes, tensors),
    )
    return output


def _roi_pool_forward(
    op: str, attributes: _RoIPoolAttributes, tensors: dict[str, Any], regions: dict[str, Any]
) -> tuple[Any, Any]:
    return _roi_pool(op, attributes, tensors, regions), (tensors, regions)


def _roi_pool_backward(
    op: str, attributes: _RoIPoolAttributes, residuals: Any, grad_output: jax.Array
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


def _roi_pool_attributes(attributes: _RoIPoolAttributes, tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_offsets": _count(tensors["offsets"]),
        "num_masks": _count(tensors["mask"]),
        **dataclasses.asdict(attributes),
    }


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


def _present(tensors: dict[str, Any], *names: str) -> list[Any]:
    return [tensors[name] for name in names if tensors[name] is not None]


def _named(tensors: dict[str, Any], results: list[Any], *names: str) -> dict[str, Any]:
    """The results by the names of the tensors that are there, None for the others."""
    remaining = iter(results)
    return {name: None if tensors[name] is None else next(remaining) for name in names}


def _count(tensor: Any) -> int:
    return 0 if tensor is None else 1
