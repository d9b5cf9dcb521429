"""The operators of the package as operators of ONNX.

Half of that is done in TensorFlow, before the conversion: an operator is wrapped so that what
remains of it is what an operator of ONNX computes too. The converter then takes the one for the
other. What ONNX has no operator for becomes the reference, hence Gather and arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tf_deformable import _native
from tf_deformable._geometry.padding import resolve_axes, same_padding
from tf_deformable._geometry.sizes import Pair
from tf_deformable._registration import references
from tf_deformable.export import _portable

# tf2onnx knows the operator sets up to this one.
CONVERTER_OPSET = 18
# DeformConv belongs to a later set. It waits in a domain of its own until the model is of that set.
PENDING_DOMAIN = "tf_deformable.pending"

_TO_NCHW = [0, 3, 1, 2]
_TO_NHWC = [0, 2, 3, 1]
_HALF = (tf.float16, tf.bfloat16)
_CONVOLUTIONS = ("TFDeformable>Conv2D", "TFDeformable>DeformableConv2D")
_POOLINGS = ("TFDeformable>RoiPool", "TFDeformable>DeformableRoIPool")


def replacements(*, deform_conv: bool, roi_align: bool, float16: bool) -> _portable.Replacements:
    """Returns what replaces operators before the conversion.

    Args:
        deform_conv: whether the convolution becomes `DeformConv`.
        roi_align: whether RoI pooling becomes `RoiAlign` where that computes the same.
        float16: whether the convolution stays in float16, where all its tensors are.
    """
    result: dict[str, Any] = references()
    if deform_conv:
        result |= dict.fromkeys(_CONVOLUTIONS, functools.partial(_as_deform_conv, float16=float16))
    if roi_align:
        for op_type in _POOLINGS:
            result[op_type] = functools.partial(_as_roi_align, otherwise=result[op_type])
    return result | dict.fromkeys(("Conv2D", "DepthwiseConv2dNative"), _as_padded)


def handlers() -> Mapping[str, Any]:
    """Returns what converts the operators that remain, as tf2onnx takes it."""
    handlers = {
        _CONVOLUTIONS[0]: _make_deform_conv,
        _POOLINGS[0]: _make_roi_align,
        "Erfc": _make_erfc,
        "FloorDiv": _make_floor_div,
        "FloorMod": _make_floor_mod,
        "SelectV2": _make_where,
    }
    return {op_type: (handler, []) for op_type, handler in handlers.items()}


def _as_deform_conv(op: tf.Operation, *, float16: bool) -> Callable[..., list[tf.Tensor]]:
    """A convolution with explicit padding, of tensors of one dtype, float32 in place of halves.

    "SAME" padding depends on the size of the map where the stride is not 1: where that is unknown,
    the map is padded before. That is the same: outside of it there are zeros.
    """
    num_masks = op.get_attr("num_masks")
    strides, dilations = (tuple(op.get_attr(name)) for name in ("strides", "dilations"))
    padding = tf.compat.as_str(op.get_attr("padding"))
    dtype = op.inputs[0].dtype
    is_float16 = float16 and all(tensor.dtype == tf.float16 for tensor in op.inputs)
    wide = tf.float32 if dtype in _HALF and not is_float16 else dtype

    def compute(inputs: tf.Tensor, filters: tf.Tensor, *others: tf.Tensor) -> list[tf.Tensor]:
        inputs, filters, offsets, *rest = (tf.cast(t, wide) for t in (inputs, filters, *others))
        explicit = [0, 0, 0, 0]
        if padding == "EXPLICIT":
            explicit = op.get_attr("explicit_paddings")
        elif padding == "SAME":
            kernel_size = tuple(filters.shape[:2])
            size = inputs.shape[1:3].as_list()
            # With a stride of 1 the size does not matter.
            known = [n or 1 if stride == 1 else n for n, stride in zip(size, strides, strict=True)]
            if None not in known:
                axes = resolve_axes(known, kernel_size, strides, dilations, "SAME")
                explicit = [pad for axis in axes for pad in (axis.pad_before, axis.pad_after)]
            else:
                inputs = _padded(inputs, kernel_size, strides, dilations)
        outputs = _native.load().tf_deformable_conv2d(
            inputs=inputs,
            filters=filters,
            offsets=offsets,
            mask=rest[:num_masks],
            bias=rest[num_masks:],
            strides=strides,
            dilations=dilations,
            padding="EXPLICIT",
            explicit_paddings=explicit,
        )
        return [tf.cast(outputs, dtype)]

    return compute


def _padded(inputs: tf.Tensor, kernel_size: Pair, strides: Pair, dilations: Pair) -> tf.Tensor:
    """Inputs with the zeros around that "SAME" padding stands for."""
    pads = same_padding(tf.shape(inputs)[1:3], kernel_size, strides, dilations)
    shape = [inputs.shape[0], None, None, inputs.shape[3]]
    padded = tf.pad(inputs, tf.concat([[[0, 0]], pads, [[0, 0]]], axis=0))
    return tf.ensure_shape(padded, shape)


def _as_padded(op: tf.Operation) -> Callable[..., list[tf.Tensor]] | None:
    """TensorFlow's convolution without "SAME" padding where the kernel is less than a stride.

    Pixels are left out then, and runtimes disagree about which: ONNX Runtime has negative padding.
    """
    kernel_size = tuple(op.inputs[1].shape[:2])
    _, *strides, _ = op.get_attr("strides")
    _, *dilations, _ = op.get_attr("dilations")
    is_same = tf.compat.as_str(op.get_attr("padding")) == "SAME"
    is_nhwc = tf.compat.as_str(op.get_attr("data_format")) == "NHWC"
    if not is_same or not is_nhwc or None in kernel_size:
        return None
    extents = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilations, strict=True)]
    if all(extent >= stride for extent, stride in zip(extents, strides, strict=True)):
        return None
    function = tf.raw_ops.Conv2D if op.type == "Conv2D" else tf.raw_ops.DepthwiseConv2dNative
    attributes = {"strides": op.get_attr("strides"), "dilations": op.get_attr("dilations")}

    def compute(inputs: tf.Tensor, filters: tf.Tensor) -> list[tf.Tensor]:
        if max(extents) > 1:  # Nothing is added to a kernel of one pixel.
            inputs = _padded(inputs, kernel_size, tuple(strides), tuple(dilations))
        return [function(input=inputs, filter=filters, padding="VALID", **attributes)]

    return compute


def _make_deform_conv(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Converts the convolution that `_as_deform_conv` leaves."""
    inputs, filters, offsets, *others = node.input
    num_masks = node.get_attr_value("num_masks", 0)
    mask, bias = others[:num_masks], others[num_masks:]
    kernel_height, kernel_width, group_channels, _ = _known(ctx, node, filters, range(4))
    (channels,) = _known(ctx, node, inputs, [3])
    (sampling_channels,) = _known(ctx, node, offsets, [3])
    top, bottom, left, right = node.get_attr_value("explicit_paddings")
    attributes = {
        "kernel_shape": [kernel_height, kernel_width],
        "strides": node.get_attr_value("strides"),
        "dilations": node.get_attr_value("dilations"),
        "pads": [top, left, bottom, right],
        "group": channels // group_channels,
        "offset_group": sampling_channels // (2 * kernel_height * kernel_width),
    }
    (output,), (shape,), (dtype,) = node.output, node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    as_ocyx = ctx.make_node("Transpose", [filters], attr={"perm": [3, 2, 0, 1]})
    converted = ctx.make_node(
        "DeformConv",
        [
            _transposed(ctx, inputs, _TO_NCHW),
            as_ocyx.output[0],
            _transposed(ctx, offsets, _TO_NCHW),
            bias[0] if bias else "",
            *(_transposed(ctx, tensor, _TO_NCHW) for tensor in mask),
        ],
        attr=attributes,
        domain=PENDING_DOMAIN,
        shapes=[None if shape is None else [shape[axis] for axis in _TO_NCHW]],
        dtypes=[dtype],
    )
    ctx.make_node(
        "Transpose",
        [converted.output[0]],
        attr={"perm": _TO_NHWC},
        outputs=[output],
        shapes=[shape],
        dtypes=[dtype],
    )


