"""Multi-scale deformable attention: the functional operator, its backends and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._registration import register_gradient, register_reference
from tf_deformable.ops import _arguments
from tf_deformable.ops._second_order import hessian_product_of, vector_jacobian_product
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.reference import multi_scale_deformable_attention as _reference

_OP = "multi_scale_deformable_attention"


@accepts_keras_tensors
def multi_scale_deformable_attention(
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
    *,
    coordinates: str = "normalized",
    num_points: Sequence[int] | None = None,
    name: str | None = None,
) -> tf.Tensor:
    r"""Multi-scale deformable attention: weighted sums of samples of several maps.

    It is the operator of Deformable DETR (Zhu et al., ICLR 2021, equation 3) and of what followed:
    every head h of every query q reads some points p of the map of each level l, and adds them up:

        y(q, h) = sum_l sum_p attention_weights(q, h, l, p) * x_l(sampling_locations(q, h, l, p))

    The projections of the paper, the offsets from reference points and the softmax are not part of
    it. The samples x_l are bilinear, and zero outside of the map: a position counts while
    -1 < y < H and -1 < x < W in pixels, and fades out linearly over the last pixel. So samples
    PyTorch's `grid_sample` with `padding_mode="zeros", align_corners=False`.

    Sizes are written N batch, Q queries, H, W of a level, S pixels of all levels, D channels of a
    head. All of them may be 0.

    Differentiable in value, sampling_locations and attention_weights, twice and more. At the centre
    of a pixel the derivative by the location is the one towards the next larger coordinate.

    Positions are computed in float32 (float64 for a float64 value) and sums are accumulated in at
    least float32, whatever the dtype. A NaN location makes that head's output of its query NaN, and
    the gradients of the location and its weight. Infinite and huge locations read zeros.

    The compiled operator computes it, or plain TensorFlow, as `tf_deformable.config` says when the
    call is made, or traced.

    Example:
        >>> value = tf.random.normal([2, 8 * 8 + 4 * 4, 4, 16])
        >>> locations = tf.random.uniform([2, 100, 4, 2, 3, 2])
        >>> weights = tf.fill([2, 100, 4, 2, 3], 1 / 6)
        >>> tf_deformable.multi_scale_deformable_attention(
        ...     value, [(8, 8), (4, 4)], locations, weights
        ... ).shape
        TensorShape([2, 100, 64])

    Args:
        value: `[N, S, heads, D]`, float16, bfloat16, float32 or float64: the pixels of the levels
            one after the other, each row by row.
        spatial_shapes: `[levels, 2]`, height and width of each level: integers, or an integer
            tensor, which may change from call to call. S is the sum of their products.
        sampling_locations: `[N, Q, heads, levels, points, 2]`, last axis (y, x). Other packages
            have (x, y): `tf_deformable.convert.yx_from_xy` exchanges them.
        attention_weights: `[N, Q, heads, levels, points]`. They are used as they are: apply a
            softmax before.
        coordinates: what sampling_locations are in. "normalized": 0 and 1 are the outer edges of
            the map, as in Deformable DETR, so that a location is at the pixel
            location * (H, W) - 0.5. "pixels": 0 is the centre of the first pixel of the level.
        num_points: the points of each level, where levels differ in them, as in D-FINE: integers,
            at least 0. Then sampling_locations are `[N, Q, heads, P, 2]` and attention_weights
            `[N, Q, heads, P]`, the points of one level after those of the other, P in all. None:
            all levels have as many.
        name: of the operation in a graph.

    `sampling_locations` and `attention_weights` have the dtype of `value`. Beside a value in
    float16 or bfloat16 both may be float32, and should be: 16 bits round locations to 1/2048
    (float16) or 1/256 (bfloat16) of the map. Python numbers and integer arrays are converted;
    floating arrays and tensors of another dtype are an error.

    Returns:
        `[N, Q, heads*D]`, in the dtype of `value`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: dtypes differ or are not supported, coordinates is another string; in a graph,
            and with the reference backend, shapes that are known and do not fit, or sizes of levels
            that are known and negative or have another number of pixels than value.
        tf.errors.InvalidArgumentError: the same, from the compiled operator, in eager mode or for
            what only the run shows.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    attributes: dict[str, Any] = {
        "coordinates": _arguments.coordinates_of_maps(_OP, coordinates),
        "num_points": _arguments.points_of_levels(_OP, num_points),
    }
    with tf.name_scope(name or _OP):
        values = _arguments.tensors(
            _OP,
            {
                "value": value,
                "sampling_locations": sampling_locations,
                "attention_weights": attention_weights,
            },
            sampling=("sampling_locations", "attention_weights"),
        )
        sizes = _arguments.indices(_OP, "spatial_shapes", spatial_shapes)
        is_native = config.get_backend() == "native"
        forward: Callable[..., tf.Tensor] = _native_forward if is_native else _reference
        return forward(spatial_shapes=sizes, **attributes, **values)


def _native_forward(**arguments: Any) -> tf.Tensor:
    return _native.load().tf_deformable_multi_scale_deformable_attention(**arguments)


def _gradient(op: tf.Operation, grad_output: tf.Tensor) -> list[tf.Tensor | None]:
    value, spatial_shapes, sampling_locations, attention_weights = op.inputs
    grads = _native.load().tf_deformable_multi_scale_deformable_attention_grad(
        value=value,
        spatial_shapes=spatial_shapes,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
        grad_output=grad_output,
        **_attributes(op),
    )
    return [
        grads.grad_value,
        None,
        grads.grad_sampling_locations,
        grads.grad_attention_weights,
    ]


def _second_gradient(op: tf.Operation, *upstream: tf.Tensor) -> list[tf.Tensor | None]:
    value, spatial_shapes, sampling_locations, attention_weights, grad_output = op.inputs
    reference = _reference_call(op)
    by_value, by_locations, by_weights, by_grad_output = hessian_product_of(
        lambda x, locations, weights: reference(x, spatial_shapes, locations, weights),
        [value, sampling_locations, attention_weights, grad_output],
        [*upstream, tf.zeros_like(grad_output)],
    )
    return [by_value, None, by_locations, by_weights, by_grad_output]


def _reference_of(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    function = _reference_call(op)
    return lambda *inputs: [function(*inputs)]


def _reference_of_gradient(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    function = _reference_call(op)

    def compute(value: tf.Tensor, shapes: tf.Tensor, *others: tf.Tensor) -> list[tf.Tensor]:
        return vector_jacobian_product(
            lambda x, *rest: function(x, shapes, *rest), [value, *others[:-1]], others[-1]
        )

    return compute


register_reference(_reference_of, ["TFDeformable>MultiScaleDeformableAttention"])
register_reference(_reference_of_gradient, ["TFDeformable>MultiScaleDeformableAttentionGrad"])
register_gradient(_gradient, ["TFDeformable>MultiScaleDeformableAttention"])
register_gradient(_second_gradient, ["TFDeformable>MultiScaleDeformableAttentionGrad"])


def _reference_call(op: tf.Operation) -> Callable[..., tf.Tensor]:
    attributes = _attributes(op)
    return lambda *inputs: _reference(*inputs, **attributes)


def _attributes(op: tf.Operation) -> dict[str, Any]:
    return {
        "coordinates": tf.compat.as_str(op.get_attr("coordinates")),
        "num_points": op.get_attr("num_points"),
    }
