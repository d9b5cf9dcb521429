"""RoI pooling (plain, deformable, position-sensitive, modulated): functional operators.

One registered operator serves them all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable import _native, config
from tf_deformable._calls import Calls
from tf_deformable._geometry.boxes import check_box_indices
from tf_deformable._geometry.roi_pool import (
    OPERATORS,
    RoIPoolAttributes,
    roi_pool_checks,
    roi_pool_geometry,
)
from tf_deformable._registration import (
    register_gradient,
    register_reference,
    register_vectorization,
)
from tf_deformable.ops import _arguments
from tf_deformable.ops._refusals import refusing_as_given
from tf_deformable.ops._second_order import hessian_product, vector_jacobian_product
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.reference.roi_pool import roi_pool

_ROI_POOL, _PSROI_POOL = OPERATORS

# Inputs, boxes, box indices, and the lists of offsets and masks, of none or one each.
_Inputs: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor], list[tf.Tensor]]


@accepts_keras_tensors
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
    name: str | None = None,
) -> tf.Tensor:
    r"""Deformable RoI pooling: averages the bins of boxes, each bin moved by its own offset.

    RoI pooling divides a box into ph x pw bins and averages the feature map x in each of them. In
    its deformable form (Dai et al. 2017, section 2.2, equation 6) every bin is moved as a whole,
    and with a mask (Zhu et al. 2019, equation 2) also scaled:

        y(i, j) = mask_ij * sum_s x(p0 + p_s + dp_ij) / n_ij
        dp_ij = gamma * offsets_ij * (height, width of the box)

    The offsets are normalised by the size of the box, so that their scale does not depend on it.
    p_s are n_ij samples on a regular grid in the bin, x is interpolated bilinearly. Offsets of zero
    give what offsets of None give: plain RoI pooling by averages. The papers are "Deformable
    Convolutional Networks" (ICCV 2017) and "Deformable ConvNets v2" (CVPR 2019).

    Where a box of size (h, w) = (y2-y1, x2-x1) lies, and where a bin has its samples, is one of two
    conventions. Below, scale is `spatial_scale`, n `samples_per_bin`, and s = 0..n-1 a sample along
    one axis:

    - `aligned=False`, the operator of the authors' release. Box coordinates are indices of pixels,
      the last one included: they are rounded (halves away from zero), and the box extends from
      `y1*scale - 0.5` to `(y2+1)*scale - 0.5` on the map, at least 0.1. Samples are at
      `s / n` of the bin. A sample off the map (below -0.5 or above H-0.5) is left out, n_ij counts
      the others; a bin with none is 0.
    - `aligned=True`, as RoIAlign (He et al. 2017, as revised since: half a pixel is subtracted).
      Box coordinates are continuous, pixel i extends from i to i+1: nothing is rounded, the box
      extends from `y1*scale - 0.5` to `y2*scale - 0.5`. Samples are at `(s + 0.5) / n` of the bin.
      A sample off the map (below -1 or above H) is 0 and counts.

    Samples that are kept are moved to the nearest pixel if they lie beyond it.

    Differentiable in inputs, offsets and mask, twice and more; boxes are not differentiated. The
    derivative by an offset is that of the authors: a sample interpolates between the pixels at the
    floor and at the ceiling of its position, and so does not contribute along an axis on which it
    lies on a pixel or was moved to one.

    Positions are computed in float32 (float64 for float64 inputs) and sums are accumulated in at
    least float32, whatever the dtype of inputs; `spatial_scale` and `gamma` are rounded to float32.
    These values are defined, too:

    - A box with index -1 is padding. Its output is 0, whatever else it holds, and it has no
      gradients.
    - A box with a NaN or infinite coordinate has the output NaN. So are its gradients by offsets
      and mask; it gives none to the inputs. A NaN offset does the same to its bins.
    - A bin beyond the map is 0, also where an infinite offset moved it there.
    - A box with y2 < y1 has a negative height if aligned, and no samples where their number follows
      from the height. Otherwise it has the least height.
    - Without boxes the result is empty; of an empty map it is zero.

    The compiled operator computes it, or plain TensorFlow, as `tf_deformable.config` says when the
    call is made, or traced.

    Example:
        >>> features = tf.random.normal([2, 38, 63, 256])  # of images 16 times as large
        >>> boxes = tf.constant([[32.0, 48.0, 300.0, 500.0], [0.0, 0.0, 95.0, 63.0]])
        >>> offsets = tf.zeros([2, 7, 7, 2])
        >>> tf_deformable.deformable_roi_pool(
        ...     features, boxes, [0, 1], offsets, output_size=7, spatial_scale=1 / 16
        ... ).shape
        TensorShape([2, 7, 7, 256])

    Args:
        inputs: `[N, H, W, C]`, float16, bfloat16, float32 or float64.
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image, which is `1/spatial_scale` times
            as large as the map. float32, float64 or integers.
        box_indices: `[R]`, the image of each box in [0, N), or -1 for padding. Any integer dtype.
            An index that is neither is an error on the CPU; on a GPU it gives NaN.
        offsets: `[R, part_h, part_w, 2]`, (dy, dx) in units of the box's height and width and of
            1/gamma; or None. Bin (i, j) follows part cell `(i*part_h // ph, j*part_w // pw)`.
        mask: `[R, ph, pw]`, one factor per bin, or None. It is used as it is: apply a sigmoid
            before.
        output_size: number of bins, an integer or (ph, pw).
        spatial_scale: pixels of the map per pixel of the image: 1/16 for features of stride 16.
        samples_per_bin: number of samples of a bin along each axis, 1 to 1024. With
            `aligned=True` 0 means one per pixel: the size of the bin, rounded up.
        gamma: scale of the offsets.
        aligned: which of the conventions holds.
        name: of the operation in a graph.

    `offsets` and `mask` have the dtype of `inputs`, or both are float32 beside inputs in float16 or
    bfloat16. Python numbers and integer arrays are converted; floating arrays and tensors of
    another dtype are an error.

    Returns:
        `[R, ph, pw, C]`, in the dtype of `inputs`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: dtypes differ or are not supported; in a graph, and with the reference backend,
            shapes that are known and do not fit, and attributes out of their range.
        tf.errors.InvalidArgumentError: a box index is neither -1 nor in [0, N). The same as before,
            from the compiled operator in eager mode, and for shapes that only the run of a graph
            shows: its messages show `offsets` as `[R, part_h, part_w, 1, 2]`.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    with tf.name_scope(name or _ROI_POOL):
        values = _arguments.tensors(
            _ROI_POOL,
            {"inputs": inputs, "offsets": offsets, "mask": mask},
            sampling=("offsets", "mask"),
            optional=("offsets", "mask"),
        )
        if values["offsets"] is not None:
            roi_pool_checks(_ROI_POOL).rank("offsets", values["offsets"])
            values["offsets"] = tf.expand_dims(values["offsets"], 3)
        return _pool(
            _ROI_POOL,
            **values,
            boxes=boxes,
            box_indices=box_indices,
            attributes=RoIPoolAttributes.normalised(
                _ROI_POOL, output_size, 1, spatial_scale, samples_per_bin, gamma, aligned
            ),
        )