def _as_roi_align(
    op: tf.Operation, *, otherwise: Callable[[tf.Operation], Callable[..., list[tf.Tensor]]]
) -> Callable[..., list[tf.Tensor]]:
    """Pooling of boxes that all are finite and have an image, in float32 at least.

    Args:
        op: the operator.
        otherwise: what replaces one that RoiAlign does not compute.
    """
    is_plain = not op.get_attr("num_offsets") and op.get_attr("group_size") == 1
    if not is_plain or not op.get_attr("aligned"):
        return otherwise(op)
    dtype = op.inputs[0].dtype
    wide = tf.float32 if dtype in _HALF else dtype
    output_size = op.get_attr("output_size")
    attributes = {
        name: op.get_attr(name) for name in ("spatial_scale", "samples_per_bin", "aligned")
    }

    def compute(
        inputs: tf.Tensor, boxes: tf.Tensor, box_indices: tf.Tensor, *mask: tf.Tensor
    ) -> list[tf.Tensor]:
        is_pooled = box_indices >= 0
        is_finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1)
        is_read = tf.expand_dims(is_pooled & is_finite, 1)
        outputs = _native.load().tf_deformable_roi_pool(
            inputs=tf.cast(inputs, wide),
            boxes=tf.cast(tf.where(is_read, boxes, tf.zeros([], boxes.dtype)), wide),
            box_indices=tf.maximum(box_indices, 0),
            offsets=[],
            mask=[],
            output_size=output_size,
            **attributes,
        )
        outputs += tf.where(_as_bins(is_finite), 0.0, tf.constant(float("nan"), wide))
        for factors in mask:
            outputs *= tf.cast(tf.expand_dims(factors, -1), wide)
        # Not a product: whatever padding holds.
        return [tf.cast(tf.where(_as_bins(is_pooled), outputs, tf.zeros([], wide)), dtype)]

    return compute


