"""Coordinates through a model: which pixels of an earlier map a cell of a later one looks at.

A model is traced to a graph, and an interval of positions is carried through its operators. Cell p
of a tensor depends, as far as the operators' shapes tell, on the positions from `p*stride + low` to
`p*stride + high` of the source; the middle of them is where the cell is said to be. (Araujo, Norris
and Sim, Computing Receptive Fields of Convolutional Neural Networks, Distill 2019.) Where paths
meet, the interval is the union. Paths through global pooling, attention, or any other operator that
has no such interval, are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.analysis import _calls
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.ops.sampling import same_padding

Pair: TypeAlias = NDArray[np.float64]  # [2], y and x


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Positions of one map in pixels of another: `position * stride + shift`, (y, x)."""

    stride: Pair
    shift: Pair

    def __call__(self, positions: Any) -> NDArray[np.float64]:
        """Maps `[..., 2]`."""
        return positions * self.stride + self.shift


class Paths:
    """The way of coordinates between a model's image and its deformable convolutions.

    Args:
        model: as `layer_samples` takes it; it must have run before.
        inputs: a batch, for its shapes; the image is the largest tensor of rank 4, or any of those
            of its size.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        calls: list[_calls.Call] = []
        images: list[tf.Tensor] = []

        def forward(inputs: Any) -> None:
            images.extend(t for t in tf.nest.flatten(inputs) if t.shape.rank == 4)
            with _calls.inlined_functions(), _calls.listening(calls.append):
                _calls.run_model(model, inputs)

        graph = tf.function(forward).get_concrete_function(_specifications(inputs)).graph
        if not images:
            raise ValueError("sampling_locations: the inputs must have an image of rank 4")
        # A model may have further inputs, of one value for each image, say.
        largest = max(images, key=lambda t: math.prod(t.shape[1:]))
        self._image_axes = _image_axes(largest, calls)
        size = _size(largest, self._image_axes)
        self._images = [t for t in images if _size(t, self._image_axes) == size]
        self.calls = [c for c in _calls.named(calls) if isinstance(c.layer, DeformableConv2D)]
        self._operations = graph.get_operations()
        self._layer_of = {c.outputs.ref(): c for c in self.calls}
        self._reached: dict[Any, dict[Any, _Interval]] = {}  # by the source

    def from_image(self, call: int) -> Mapping:
        """Pixels of a call's input map to pixels of the image (the first, if it reads several)."""
        inputs = self.calls[call].inputs.ref()
        reached = (self._reach(image, self._image_axes).get(inputs) for image in self._images)
        found = next((interval for interval in reached if interval is not None), None)
        if found is None:
            raise ValueError(
                f"sampling_locations: positions of layer {self.calls[call].name!r} cannot be "
                "followed to the image, there is an operator between them that moves pixels in no "
                f"regular way; got {self._last_known(self._images[0], self._image_axes)}"
            )
        return found.middle()

    def between(self, earlier: int, later: int) -> Mapping | None:
        """Pixels of a call's input map to cells of an earlier call's output map, if it reads it."""
        source = self.calls[earlier].outputs
        reached = self._reach(source, _axes(self.calls[earlier].layer))
        found = reached.get(self.calls[later].inputs.ref())
        return None if found is None else found.middle()

    def before(self, call: int) -> int | None:
        """The last of the calls whose output this call's input depends on."""
        earlier = range(call - 1, -1, -1)
        return next((i for i in earlier if self.between(i, call) is not None), None)

    def _reach(self, source: tf.Tensor, axes: tuple[int, int]) -> dict[Any, _Interval]:
        """Carries the interval of one cell of the source to all tensors that it can be told for."""
        if source.ref() in self._reached:
            return self._reached[source.ref()]
        intervals: dict[Any, _Interval] = {source.ref(): _Interval(axes)}
        for operation in self._operations:
            known = [intervals.get(t.ref()) for t in operation.inputs]
            if operation.type not in _OF_ROWS:
                known = [None if k is None or k.flat else k for k in known]
            rule = _RULES.get(operation.type)
            results: Sequence[_Interval | None] = []
            if rule is not None and any(k is not None for k in known):
                results = rule(operation, known)
            for output, result in zip(operation.outputs, results, strict=False):
                if result is not None and output.ref() not in intervals:
                    intervals[output.ref()] = result
            for output in operation.outputs:
                call = self._layer_of.get(output.ref())
                if call is not None and output is not source:
                    # Whatever the layer is made of: on its regular grid it is a convolution.
                    intervals.pop(output.ref(), None)
                    interval = intervals.get(call.inputs.ref())
                    through = None if interval is None else _through_layer(call, interval)
                    if through is not None:
                        intervals[output.ref()] = through
        self._reached[source.ref()] = intervals
        return intervals

    def _last_known(self, source: tf.Tensor, axes: tuple[int, int]) -> str:
        """Names the operators that end the paths from a source."""
        intervals = self._reach(source, axes)
        ends = {
            operation.type
            for operation in self._operations
            if any(t.ref() in intervals for t in operation.inputs)
            and not any(t.ref() in intervals for t in operation.outputs)
            and operation.type not in ("Shape", "NoOp")
        }
        return ", ".join(sorted(ends)) or "no path at all"