@accepts_keras_tensors
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
    name: str | None = None,
) -> tf.Tensor:
    r"""Deformable position-sensitive RoI pooling: each bin of a box reads a map of its own.

    Position-sensitive pooling (Dai, Li, He and Sun 2016, "R-FCN") has k x k score maps of D
    channels, one for each part of an object: bin (i, j) averages the map `(i*k // ph, j*k // pw)`.
    In its deformable form (Dai et al. 2017, section 2.2) bins are moved by offsets, which may
    differ for `classes` equal parts of the D channels. Without offsets it is plain
    position-sensitive pooling. The paper gets the offsets by such a pooling of offset fields.

    All else, from the formula over the two conventions of `aligned` and the gradients to padding
    and boxes that are not finite, is as in `tf_deformable.deformable_roi_pool`, which is this with
    `group_size=1` and one class.

    Example:
        >>> scores = tf.random.normal([2, 38, 63, 7 * 7 * 21])  # of images 16 times as large
        >>> boxes = tf.constant([[32.0, 48.0, 300.0, 500.0], [0.0, 0.0, 95.0, 63.0]])
        >>> offsets = tf.zeros([2, 7, 7, 21, 2])
        >>> tf_deformable.deformable_psroi_pool(
        ...     scores, boxes, [0, 1], offsets, output_size=7, group_size=7, spatial_scale=1 / 16
        ... ).shape
        TensorShape([2, 7, 7, 21])

    Args:
        inputs: `[N, H, W, k*k*D]`, float16, bfloat16, float32 or float64. Channels are ordered
            (map row, map column, D), D varying fastest; `tf_deformable.convert` converts the order
            (D, map row, map column) of other packages.
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image, which is `1/spatial_scale` times
            as large as the map. float32, float64 or integers.
        box_indices: `[R]`, the image of each box in [0, N), or -1 for padding. Any integer dtype.
            An index that is neither is an error on the CPU; on a GPU it gives NaN.
        offsets: `[R, part_h, part_w, classes, 2]`, (dy, dx) in units of the box's height and width
            and of 1/gamma; or None. Bin (i, j) follows part cell
            `(i*part_h // ph, j*part_w // pw)`, its channel d class `d // (D/classes)`.
        mask: `[R, ph, pw]`, one factor per bin, or None.
        output_size: number of bins, an integer or (ph, pw).
        group_size: k. Most often it is the output size; it need not be.
        spatial_scale: pixels of the map per pixel of the image: 1/16 for features of stride 16.
        samples_per_bin: number of samples of a bin along each axis, 1 to 1024. With
            `aligned=True` 0 means one per pixel: the size of the bin, rounded up.
        gamma: scale of the offsets.
        aligned: False for the authors' geometry, True for that of RoIAlign.
        name: of the operation in a graph.

    Returns:
        `[R, ph, pw, D]`, in the dtype of `inputs`.

    Raises:
        TypeError: as `tf_deformable.deformable_roi_pool`.
        ValueError: likewise; also channels that are not a multiple of k*k, and output channels that
            are not a multiple of the classes.
        tf.errors.InvalidArgumentError: likewise. Where `group_size` is 1, messages of what only the
            run of a graph shows begin with the name of `deformable_roi_pool`.
        tf_deformable.NativeLibraryError: the compiled operator is wanted and cannot be loaded.
    """
    with tf.name_scope(name or _PSROI_POOL):
        return _pool(
            _PSROI_POOL,
            **_arguments.tensors(
                _PSROI_POOL,
                {"inputs": inputs, "offsets": offsets, "mask": mask},
                sampling=("offsets", "mask"),
                optional=("offsets", "mask"),
            ),
            boxes=boxes,
            box_indices=box_indices,
            attributes=RoIPoolAttributes.normalised(
                _PSROI_POOL, output_size, group_size, spatial_scale, samples_per_bin, gamma, aligned
            ),
        )


