"""Multi-scale deformable attention: the functional operator, its backends and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._calls import Calls
from tf_deformable._registration import (
    register_gradient,
    register_reference,
    register_vectorization,
)
from tf_deformable.ops import _arguments
from tf_deformable.ops._second_order import (
    hessian_product,
    samples_beside,
    vector_jacobian_product,
)
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.reference import multi_scale_deformable_attention as _reference

_OP = "multi_scale_deformable_attention"
# Of the gradient operator; the operator itself has all but the last.
_VARIABLES = ("value", "sampling_locations", "attention_weights", "grad_output")
_INPUTS = (_VARIABLES[0], "spatial_shapes", *_VARIABLES[1:])


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


def _native_backward(**arguments: Any) -> list[tf.Tensor]:
    """The gradients of value, sampling_locations and attention_weights."""
    return list(_native.load().tf_deformable_multi_scale_deformable_attention_grad(**arguments))


def _gradient(op: tf.Operation, grad_output: tf.Tensor) -> list[tf.Tensor | None]:
    tensors = dict(zip(_INPUTS, [*op.inputs, grad_output], strict=True))
    of_value, *others = _native_backward(**tensors, **_attributes(op))
    return [of_value, None, *others]


def _second_gradient(op: tf.Operation, *upstream: tf.Tensor) -> list[tf.Tensor | None]:
    value, spatial_shapes, *others = op.inputs
    attributes = {"spatial_shapes": spatial_shapes, **_attributes(op)}
    of_value, *of_others = hessian_product(
        functools.partial(_hessian_along, attributes=attributes),
        lambda value, locations, weights: _reference(
            value=value,
            sampling_locations=locations,
            attention_weights=weights,
            **attributes,
        ),
        [value, *others],
        [*upstream, tf.zeros_like(others[-1])],
    )
    return [of_value, None, *of_others]


def _hessian_along(
    number: int,
    variables: Sequence[tf.Tensor],
    direction: tf.Tensor,
    attributes: dict[str, Any],
) -> list[tf.Tensor | None]:
    """The Hessian of `<grad_output, output>` times a direction of one of the variables.

    `variables` are value, sampling_locations, attention_weights and grad_output. All of them but
    the locations are factors: the derivative along one of them is the same with it replaced.
    """
    if number == 1:
        return _hessian_along_locations(variables, direction, attributes)
    replaced = dict(zip(_VARIABLES, variables, strict=True))
    replaced[_VARIABLES[number]] = direction
    terms: list[tf.Tensor | None] = [*_native_backward(**replaced, **attributes), None]
    if number < 3:
        del replaced["grad_output"]
        terms[-1] = _native_forward(**replaced, **attributes)
    terms[number] = None
    return terms


def _hessian_along_locations(
    variables: Sequence[tf.Tensor], direction: tf.Tensor, attributes: dict[str, Any]
) -> list[tf.Tensor | None]:
    """As `_hessian_along`.

    The derivative along the locations is attention four times more, of `samples_beside` at
    positions in pixels, whose weights are the direction's.

    They are nearly equal in pairs, and half precision would leave little of the differences: they
    are computed in float32.
    """
    dtype = tf.float64 if variables[0].dtype == tf.float64 else tf.float32
    value, locations, weights, grad_output = (tf.cast(variable, dtype) for variable in variables)
    direction = tf.cast(direction, dtype)
    in_pixels = {**attributes, "coordinates": "pixels"}
    scale: tf.Tensor = tf.ones([], dtype)
    if attributes["coordinates"] == "normalized":
        scale = _sizes_of_points(tf.cast(attributes["spatial_shapes"], dtype), attributes)
        locations, direction = locations * scale - 0.5, direction * scale
    positions = tf.unstack(locations, num=2, axis=-1)
    directions = tf.unstack(direction, num=2, axis=-1)

    of_value, of_weights, of_grad_output = [], [], []
    of_positions: list[list[tf.Tensor]] = [[], []]
    for places, along, other in samples_beside(positions, directions):
        tensors = {
            "value": value,
            "sampling_locations": tf.stack(places, axis=-1),
            "attention_weights": along * weights,
        }
        grads = _native_backward(**tensors, grad_output=grad_output, **in_pixels)
        of_value.append(grads[0])
        of_positions[other].append(tf.unstack(grads[1], num=2, axis=-1)[other])
        of_weights.append(along * grads[2])
        of_grad_output.append(_native_forward(**tensors, **in_pixels))
    return [
        tf.add_n(of_value),
        tf.stack([tf.add_n(terms) for terms in of_positions], axis=-1) * scale,
        tf.add_n(of_weights),
        tf.add_n(of_grad_output),
    ]


def _sizes_of_points(sizes: tf.Tensor, attributes: dict[str, Any]) -> tf.Tensor:
    """Of every level, `[levels, 2]`, to be multiplied with sampling_locations."""
    num_points = attributes["num_points"]
    return tf.repeat(sizes, num_points, axis=0) if num_points else sizes[:, tf.newaxis]


def _vectorized(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    if calls.differ([1]):  # in the sizes of their levels
        return calls.one_by_one(functools.partial(_run, op), op.outputs)
    # More queries of one value, or a larger batch.
    axis, batch_or_queries = (0, calls.size(0, 0)) if calls.differ([0]) else (1, calls.size(2, 1))
    tensors = list(calls.inputs)
    for number in [0, 2, 3] if axis == 0 else [2, 3]:
        tensors[number] = calls.folded(number, axis)
    return [calls.unfolded(output, axis, batch_or_queries) for output in _run(op, tensors)]


def _vectorized_gradient(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    if calls.differ([1]):
        return calls.one_by_one(functools.partial(_run, op), op.outputs)
    tensors = [
        tensor if number == 1 else calls.folded(number, 0)
        for number, tensor in enumerate(calls.inputs)
    ]
    return [calls.unfolded(grad, 0, calls.size(0, 0)) for grad in _run(op, tensors)]


def _run(op: tf.Operation, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What a registered operator gives for other tensors."""
    arguments = {**dict(zip(_INPUTS, tensors, strict=False)), **_attributes(op)}
    if len(tensors) == len(_INPUTS):
        return _native_backward(**arguments)
    return [_native_forward(**arguments)]


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


_FORWARD = ["TFDeformable>MultiScaleDeformableAttention"]
_BACKWARD = ["TFDeformable>MultiScaleDeformableAttentionGrad"]
register_gradient(_gradient, _FORWARD)
register_gradient(_second_gradient, _BACKWARD)
register_vectorization(_vectorized, _FORWARD)
register_vectorization(_vectorized_gradient, _BACKWARD)
register_reference(_reference_of, _FORWARD)
register_reference(_reference_of_gradient, _BACKWARD)


def _reference_call(op: tf.Operation) -> Callable[..., tf.Tensor]:
    attributes = _attributes(op)
    return lambda *inputs: _reference(*inputs, **attributes)


def _attributes(op: tf.Operation) -> dict[str, Any]:
    return {
        "coordinates": tf.compat.as_str(op.get_attr("coordinates")),
        "num_points": op.get_attr("num_points"),
    }