@dataclasses.dataclass(frozen=True)
class _Interval:
    """What one cell of a tensor depends on, and where the tensor has its rows and columns."""

    axes: tuple[int, int]
    stride: Pair = dataclasses.field(default_factory=lambda: np.ones(2))
    low: Pair = dataclasses.field(default_factory=lambda: np.zeros(2))
    high: Pair = dataclasses.field(default_factory=lambda: np.zeros(2))
    # In the batch of SpaceToBatchND, cell p is every `block`-th of the cells counted here.
    block: tuple[int, int] = (1, 1)
    # If cells are the rows of a matrix: the sizes of their axes, and the number of columns.
    flat: tuple[tuple[int, ...], int] | None = None

    def middle(self) -> Mapping:
        return Mapping(self.stride, (self.low + self.high) / 2)

    def window(self, stride: Any, first: Any, last: Any) -> _Interval:
        """Of a cell that reads this tensor from `p*stride + first` to `p*stride + last`."""
        stride, first, last = (np.asarray(pair, np.float64) for pair in (stride, first, last))
        return dataclasses.replace(
            self,
            stride=self.stride * stride,
            low=self.low + self.stride * first,
            high=self.high + self.stride * last,
        )

    def at(self, axes: tuple[int, int]) -> _Interval:
        return dataclasses.replace(self, axes=axes)


_Known: TypeAlias = Sequence[_Interval | None]
_Rule: TypeAlias = Callable[[Any, _Known], Sequence[_Interval | None]]
_RULES: dict[str, _Rule] = {}

# Cell p of the result is made of cell p of the operands (or of constants, or of what is broadcast).
_ELEMENTWISE = """
    Abs Add AddN AddV2 BiasAdd Cast CheckNumerics ClipByValue Cos Div DivNoNan Elu EnsureShape
    Equal Erf Erfc Exp Expm1 FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars Floor FloorMod
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Greater GreaterEqual Identity IdentityN
    IsFinite IsInf IsNan LRN LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot
    LogicalOr Maximum Minimum Mul MulNoNan Neg NotEqual OnesLike Pow PlaceholderWithDefault
    PreventGradient RealDiv Reciprocal Relu Relu6 Rint Round Rsqrt Select SelectV2 Selu Sigmoid
    Sign Sin Snapshot Softmax Softplus Softsign Sqrt Square SquaredDifference StopGradient Sub
    Tan Tanh Xdivy Xlogy ZerosLike
""".split()
_OF_ROWS = {*_ELEMENTWISE, "MatMul", "Reshape"}  # what is followed on the rows of a matrix
_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "Sum")
_POOLING = ("AvgPool", "MaxPool")