def _as_bins(tensor: tf.Tensor) -> tf.Tensor:
    """`[R]` to `[R, 1, 1, 1]`."""
    return tf.reshape(tensor, [-1, 1, 1, 1])


def _make_roi_align(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Converts the pooling that `_as_roi_align` leaves."""
    from onnx import TensorProto

    inputs, boxes, box_indices = node.input
    height, width = node.get_attr_value("output_size")
    attributes = {
        "output_height": height,
        "output_width": width,
        "sampling_ratio": node.get_attr_value("samples_per_bin"),
        "spatial_scale": node.get_attr_value("spatial_scale"),
        "coordinate_transformation_mode": "half_pixel",
        "mode": "avg",
    }
    (output,), (shape,), (dtype,) = node.output, node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    x_before_y = ctx.make_const(f"{name}_x_before_y", _integers([1, 0, 3, 2]))
    converted = ctx.make_node(
        "RoiAlign",
        [
            _transposed(ctx, inputs, _TO_NCHW),
            ctx.make_node("Gather", [boxes, x_before_y.output[0]], attr={"axis": 1}).output[0],
            ctx.make_node("Cast", [box_indices], attr={"to": TensorProto.INT64}).output[0],
        ],
        attr=attributes,
        shapes=[None if shape is None else [shape[axis] for axis in _TO_NCHW]],
        dtypes=[dtype],
    )
    ctx.make_node(
        "Transpose",
        [converted.output[0]],
        attr={"perm": _TO_NHWC},
        outputs=[output],
        shapes=[shape],
        dtypes=[dtype],
    )


# ONNX' Div of integers rounds towards zero. tf2onnx (1.17) overlooks that, and the output of a
# convolution with "SAME" padding and strides gets the wrong size: -(-size // stride).


def _make_floor_div(ctx: Any, node: Any, name: str, args: Any) -> None:
    if _is_floating(ctx, node):
        _of_tf2onnx("FloorDiv").version_6(ctx, node)
        return
    dividend, divisor = node.input
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    # The remainder that has the sign of the divisor: what is left can be divided.
    remainder = ctx.make_node("Mod", [dividend, divisor]).output[0]
    whole = ctx.make_node("Sub", [dividend, remainder]).output[0]
    ctx.make_node("Div", [whole, divisor], outputs=outputs, shapes=shapes, dtypes=dtypes)


def _make_floor_mod(ctx: Any, node: Any, name: str, args: Any) -> None:
    if _is_floating(ctx, node):
        _of_tf2onnx("FloorMod").version_7(ctx, node)
    else:
        node.type = "Mod"


def _make_where(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Converts `tf.where`: tf2onnx makes products and a sum of it, which NaN passes through."""
    node.type = "Where"


def _make_erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Converts what Keras' GELU is made of, which tf2onnx (1.17) does not know."""
    import numpy as np
    from tf2onnx.utils import map_onnx_to_numpy_type

    (tensor,) = node.input
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    one = ctx.make_const(f"{name}_one", np.array(1, map_onnx_to_numpy_type(dtypes[0])))
    erf = ctx.make_node("Erf", [tensor]).output[0]
    ctx.make_node("Sub", [one.output[0], erf], outputs=outputs, shapes=shapes, dtypes=dtypes)


def _is_floating(ctx: Any, node: Any) -> bool:
    from onnx import TensorProto

    floating = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return ctx.get_dtype(node.input[0]) in floating


def _of_tf2onnx(op_type: str) -> Any:
    from tf2onnx.onnx_opset import math

    return getattr(math, op_type)


def _integers(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)


def _transposed(ctx: Any, tensor: str, permutation: list[int]) -> str:
    return str(ctx.make_node("Transpose", [tensor], attr={"perm": permutation}).output[0])


def _known(ctx: Any, node: Any, tensor: str, axes: Any) -> list[int]:
    """Sizes that an operator of ONNX has as attributes."""
    shape = ctx.get_shape(tensor)
    sizes = [-1 if shape is None else shape[axis] for axis in axes]
    if min(sizes) < 0:
        raise ValueError(
            f"export.onnx: the operator {node.name} has no known number of channels or kernel "
            f"size, which DeformConv needs: {tensor} has the shape {shape}"
        )
    return sizes
