"""The convolution that predicts offsets and mask: its backends and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._calls import Calls
from tf_deformable._geometry.convolution_attributes import ConvolutionAttributes
from tf_deformable._geometry.padding import Padding
from tf_deformable._geometry.sizes import Pair
from tf_deformable._registration import (
    register_gradient,
    register_reference,
    register_vectorization,
)
from tf_deformable.ops._convolution_attributes import convolution_attributes_of
from tf_deformable.ops._second_order import vector_jacobian_product
from tf_deformable.reference.conv2d_branch import conv2d_branch as _reference
from tf_deformable.reference.conv2d_branch import convolution, split_outputs


def conv2d_branch(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    bias: tf.Tensor,
    *,
    has_mask: bool,
    largest_mask: float = 1.0,
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    dilations: Pair = (1, 1),
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """A dense convolution, the results of which are offsets and, through a sigmoid, a mask.

    On the CPU the compiled operator computes both in one pass, without a copy of half precision
    inputs in float32. Where there is a GPU, it is TensorFlow's own convolution.

    Args:
        inputs: `[N, H, W, C]`, float16, bfloat16, float32 or float64.
        filters: `[kh, kw, C, D]`, D = G*kh*kw*2, or G*kh*kw*3 with a mask. The first G*kh*kw*2 are
            those of the offsets. float32, or float64 beside inputs of float64.
        bias: `[D]`, in the dtype of the filters.
        has_mask: whether there is a mask.
        largest_mask: the mask is that times a sigmoid.
        strides: y and x.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dilations: y and x.

    Returns:
        offsets: `[N, Ho, Wo, G*kh*kw*2]`, in the dtype of the filters.
        mask: `[N, Ho, Wo, G*kh*kw]`, in (0, largest_mask), likewise; or None.

    Raises:
        ValueError: as `tf_deformable.deformable_conv2d` does.
        tf.errors.InvalidArgumentError: likewise.
    """
    attributes = _Attributes(
        strides=strides,
        padding=padding,
        dilations=dilations,
        num_masks=int(has_mask),
        largest_mask=largest_mask,
    )
    if config.get_backend() == "native" and not tf.config.get_visible_devices("GPU"):
        offsets, mask = _native.load().tf_deformable_conv2d_branch(
            inputs=inputs, filters=filters, bias=bias, **attributes.for_native()
        )
    else:
        outputs = _wide_convolution(
            inputs, filters, strides=strides, padding=padding, dilations=dilations
        )
        outputs = tf.nn.bias_add(outputs, bias)
        offsets, *mask = split_outputs(outputs, int(has_mask), largest_mask)
    return offsets, mask[0] if has_mask else None


def _wide_convolution(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    dilations: tuple[int, int] = (1, 1),
) -> tf.Tensor:
    """`convolution` in the dtype of the filters, of inputs that may be narrower."""

    def compute(wide: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
        return convolution(wide, filters, strides=strides, padding=padding, dilations=dilations)

    return of_widened(compute, inputs, filters)


def of_widened(
    compute: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], inputs: tf.Tensor, filters: tf.Tensor
) -> tf.Tensor:
    """Computes from inputs in the dtype of the filters.

    Widened inputs are as large as twice the inputs: none are kept for the gradient, which widens
    them once more.
    """
    dtype = filters.dtype
    if inputs.dtype == dtype:
        return compute(inputs, filters)

    @tf.custom_gradient
    def widened(inputs: tf.Tensor, filters: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # After the upstream gradient, or TensorFlow would keep and use the one from before.
            with tf.control_dependencies([upstream]):
                wide = tf.cast(inputs, dtype)
            of_inputs, of_filters = vector_jacobian_product(compute, [wide, filters], upstream)
            return tf.cast(of_inputs, inputs.dtype), of_filters

        return compute(tf.cast(inputs, dtype), filters), gradient

    return widened(inputs, filters)


@dataclasses.dataclass(frozen=True)
class _Attributes(ConvolutionAttributes):
    num_masks: int
    largest_mask: float

    def for_native(self) -> dict[str, Any]:
        return {
            **super().for_native(),
            "num_masks": self.num_masks,
            "largest_mask": self.largest_mask,
        }

    def for_reference(self) -> dict[str, Any]:
        return {
            **super().for_reference(),
            "num_masks": self.num_masks,
            "largest_mask": self.largest_mask,
        }

    @classmethod
    def of(cls, op: tf.Operation) -> _Attributes:
        return cls(
            **convolution_attributes_of(op),
            num_masks=op.get_attr("num_masks"),
            largest_mask=op.get_attr("largest_mask"),
        )


def _native_backward(
    inputs: tf.Tensor,
    filters: tf.Tensor,
    mask: Sequence[tf.Tensor],
    grad_offsets: tf.Tensor,
    grad_mask: Sequence[tf.Tensor],
    attributes: _Attributes,
) -> list[tf.Tensor]:
    """Gradients of inputs, filters and bias."""
    native = attributes.for_native()
    del native["num_masks"]  # The lists say it.
    return list(
        _native.load().tf_deformable_conv2d_branch_grad(
            inputs=inputs,
            filters=filters,
            mask=mask,
            grad_offsets=grad_offsets,
            grad_mask=grad_mask,
            **native,
        )
    )


def _gradient(op: tf.Operation, grad_offsets: tf.Tensor, *grad_mask: tf.Tensor) -> list[tf.Tensor]:
    inputs, filters, _ = op.inputs
    mask = list(op.outputs[1:])
    return _native_backward(
        inputs, filters, mask, grad_offsets, list(grad_mask), _Attributes.of(op)
    )


def _second_gradient(op: tf.Operation, *upstream: tf.Tensor) -> list[tf.Tensor]:
    return vector_jacobian_product(_reference_of_gradient(op), op.inputs, list(upstream))


def _vectorized(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    attributes = _Attributes.of(op)

    def run(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs, filters, bias = tensors
        offsets, mask = _native.load().tf_deformable_conv2d_branch(
            inputs=inputs, filters=filters, bias=bias, **attributes.for_native()
        )
        return [offsets, *mask]

    if calls.differ([1, 2]):
        return calls.one_by_one(run, op.outputs)
    outputs = run([calls.folded(0, 0), *calls.inputs[1:]])  # a larger batch
    return [calls.unfolded(output, 0, calls.size(0, 0)) for output in outputs]


def _vectorized_gradient(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    attributes = _Attributes.of(op)

    def run(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs, filters, *others = tensors
        mask, grads = others[: attributes.num_masks], others[attributes.num_masks :]
        return _native_backward(inputs, filters, mask, grads[0], grads[1:], attributes)

    one_by_one = calls.one_by_one(run, op.outputs)
    if calls.differ([1]):
        return one_by_one
    # The gradient of the inputs is that of a larger batch. TensorFlow makes only the calls whose
    # results are used.
    folded = [calls.folded(number, 0) for number in range(len(op.inputs))]
    folded[1] = calls.inputs[1]
    return [calls.unfolded(run(folded)[0], 0, calls.size(0, 0)), *one_by_one[1:]]


def _reference_of(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    attributes = _Attributes.of(op).for_reference()

    def compute(inputs: tf.Tensor, filters: tf.Tensor, bias: tf.Tensor) -> list[tf.Tensor]:
        return _reference(tf.cast(inputs, filters.dtype), filters, bias, **attributes)

    return compute


def _reference_of_gradient(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    attributes = _Attributes.of(op)

    def convolve(inputs: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(inputs, filters.dtype)
        return convolution(wide, filters, **ConvolutionAttributes.for_reference(attributes))

    def compute(inputs: tf.Tensor, filters: tf.Tensor, *others: tf.Tensor) -> list[tf.Tensor]:
        if attributes.num_masks:
            mask, grad_offsets, grad_mask = others
            of_logits = grad_mask * mask * (1 - mask / attributes.largest_mask)
            upstream = tf.concat([grad_offsets, of_logits], axis=-1)
        else:
            (upstream,) = others
        grads = vector_jacobian_product(convolve, [inputs, filters], upstream)
        return [*grads, tf.reduce_sum(upstream, axis=[0, 1, 2])]

    return compute


_FORWARD = ["TFDeformable>Conv2DBranch"]
_BACKWARD = ["TFDeformable>Conv2DBranchGrad"]
register_gradient(_gradient, _FORWARD)
register_gradient(_second_gradient, _BACKWARD)
register_vectorization(_vectorized, _FORWARD)
register_vectorization(_vectorized_gradient, _BACKWARD)
register_reference(_reference_of, _FORWARD)
register_reference(_reference_of_gradient, _BACKWARD)