def _rule(*types: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


@_rule(*_ELEMENTWISE)
def _elementwise(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    if operation.type == "IdentityN":
        return known
    output = operation.outputs[0]
    fitting = []
    for tensor, interval in zip(operation.inputs, known, strict=True):
        if interval is None or None in (tensor.shape.rank, output.shape.rank):
            continue
        added = output.shape.rank - tensor.shape.rank
        if interval.flat:
            fitting += [interval] * (added == 0)
            continue
        moved = (interval.axes[0] + added, interval.axes[1] + added)
        # What is broadcast, a pooled value, say, is nowhere in particular.
        if added >= 0 and _size(tensor, interval.axes) == _size(output, moved):
            fitting.append(interval.at(moved))
    return [_union(fitting)]


@_rule(*_REDUCTIONS)
def _reduction(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval, rank = known[0], operation.inputs[0].shape.rank
    reduced = tf.get_static_value(operation.inputs[1])
    if interval is None or reduced is None or rank is None:
        return []
    axes = {int(axis) % rank for axis in np.ravel(reduced)}
    if axes & set(interval.axes):
        return []
    if operation.get_attr("keep_dims"):
        return [interval]
    y, x = (axis - sum(r < axis for r in axes) for axis in interval.axes)
    return [interval.at((y, x))]


@_rule("ConcatV2")
def _concat(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    axis, rank = tf.get_static_value(operation.inputs[-1]), operation.outputs[0].shape.rank
    intervals = [interval for interval in known[:-1] if interval is not None]
    if axis is None or rank is None or any(int(axis) % rank in i.axes for i in intervals):
        return []
    return [_union(intervals)]


@_rule("Split", "SplitV")
def _split(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    value, axis = (1, 0) if operation.type == "Split" else (0, 2)
    interval, along = known[value], tf.get_static_value(operation.inputs[axis])
    rank = operation.inputs[value].shape.rank
    if interval is None or along is None or rank is None or int(along) % rank in interval.axes:
        return []
    return [interval] * len(operation.outputs)


@_rule("Conv2D", "DepthwiseConv2dNative", *_POOLING)
def _convolution(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval, layout = known[0], operation.get_attr("data_format").decode()
    axes = (layout.index("H"), layout.index("W"))
    size = _size(operation.inputs[0], axes)
    if interval is None or interval.axes != axes:
        return []
    strides = [operation.get_attr("strides")[axis] for axis in axes]
    if operation.type in _POOLING:
        kernel = [operation.get_attr("ksize")[axis] for axis in axes]
        dilations = [1, 1]
    else:
        kernel = operation.inputs[1].shape.as_list()[:2]
        dilations = [operation.get_attr("dilations")[axis] for axis in axes]
    padding = operation.get_attr("padding").decode()
    if padding == "EXPLICIT":
        pads = [operation.get_attr("explicit_paddings")[2 * axis] for axis in axes]
    elif padding == "VALID":
        pads = [0, 0]
    elif None in size:
        return []
    else:
        pads = _same(size, kernel, strides, dilations)
    # Inside the batch of SpaceToBatchND neighbours are `block` apart.
    return [_windows(interval, kernel, strides, np.multiply(dilations, interval.block), pads)]


@_rule("Conv2DBackpropInput")
def _transposed_convolution(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval, layout = known[2], operation.get_attr("data_format").decode()
    axes = (layout.index("H"), layout.index("W"))
    size = _size(operation.outputs[0], axes)
    if interval is None or interval.axes != axes or None in size:
        return []
    strides = [operation.get_attr("strides")[axis] for axis in axes]
    dilations = [operation.get_attr("dilations")[axis] for axis in axes]
    kernel = operation.inputs[1].shape.as_list()[:2]
    padding = operation.get_attr("padding").decode()
    pads = [0, 0]
    if padding == "EXPLICIT":
        pads = [operation.get_attr("explicit_paddings")[2 * axis] for axis in axes]
    elif padding == "SAME":
        pads = _same(size, kernel, strides, dilations)
    # p = i*stride - pad + k*dilation, solved for i.
    extent = (np.array(kernel) - 1) * dilations
    step = np.array(strides, np.float64)
    return [interval.window(1 / step, (np.array(pads) - extent) / step, np.array(pads) / step)]


@_rule("Pad", "PadV2", "MirrorPad")
def _pad(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    pads = tf.get_static_value(operation.inputs[1])
    if known[0] is None or pads is None:
        return []
    before = -pads[list(known[0].axes), 0]
    return [known[0].window(1, before, before)]


@_rule("StridedSlice")
def _slice(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval, rank = known[0], operation.inputs[0].shape.rank
    begin, steps = (tf.get_static_value(operation.inputs[i]) for i in (1, 3))
    masks = {n: operation.get_attr(f"{n}_mask") for n in ("begin", "ellipsis", "new_axis")}
    if None in (interval, rank) or begin is None or steps is None or masks["new_axis"]:
        return []
    assert interval is not None
    if operation.get_attr("shrink_axis_mask"):
        return []
    starts: list[tuple[int, int]] = []  # (begin, step) of each axis
    for i, (first, step) in enumerate(zip(begin, steps, strict=True)):
        if masks["ellipsis"] >> i & 1:
            starts += [(0, 1)] * (rank - len(begin) + 1)
        else:
            starts.append((0 if masks["begin"] >> i & 1 else int(first), int(step)))
    starts += [(0, 1)] * (rank - len(starts))
    size = _size(operation.inputs[0], interval.axes)
    first, step = [], []
    for axis, length in zip(interval.axes, size, strict=True):
        start, by = starts[axis]
        if by < 1 or length is None:
            return []
        first.append(start if start >= 0 else start + length)
        step.append(by)
    return [interval.window(step, first, first)]


@_rule("Transpose")
def _transpose(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    order = tf.get_static_value(operation.inputs[1])
    if known[0] is None or order is None:
        return []
    y, x = (order.tolist().index(axis) for axis in known[0].axes)
    return [known[0].at((y, x))]


@_rule("ExpandDims")
def _expand(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    axis, rank = tf.get_static_value(operation.inputs[1]), operation.outputs[0].shape.rank
    if known[0] is None or axis is None or rank is None:
        return []
    new = int(axis) % rank
    y, x = (axis + (axis >= new) for axis in known[0].axes)
    return [known[0].at((y, x))]


@_rule("Tile")
def _tile(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval = known[0]
    if interval is None:
        return []
    same = _size(operation.inputs[0], interval.axes) == _size(operation.outputs[0], interval.axes)
    return [interval] if same else []


@_rule("MatMul")
def _dense(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    """A dense layer on every cell of a map: Keras makes the map a matrix, and back."""
    interval, weights = known[0], operation.inputs[1].shape
    if interval is None or not interval.flat or weights.rank != 2:
        return []
    if operation.get_attr("transpose_a") or known[1] is not None:
        return []
    read, made = reversed(weights) if operation.get_attr("transpose_b") else weights
    if made is None or read != interval.flat[1]:
        return []
    return [dataclasses.replace(interval, flat=(interval.flat[0], made))]


@_rule("Reshape")
def _reshape(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    """Keeps rows and columns, or repeats them where the axis after them is merged into them."""
    interval, shapes = known[0], (operation.inputs[0].shape, operation.outputs[0].shape)
    if interval is None or None in (shapes[0].rank, shapes[1].rank):
        return []
    if interval.flat:
        sizes, columns = interval.flat
        is_back = shapes[1].as_list()[1:] == [*sizes, columns]
        return [dataclasses.replace(interval, flat=None)] if is_back else []
    if shapes[1].rank == 2 and shapes[0].rank > max(interval.axes) + 1:
        *sizes, columns = shapes[0].as_list()[1:]
        if None in (*sizes, columns) or not shapes[1][1:].is_compatible_with([columns]):
            return []
        return [dataclasses.replace(interval, flat=(tuple(sizes), columns))]
    old, new = (shape.as_list()[1:] for shape in shapes)  # without the batch
    if None in old or None in new or shapes[0][0] != shapes[1][0]:
        return []
    axes, repeats = [], []
    for axis in interval.axes:
        before, length = np.prod(old[: axis - 1]), old[axis - 1]
        merged = np.cumprod([1, *old[axis:]])  # with none, one, ... of the axes after it
        place = [
            j
            for j, size in enumerate(new)
            if np.prod(new[:j]) == before and size % length == 0 and size // length in merged
        ]
        if not place:
            return []
        axes.append(place[0] + 1)
        repeats.append(new[place[0]] // length)
    if axes[0] == axes[1]:
        return []
    middle = -(np.array(repeats) - 1) / 2 / repeats
    return [interval.at((axes[0], axes[1])).window(1 / np.array(repeats), middle, middle)]


@_rule("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea")
def _resize(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval = known[0]
    if interval is None:
        return []
    old, new = (_size(t, interval.axes) for t in (operation.inputs[0], operation.outputs[0]))
    if None in (*old, *new):
        return []
    flags = operation.node_def.attr
    before, after = np.array(old, np.float64), np.array(new, np.float64)
    if flags["align_corners"].b:
        return [interval.window((before - 1) / np.maximum(after - 1, 1), 0, 0)]
    scale = before / after
    half = flags["half_pixel_centers"].b or operation.type == "ResizeArea"
    shift = scale / 2 - 0.5 if half else 0 * scale
    return [interval.window(scale, shift, shift)]


@_rule("SpaceToBatchND")
def _space_to_batch(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval = known[0]
    block, pads = (tf.get_static_value(operation.inputs[i]) for i in (1, 2))
    if interval is None or block is None or pads is None or interval.axes != (1, 2):
        return []
    if interval.block != (1, 1):
        return []
    full = np.ones(2, int)
    full[: len(block)] = block
    before = np.zeros(2)
    before[: len(block)] = -pads[:, 0]
    moved = interval.window(1, before, before)
    return [dataclasses.replace(moved, block=(int(full[0]), int(full[1])))]


@_rule("BatchToSpaceND")
def _batch_to_space(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    interval, crops = known[0], tf.get_static_value(operation.inputs[2])
    if interval is None or crops is None:
        return []
    first = np.zeros(2)
    first[: len(crops)] = crops[:, 0]
    return [dataclasses.replace(interval.window(1, first, first), block=(1, 1))]


@_rule("DepthToSpace", "SpaceToDepth")
def _depth_to_space(operation: Any, known: _Known) -> Sequence[_Interval | None]:
    layout, block = operation.get_attr("data_format").decode(), operation.get_attr("block_size")
    if known[0] is None or known[0].axes != (layout.index("H"), layout.index("W")):
        return []
    if operation.type == "SpaceToDepth":
        return [known[0].window(block, 0, block - 1)]
    middle = -(block - 1) / 2 / block
    return [known[0].window(1 / block, middle, middle)]


def _through_layer(call: _calls.Call, interval: _Interval) -> _Interval | None:
    layer, axes = call.layer, _axes(call.layer)
    if interval.axes != axes:
        return None
    pads = [0, 0]
    if layer.padding == "same":
        size = _size(call.inputs, axes)
        if None in size:
            return None
        pads = _same(size, layer.kernel_size, layer.strides, layer.dilation_rate)
    return _windows(interval, layer.kernel_size, layer.strides, layer.dilation_rate, pads)


def _windows(
    interval: _Interval, kernel: Any, strides: Any, dilations: Any, pads: Any
) -> _Interval:
    first = -np.array(pads, np.float64)
    return interval.window(strides, first, first + (np.array(kernel) - 1) * dilations)


def _union(intervals: Sequence[_Interval]) -> _Interval | None:
    """Of several paths to one tensor. Where strides differ, sizes were rounded: the narrowest."""
    if not intervals:
        return None
    first = min(intervals, key=lambda i: tuple(i.high - i.low))
    alike = [
        i
        for i in intervals
        if (i.axes, i.block, i.flat) == (first.axes, first.block, first.flat)
        and np.allclose(i.stride, first.stride)
    ]
    low = np.min([i.low for i in alike], axis=0)
    high = np.max([i.high for i in alike], axis=0)
    return dataclasses.replace(first, low=low, high=high)


def _same(size: Sequence[Any], kernel: Any, strides: Any, dilations: Any) -> list[int]:
    """The rows above and the columns left of the map that "SAME" padding adds."""
    pads = same_padding(tuple(size), tuple(kernel), tuple(strides), tuple(dilations))
    return [int(before) for before in pads.numpy()[:, 0]]


def _size(tensor: tf.Tensor, axes: tuple[int, int]) -> tuple[int | None, int | None]:
    if tensor.shape.rank is None:
        return None, None
    return tensor.shape[axes[0]], tensor.shape[axes[1]]


def _axes(layer: Any) -> tuple[int, int]:
    return (2, 3) if layer.data_format == "channels_first" else (1, 2)


def _image_axes(image: tf.Tensor, calls: Sequence[_calls.Call]) -> tuple[int, int]:
    """Images come channels last, unless they look as if not and a layer reads channels first."""
    first = any(getattr(c.layer, "data_format", "") == "channels_first" for c in calls)
    few = (1, 3, 4)
    if image.shape[3] not in few and (first or image.shape[1] in few):
        return 2, 3
    return 1, 2


def _specifications(inputs: Any) -> Any:
    def specification(value: Any) -> tf.TensorSpec:
        tensor = tf.convert_to_tensor(value)
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    return tf.nest.map_structure(specification, inputs)
