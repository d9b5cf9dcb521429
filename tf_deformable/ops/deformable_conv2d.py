"""Deformable convolution: the functional operator, its backends and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._calls import Calls
from tf_deformable._geometry.convolution_attributes import ConvolutionAttributes
from tf_deformable._geometry.data_format import TO_NCHW
from tf_deformable._geometry.deformable_conv2d import (
    deformable_conv2d_checks,
    deformable_conv2d_geometry,
)
from tf_deformable._geometry.sizes import Dim, dims, shape_of
from tf_deformable._registration import (
    register_gradient,
    register_reference,
    register_vectorization,
)
from tf_deformable.ops import _arguments
from tf_deformable.ops._convolution_attributes import convolution_attributes_of
from tf_deformable.ops._refusals import refusing_as_given
from tf_deformable.ops._second_order import (
    hessian_product,
    samples_beside,
    vector_jacobian_product,
)
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.sampling import regular_positions
from tf_deformable.reference import deformable_conv2d as _reference

_OP = "deformable_conv2d"


@accepts_keras_tensors
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
    name: str | None = None,
) -> tf.Tensor:
    r"""Deformable convolution: a convolution whose taps read where `offsets` point.

    A convolution sums over a regular grid of taps k around every output pixel p. Deformable
    convolution (Dai et al. 2017, equation 2) moves every tap of every pixel by a learned offset,
    and its second version (Zhu et al. 2019, equation 1) also scales it by a learned mask:

        y(p) = sum_k w_k * x(p_k + dp_k) * dm_k,    p_k = p * stride - pad + k * dilation

    The positions are fractional, so x is interpolated bilinearly (Dai et al., equations 3 and 4):

        x(q) = sum_r G(r, q) * x[r],    G(r, q) = max(0, 1-|r_y-q_y|) * max(0, 1-|r_x-q_x|)

    over all pixels r of the map. Outside of the map x is zero: a position counts while
    -1 < y < H and -1 < x < W, and fades out linearly over the last pixel. Offsets of zero and a
    mask of one (or None) give exactly `tf.nn.conv2d`. Equation numbers are those of
    "Deformable Convolutional Networks" (ICCV 2017) and "Deformable ConvNets v2" (CVPR 2019).

    Sizes are written N batch, H, W, C inputs, kh, kw kernel, F output channels, Ho, Wo output map.
    The number of groups is `C / filters.shape[2]` as in `tf.nn.conv2d`; the number of offset groups
    G is `offsets.shape[-1] / (kh*kw*2)` and must divide C; input channel c follows the offsets of
    group `c // (C/G)`. For kernel size, strides, dilations and padding all combinations work.

    Differentiable in inputs, filters, offsets, mask and bias, twice and more. At an integer
    position the derivative by the offset is the one towards the next larger coordinate.

    Positions are computed in float32 (float64 for float64 tensors) and sums are accumulated in at
    least float32, whatever the dtype of the tensors. A NaN offset makes the
    output pixel NaN, and its gradients by offsets, mask and filters. Infinite and huge offsets read
    zeros. An empty batch or map gives an empty or zero result of the right shape.

    The compiled operator computes it, or plain TensorFlow, as `tf_deformable.config` says when the
    call is made, or traced.

    Example:
        >>> inputs = tf.random.normal([8, 32, 32, 16])
        >>> filters = tf.random.normal([3, 3, 16, 24])
        >>> offsets = tf.zeros([8, 32, 32, 2 * 3 * 3])
        >>> tf_deformable.deformable_conv2d(inputs, filters, offsets).shape
        TensorShape([8, 32, 32, 24])

    Args:
        inputs: `[N, H, W, C]`, or `[N, C, H, W]` with `data_format="NCHW"`. float16, bfloat16,
            float32 or float64.
        filters: `[kh, kw, C/groups, F]`, in both data formats.
        offsets: `[N, Ho, Wo, G*kh*kw*2]` (NCHW: `[N, G*kh*kw*2, Ho, Wo]`), in pixels of `inputs`.
            The channel axis is (offset group, tap row, tap column, (dy, dx)): dy before dx, the
            pair varying fastest.
        mask: `[N, Ho, Wo, G*kh*kw]` (NCHW: `[N, G*kh*kw, Ho, Wo]`), one factor per tap, or None
            for the first version of the operator. It is used as it is: apply a sigmoid before.
        bias: `[F]`, added to the output, or None.
        strides: an integer or (y, x), at least 1.
        padding: "SAME" or "VALID" (in any case) as `tf.nn.conv2d` has them, or explicit
            `[[0, 0], [top, bottom], [left, right], [0, 0]]`, in the order of `data_format`.
        dilations: an integer or (y, x), at least 1; both strides and dilations may exceed 1.
        data_format: "NHWC", or "NCHW", which is transposed to NHWC and back.
        name: of the operation in a graph.

    `filters`, `offsets`, `mask` and `bias` have the dtype of `inputs`. Beside inputs in float16 or
    bfloat16, `offsets` and `mask` may be float32, and should be: 16 bits round offsets of 32 to 64
    pixels to 1/32 (float16) or 1/4 (bfloat16) of a pixel. Python numbers and integer arrays are
    converted; floating arrays and tensors of another dtype are an error.

    Returns:
        `[N, Ho, Wo, F]` (NCHW: `[N, F, Ho, Wo]`), in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: dtypes differ or are not supported; in a graph, and with the reference backend,
            shapes that are known and do not fit, strides or dilations below 1, negative padding,
            or a dilated kernel larger than the padded inputs.
        tf.errors.InvalidArgumentError: the same, from the compiled operator in eager mode, and for
            shapes that only the run of a graph shows: its messages show them as those of NHWC.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    layout = _arguments.data_format(_OP, data_format)
    attributes = ConvolutionAttributes.normalised(_OP, strides, padding, dilations, layout)
    with tf.name_scope(name or _OP):
        values = _arguments.tensors(
            _OP,
            {
                "inputs": inputs,
                "filters": filters,
                "offsets": offsets,
                "mask": mask,
                "bias": bias,
            },
            sampling=("offsets", "mask"),
            optional=("mask", "bias"),
        )
        maps_last = deformable_conv2d_checks(layout).channels_last(values, tf.transpose)
        inputs, filters, offsets, mask, bias = maps_last.values()
        forward: Callable[[], tf.Tensor]
        if config.get_backend() == "native":
            forward = functools.partial(
                _native_forward,
                inputs,
                filters,
                offsets,
                [] if mask is None else [mask],
                [] if bias is None else [bias],
                attributes,
            )
        else:
            forward = functools.partial(_reference, **maps_last, **attributes.for_reference())
        if layout == "NHWC":
            return forward()
        check = functools.partial(
            deformable_conv2d_geometry,
            **maps_last,
            **attributes.for_reference(),
            data_format=layout,
        )
        return tf.transpose(refusing_as_given(forward, check), TO_NCHW)