def _attributes_of(op: tf.Operation) -> RoIPoolAttributes:
    """Returns the attributes of a registered operator."""
    names = [field.name for field in dataclasses.fields(RoIPoolAttributes)]
    values = {name: op.get_attr(name) for name in names}
    return RoIPoolAttributes(**{**values, "output_size": tuple(values["output_size"])})


def _pool(
    op: str,
    inputs: tf.Tensor,
    boxes: Any,
    box_indices: Any,
    offsets: tf.Tensor | None,
    mask: tf.Tensor | None,
    attributes: RoIPoolAttributes,
) -> tf.Tensor:
    positions_dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    boxes = _arguments.boxes(op, boxes, positions_dtype)
    box_indices = _arguments.indices(op, "box_indices", box_indices)
    arguments = inputs, boxes, box_indices, offsets, mask
    if config.get_backend() == "reference":
        return roi_pool(op, *arguments, **attributes.for_reference())
    forward = functools.partial(
        _native_forward,
        inputs,
        boxes,
        box_indices,
        [] if offsets is None else [offsets],
        [] if mask is None else [mask],
        attributes,
    )
    if attributes.group_size > 1:
        return forward()

    # With one map the registered operator cannot tell which function was called, and whether it
    # was with offsets of classes.
    def check() -> None:
        geometry = roi_pool_geometry(op, *arguments, **attributes.for_reference())
        if tf.executing_eagerly():
            check_box_indices(op, box_indices, geometry.batch)

    return refusing_as_given(forward, check)


def _native_forward(
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: list[tf.Tensor],
    mask: list[tf.Tensor],
    attributes: RoIPoolAttributes,
) -> tf.Tensor:
    return _native.load().tf_deformable_roi_pool(
        inputs=inputs,
        boxes=boxes,
        box_indices=box_indices,
        offsets=offsets,
        mask=mask,
        **attributes.for_native(),
    )


def _native_backward(
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: list[tf.Tensor],
    mask: list[tf.Tensor],
    grad_output: tf.Tensor,
    attributes: RoIPoolAttributes,
) -> list[tf.Tensor]:
    """Gradients of inputs and of what there is of offsets and mask."""
    grads = _native.load().tf_deformable_roi_pool_grad(
        inputs=inputs,
        boxes=boxes,
        box_indices=box_indices,
        offsets=offsets,
        mask=mask,
        grad_output=grad_output,
        **attributes.for_native(),
    )
    return [grads.grad_inputs, *grads.grad_offsets, *grads.grad_mask]