def _attributes_of(op: tf.Operation) -> ConvolutionAttributes:
    return ConvolutionAttributes(**convolution_attributes_of(op))


def _native_forward(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    offsets: tf.Tensor,
    mask: list[tf.Tensor],
    bias: list[tf.Tensor],
    attributes: ConvolutionAttributes,
) -> tf.Tensor:
    return _native.load().tf_deformable_conv2d(
        inputs=inputs,
        filters=filters,
        offsets=offsets,
        mask=mask,
        bias=bias,
        **attributes.for_native(),
    )


def _native_backward(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    offsets: tf.Tensor,
    mask: list[tf.Tensor],
    grad_output: tf.Tensor,
    attributes: ConvolutionAttributes,
) -> list[tf.Tensor]:
    """Gradients of inputs, filters, offsets and, if there is one, mask."""
    grads = _native.load().tf_deformable_conv2d_grad(
        inputs=inputs,
        filters=filters,
        offsets=offsets,
        mask=mask,
        grad_output=grad_output,
        **attributes.for_native(),
    )
    return [grads.grad_inputs, grads.grad_filters, grads.grad_offsets, *grads.grad_mask]


def _gradient(op: tf.Operation, grad_output: tf.Tensor) -> list[tf.Tensor]:
    inputs, filters, offsets, *mask_and_bias = op.inputs
    num_masks = op.get_attr("num_masks")
    mask, bias = mask_and_bias[:num_masks], mask_and_bias[num_masks:]
    grads = _native_backward(inputs, filters, offsets, mask, grad_output, _attributes_of(op))
    return grads + [_sum_over_pixels(grad_output) for _ in bias]