def _gradient(op: tf.Operation, grad_output: tf.Tensor) -> list[tf.Tensor | None]:
    inputs, boxes, box_indices, offsets, mask = _split_inputs(op, op.inputs)
    of_inputs, *others = _native_backward(
        inputs, boxes, box_indices, offsets, mask, grad_output, _attributes_of(op)
    )
    return [of_inputs, None, None, *others]


def _second_gradient(op: tf.Operation, *upstream: tf.Tensor) -> list[tf.Tensor | None]:
    inputs, boxes, box_indices, *others = op.inputs
    given = {
        "boxes": boxes,
        "box_indices": box_indices,
        "num_offsets": op.get_attr("num_offsets"),
        "attributes": _attributes_of(op),
    }
    of_inputs, *of_others = hessian_product(
        functools.partial(_hessian_along, **given),
        functools.partial(_reference, **given),
        [inputs, *others],
        [*upstream, tf.zeros_like(others[-1])],
    )
    return [of_inputs, None, None, *of_others]


def _reference(
    inputs: tf.Tensor,
    *others: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    num_offsets: int,
    attributes: RoIPoolAttributes,
) -> tf.Tensor:
    """The operator in plain TensorFlow, of inputs and of what there is of offsets and mask."""
    offsets = others[0] if num_offsets else None
    mask = others[num_offsets] if len(others) > num_offsets else None
    return roi_pool(
        _PSROI_POOL, inputs, boxes, box_indices, offsets, mask, **attributes.for_reference()
    )


def _hessian_along(
    number: int,
    variables: Sequence[tf.Tensor],
    direction: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    num_offsets: int,
    attributes: RoIPoolAttributes,
) -> list[tf.Tensor | None]:
    """The Hessian of `<grad_output, output>` times a direction of one of the variables.

    `variables` are what the gradient operator reads, but for the boxes. All of them but the offsets
    are factors of the product: the derivative along one of them is the product with that factor
    replaced.
    """
    if 1 <= number <= num_offsets:
        return _hessian_along_offsets(variables, direction, boxes, box_indices, attributes)
    replaced = list(variables)
    replaced[number] = direction
    inputs, *others = replaced
    grad_output = others.pop()
    arguments = inputs, boxes, box_indices, others[:num_offsets], others[num_offsets:]
    terms: list[tf.Tensor | None] = [*_native_backward(*arguments, grad_output, attributes), None]
    if number < len(variables) - 1:
        terms[-1] = _native_forward(*arguments, attributes)
    terms[number] = None
    return terms


# Values that the reference reads for a part of the boxes, unless the map has more.
_VALUES_OF_PART = 1 << 21