def _second_gradient(op: tf.Operation, *upstream: tf.Tensor) -> list[tf.Tensor]:
    attributes = _attributes_of(op)
    return hessian_product(
        functools.partial(_hessian_along, attributes=attributes),
        functools.partial(_reference, **attributes.for_reference()),
        op.inputs,
        [*upstream, tf.zeros_like(op.inputs[-1])],
    )


def _hessian_along(
    number: int,
    variables: Sequence[tf.Tensor],
    direction: tf.Tensor,
    attributes: ConvolutionAttributes,
) -> list[tf.Tensor | None]:
    """The Hessian of `<grad_output, output>` times a direction of one of the variables.

    `variables` are what the gradient operator reads. All of them but the offsets are factors of the
    product: the derivative along one of them is the product with that factor replaced.
    """
    if number == 2:
        return _hessian_along_offsets(variables, direction, attributes)
    replaced = list(variables)
    replaced[number] = direction
    inputs, filters, offsets, *mask = replaced
    grad_output = mask.pop()
    terms: list[tf.Tensor | None] = [
        *_native_backward(inputs, filters, offsets, mask, grad_output, attributes),
        None,
    ]
    if number < len(variables) - 1:
        terms[-1] = _native_forward(inputs, filters, offsets, mask, [], attributes)
    terms[number] = None
    return terms


def _hessian_along_offsets(
    variables: Sequence[tf.Tensor], direction: tf.Tensor, attributes: ConvolutionAttributes
) -> list[tf.Tensor | None]:
    """As `_hessian_along`.

    The derivative along the offsets is four more deformable convolutions, of `samples_beside`,
    whose masks are the direction.

    They are nearly equal in pairs, and half precision would leave little of the differences: they
    are computed in float32.
    """
    dtype = tf.float64 if variables[0].dtype == tf.float64 else tf.float32
    inputs, filters, offsets, *mask, grad_output = (tf.cast(v, dtype) for v in variables)
    batch, *output_size, channels = dims(offsets, 4)
    kernel_size = dims(filters, 4)[:2]
    taps = kernel_size[0] * kernel_size[1]
    samples = [batch, *output_size, channels // (2 * taps), *kernel_size]

    def by_axis(tensor: tf.Tensor) -> list[tf.Tensor]:
        return tf.unstack(tf.reshape(tensor, shape_of(*samples, 2)), axis=-1)

    def as_channels(tensor: tf.Tensor, depth: Dim) -> tf.Tensor:
        return tf.reshape(tensor, shape_of(batch, *output_size, depth))

    regular = regular_positions(
        output_size,
        kernel_size,
        dims(inputs, 4)[1:3],
        attributes.strides,
        attributes.padding,
        attributes.dilations,
        dtype,
    )
    moved, directions = by_axis(offsets), by_axis(tf.cast(direction, dtype))
    factor = tf.reshape(mask[0], shape_of(*samples)) if mask else None

    of_inputs, of_filters, of_mask, of_grad_output = [], [], [], []
    of_offsets: list[list[tf.Tensor]] = [[], []]
    for places, along, other in samples_beside(moved, directions, regular):
        values = (
            inputs,
            filters,
            as_channels(tf.stack(places, axis=-1), channels),
            [as_channels(along if factor is None else along * factor, channels // 2)],
        )
        grads = _native_backward(*values, grad_output, attributes)
        of_inputs.append(grads[0])
        of_filters.append(grads[1])
        of_offsets[other].append(by_axis(grads[2])[other])
        of_mask.append(along * tf.reshape(grads[3], shape_of(*samples)))
        of_grad_output.append(_native_forward(*values, [], attributes))
    return [
        tf.add_n(of_inputs),
        tf.add_n(of_filters),
        as_channels(tf.stack([tf.add_n(terms) for terms in of_offsets], axis=-1), channels),
        *([as_channels(tf.add_n(of_mask), channels // 2)] if mask else []),
        tf.add_n(of_grad_output),
    ]


def _vectorized(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    num_masks, attributes = op.get_attr("num_masks"), _attributes_of(op)
    sampled = [0, *range(2, 3 + num_masks)]
    multiplied = [1, *range(3 + num_masks, len(op.inputs))]

    def run(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs, filters, offsets, *others = tensors
        mask, bias = others[:num_masks], others[num_masks:]
        return [_native_forward(inputs, filters, offsets, mask, bias, attributes)]

    tensors = list(calls.inputs)
    if not calls.differ(multiplied):  # a larger batch
        for i in sampled:
            tensors[i] = calls.folded(i, 0)
        return [calls.unfolded(output, 0, calls.size(0, 0)) for output in run(tensors)]
    if not calls.differ(sampled):  # more filters, on the same samples
        groups = _groups(calls)
        for i in multiplied:
            tensors[i] = calls.folded(i, -1, groups)
        return [calls.unfolded(output, -1, calls.size(1, 3), groups) for output in run(tensors)]
    # More groups would be one call as well: it takes longer than the loop.
    return calls.one_by_one(run, op.outputs)


def _vectorized_gradient(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    attributes = _attributes_of(op)
    upstream = len(op.inputs) - 1

    def run(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs, filters, offsets, *mask = tensors
        grad_output = mask.pop()
        return _native_backward(inputs, filters, offsets, mask, grad_output, attributes)

    if calls.differ(range(upstream)):
        return calls.one_by_one(run, op.outputs)

    # A Jacobian. The gradient of the filters is that of more filters, on the same samples; the
    # others are those of a larger batch. TensorFlow makes only the calls whose results are used.
    groups = _groups(calls)
    filters, grad_output = (calls.folded(i, -1, groups) for i in (1, upstream))
    of_filters = run([calls.inputs[0], filters, *calls.inputs[2:-1], grad_output])[1]
    tensors = [calls.folded(i, 0) for i in range(len(op.inputs))]
    tensors[1] = calls.inputs[1]
    of_inputs, _, *others = run(tensors)
    batch = calls.size(0, 0)
    return [
        calls.unfolded(of_inputs, 0, batch),
        calls.unfolded(of_filters, -1, calls.size(1, 3), groups),
        *(calls.unfolded(grad, 0, batch) for grad in others),
    ]


def _groups(calls: Calls) -> tf.Tensor:
    return calls.size(0, 3) // calls.size(1, 2)


def _reference_of(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    num_masks, attributes = op.get_attr("num_masks"), _attributes_of(op).for_reference()

    def compute(
        inputs: tf.Tensor, filters: tf.Tensor, offsets: tf.Tensor, *others: tf.Tensor
    ) -> list[tf.Tensor]:
        mask = others[0] if num_masks else None
        bias = others[num_masks] if len(others) > num_masks else None
        return [_reference(inputs, filters, offsets, mask, bias=bias, **attributes)]

    return compute


def _reference_of_gradient(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    function = functools.partial(_reference, **_attributes_of(op).for_reference())
    return lambda *inputs: vector_jacobian_product(function, inputs[:-1], inputs[-1])


# The second of each is that of version 0.1.
_FORWARD = ["TFDeformable>Conv2D", "TFDeformable>DeformableConv2D"]
_BACKWARD = ["TFDeformable>Conv2DGrad", "TFDeformable>DeformableConv2DGrad"]
register_gradient(_gradient, _FORWARD)
register_gradient(_second_gradient, _BACKWARD)
register_vectorization(_vectorized, _FORWARD)
register_vectorization(_vectorized_gradient, _BACKWARD)
register_reference(_reference_of, _FORWARD)
register_reference(_reference_of_gradient, _BACKWARD)


def _sum_over_pixels(grad_output: tf.Tensor) -> tf.Tensor:
    dtype = grad_output.dtype
    accumulator = tf.float64 if dtype == tf.float64 else tf.float32
    return tf.cast(tf.reduce_sum(tf.cast(grad_output, accumulator), axis=[0, 1, 2]), dtype)