def _hessian_along_offsets(
    variables: Sequence[tf.Tensor],
    direction: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    attributes: RoIPoolAttributes,
) -> list[tf.Tensor]:
    """As `_hessian_along`.

    The samples of a bin move together, and where each of them lies between its pixels is another
    matter for every one: no pooling gives this derivative. The reference does, for a part of the
    boxes at a time, since it needs several tensors of all that it reads.
    """
    dtype = tf.float64 if variables[0].dtype == tf.float64 else tf.float32
    inputs, *of_boxes = (tf.cast(variable, dtype) for variable in (*variables, direction))
    of_boxes += [boxes, box_indices]
    count = tf.shape(boxes)[0]
    step = _boxes_of_part(inputs, count, attributes)

    def add_part(start: tf.Tensor, of_inputs: tf.Tensor, *done: tf.Tensor) -> list[tf.Tensor]:
        offsets, *mask, grad_output, along, boxes, box_indices = (
            tensor[start : start + step] for tensor in of_boxes
        )

        def of_offsets(inputs: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            offsets, *mask, grad_output = others

            def output(offsets: tf.Tensor) -> tf.Tensor:
                return _reference(
                    inputs,
                    offsets,
                    *mask,
                    boxes=boxes,
                    box_indices=box_indices,
                    num_offsets=1,
                    attributes=attributes,
                )

            return vector_jacobian_product(output, [offsets], grad_output)[0]

        part = [inputs, offsets, *mask, grad_output]
        first, *others = vector_jacobian_product(of_offsets, part, along)
        joined = [tf.concat(pair, axis=0) for pair in zip(done, others, strict=True)]
        return [start + step, of_inputs + first, *joined]

    nothing = [tensor[:0] for tensor in of_boxes[:-3]]
    shapes = [[], inputs.shape, *(tf.TensorShape([None, *t.shape[1:]]) for t in nothing)]
    _, *sums = tf.while_loop(
        lambda start, *_: start < count,
        add_part,
        [0, tf.zeros_like(inputs), *nothing],
        shape_invariants=[tf.TensorShape(shape) for shape in shapes],
        parallel_iterations=1,  # so that there is one part at a time
    )
    return sums


def _boxes_of_part(inputs: tf.Tensor, count: tf.Tensor, attributes: RoIPoolAttributes) -> tf.Tensor:
    """How many of the boxes are worked through at a time: 1 at least, int32."""
    size = tf.cast(tf.shape(inputs), tf.float32)
    bins = tf.cast(attributes.output_size, tf.float32)
    samples = attributes.samples_per_bin or tf.math.ceil(size[1:3] / bins) + 1
    depth = size[3] / attributes.group_size**2
    values = (
        tf.reduce_prod(2 * samples * bins) * depth
    )  # A sample reads two pixels along each axis.
    boxes = tf.maximum(tf.reduce_prod(size), _VALUES_OF_PART) // tf.maximum(values, 1)
    return tf.cast(tf.clip_by_value(boxes, 1, tf.cast(tf.maximum(count, 1), tf.float32)), tf.int32)


def _vectorized(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    output = _native_forward(*_folded(op, calls, False), _attributes_of(op))
    return [calls.unfolded(output, 0, calls.size(1, 0))]


def _vectorized_gradient(op: tf.Operation, calls: Calls) -> list[tf.Tensor]:
    inputs, boxes, box_indices, offsets, [*mask, grad_output] = _folded(op, calls, True)
    grads = _native_backward(
        inputs, boxes, box_indices, offsets, mask, grad_output, _attributes_of(op)
    )
    sizes = [calls.size(0, 0), *[calls.size(1, 0)] * (len(grads) - 1)]
    return [calls.unfolded(grad, 0, size) for grad, size in zip(grads, sizes, strict=True)]


def _folded(op: tf.Operation, calls: Calls, separates: bool) -> _Inputs:
    """The inputs as `_split_inputs` returns them, of all calls: more images, and more boxes.

    Args:
        op: the operation.
        calls: its calls.
        separates: whether each call needs images of its own, though they be the same.
    """
    tensors = [calls.folded(number, 0) for number in range(1, len(calls.inputs))]
    inputs = calls.inputs[0]
    if separates or calls.differ([0]):
        inputs, images = calls.folded(0, 0), calls.size(0, 0)
        indices = tf.reshape(tensors[1], [calls.count, -1])
        first = tf.range(calls.count)[:, None] * images
        beyond = calls.count * images  # What is no image does not become one of another call.
        indices = tf.where(
            indices < images, tf.where(indices < 0, indices, indices + first), beyond
        )
        tensors[1] = tf.reshape(indices, [-1])
    return _split_inputs(op, [inputs, *tensors])


def _reference_of(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    return lambda *inputs: [_reference_with(op, *inputs[1:3])(inputs[0], *inputs[3:])]


def _reference_of_gradient(op: tf.Operation) -> Callable[..., list[tf.Tensor]]:
    def compute(*inputs: tf.Tensor) -> list[tf.Tensor]:
        first, boxes, box_indices, *others, upstream = inputs
        function = _reference_with(op, boxes, box_indices)
        return vector_jacobian_product(function, [first, *others], upstream)

    return compute


def _reference_with(
    op: tf.Operation, boxes: tf.Tensor, box_indices: tf.Tensor
) -> Callable[..., tf.Tensor]:
    """The operator in plain TensorFlow, of what it is differentiated by."""
    return functools.partial(
        _reference,
        boxes=boxes,
        box_indices=box_indices,
        num_offsets=op.get_attr("num_offsets"),
        attributes=_attributes_of(op),
    )


# The second of each is that of version 0.1.
_FORWARD = ["TFDeformable>RoiPool", "TFDeformable>DeformableRoIPool"]
_BACKWARD = ["TFDeformable>RoiPoolGrad", "TFDeformable>DeformableRoIPoolGrad"]
register_gradient(_gradient, _FORWARD)
register_gradient(_second_gradient, _BACKWARD)
register_vectorization(_vectorized, _FORWARD)
register_vectorization(_vectorized_gradient, _BACKWARD)
register_reference(_reference_of, _FORWARD)
register_reference(_reference_of_gradient, _BACKWARD)


def _split_inputs(op: tf.Operation, tensors: Sequence[tf.Tensor]) -> _Inputs:
    """The tensors of a registered operator; the gradient's last is at the end of the masks."""
    inputs, boxes, box_indices, *rest = tensors
    num_offsets = op.get_attr("num_offsets")
    return inputs, boxes, box_indices, list(rest[:num_offsets]), list(rest[num_offsets:])
