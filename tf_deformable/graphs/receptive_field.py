"""Coordinates through a graph: which pixels of an earlier map a cell of a later one looks at.

A model is traced to a graph, and an interval of positions is carried through its operators. Cell p
of a tensor depends, as far as the operators' shapes tell, on the positions from `p*stride + low` to
`p*stride + high` of the source; the middle of them is where the cell is said to be. (Araujo, Norris
and Sim, Computing Receptive Fields of Convolutional Neural Networks, Distill 2019.) Where paths
meet, the interval is the union. Paths through global pooling, attention, or any other operator that
has no such interval, are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable._geometry.padding import Padding, resolve_axis, window_starts
from tf_deformable.graphs.layer_calls import LayerCall

Vector: TypeAlias = NDArray[np.float64]  # [2], y and x


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Positions of one map in pixels of another: `position * stride + shift`, (y, x)."""

    stride: Vector
    shift: Vector

    def __call__(self, positions: Any) -> NDArray[np.float64]:
        """Maps `[..., 2]`."""
        return positions * self.stride + self.shift


@dataclasses.dataclass(frozen=True)
class Field:
    """What one cell of a tensor depends on, and where the tensor has its rows and columns."""

    axes: tuple[int, int]
    stride: Vector = dataclasses.field(default_factory=lambda: np.ones(2))
    low: Vector = dataclasses.field(default_factory=lambda: np.zeros(2))
    high: Vector = dataclasses.field(default_factory=lambda: np.zeros(2))
    # In the batch of SpaceToBatchND, cell p is every `block`-th of the cells counted here.
    block: tuple[int, int] = (1, 1)
    # If cells are the rows of a matrix: the sizes of their axes, and the number of columns.
    flat: tuple[tuple[int, ...], int] | None = None

    @property
    def is_placed(self) -> bool:
        """Whether it is known where the cells are; a size that is not known may hide that."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    def middle(self) -> Mapping | None:
        """The middle of what each cell depends on, None if it is not known."""
        return Mapping(self.stride, (self.low + self.high) / 2) if self.is_placed else None

    def window(self, stride: Any, first: Any, last: Any) -> Field:
        """Of a cell that reads this tensor from `p*stride + first` to `p*stride + last`."""
        stride, first, last = (np.asarray(pair, np.float64) for pair in (stride, first, last))
        return dataclasses.replace(
            self,
            stride=self.stride * stride,
            low=self.low + self.stride * first,
            high=self.high + self.stride * last,
        )

    def at(self, axes: tuple[int, int]) -> Field:
        """The same of a tensor that has its rows and columns elsewhere."""
        return dataclasses.replace(self, axes=axes)


class ReceptiveFields:
    """The receptive fields of all tensors of a traced model.

    Args:
        operations: of the graph, in its order.
        convolutions: the calls of `DeformableConv2D` in it. On its regular grid, such a layer is a
            convolution, whatever it is made of.
        others: what further calls of layers read and made. Where no rule follows a layer's
            operators, a map that keeps its size keeps its stride, and where its cells are is not
            known.
    """

    def __init__(
        self,
        operations: Sequence[Any],
        convolutions: Sequence[LayerCall],
        others: Sequence[tuple[Sequence[Any], Sequence[Any]]] = (),
    ) -> None:
        self._operations = operations
        self._layer_of = {c.outputs.ref(): c for c in convolutions}
        self._read_for = {
            tensor.ref(): read
            for read, made in others
            for tensor in made
            if isinstance(tensor, tf.Tensor)
        }
        self._reached: dict[Any, dict[Any, Field]] = {}  # by the source

    def of(self, source: tf.Tensor, axes: tuple[int, int]) -> dict[Any, Field]:
        """Returns what one cell of each tensor depends on, by the tensor's `ref()`.

        Args:
            source: the map whose positions are meant.
            axes: of its rows and columns.
        """
        if source.ref() in self._reached:
            return self._reached[source.ref()]
        fields: dict[Any, Field] = {source.ref(): Field(axes)}
        for operation in self._operations:
            known = [fields.get(t.ref()) for t in operation.inputs]
            if operation.type not in _OF_ROWS:
                known = [None if k is None or k.flat else k for k in known]
            rule = _RULES.get(operation.type)
            results: Sequence[Field | None] = []
            if rule is not None and any(k is not None for k in known):
                results = rule(operation, known)
            for output, result in zip(operation.outputs, results, strict=False):
                if result is not None and output.ref() not in fields:
                    fields[output.ref()] = result
            for output in operation.outputs:
                if output is source:
                    continue
                through = fields.get(output.ref())
                if output.ref() in self._layer_of:
                    through = _through_layer(self._layer_of[output.ref()], fields)
                elif through is None and output.ref() in self._read_for:
                    through = _of_the_same_size(output, self._read_for[output.ref()], fields)
                if through is not None:
                    fields[output.ref()] = through
                else:
                    fields.pop(output.ref(), None)
        self._reached[source.ref()] = fields
        return fields

    def ends(self, source: tf.Tensor, axes: tuple[int, int]) -> str:
        """Names the operators that let no position of a source pass."""
        placed = {ref for ref, field in self.of(source, axes).items() if field.is_placed}
        found = {
            operation.type
            for operation in self._operations
            if any(t.ref() in placed for t in operation.inputs)
            and not any(t.ref() in placed for t in operation.outputs)
            and operation.type not in ("Shape", "NoOp")
        }
        return ", ".join(sorted(found)) or "no path at all"


_Known: TypeAlias = Sequence[Field | None]
_Rule: TypeAlias = Callable[[Any, _Known], Sequence[Field | None]]
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
def _elementwise(operation: Any, known: _Known) -> Sequence[Field | None]:
    if operation.type == "IdentityN":
        return known
    output = operation.outputs[0]
    fitting = []
    for tensor, field in zip(operation.inputs, known, strict=True):
        if field is None or None in (tensor.shape.rank, output.shape.rank):
            continue
        added = output.shape.rank - tensor.shape.rank
        if field.flat:
            fitting += [field] * (added == 0)
            continue
        moved = (field.axes[0] + added, field.axes[1] + added)
        # What is broadcast, a pooled value, say, is nowhere in particular.
        if added >= 0 and size_of(tensor, field.axes) == size_of(output, moved):
            fitting.append(field.at(moved))
    return [_union(fitting)]


@_rule(*_REDUCTIONS)
def _reduction(operation: Any, known: _Known) -> Sequence[Field | None]:
    field, rank = known[0], operation.inputs[0].shape.rank
    reduced = tf.get_static_value(operation.inputs[1])
    if field is None or reduced is None or rank is None:
        return []
    axes = {int(axis) % rank for axis in np.ravel(reduced)}
    if axes & set(field.axes):
        return []
    if operation.get_attr("keep_dims"):
        return [field]
    y, x = (axis - sum(r < axis for r in axes) for axis in field.axes)
    return [field.at((y, x))]


@_rule("ConcatV2")
def _concat(operation: Any, known: _Known) -> Sequence[Field | None]:
    axis, rank = tf.get_static_value(operation.inputs[-1]), operation.outputs[0].shape.rank
    fields = [field for field in known[:-1] if field is not None]
    if axis is None or rank is None or any(int(axis) % rank in i.axes for i in fields):
        return []
    return [_union(fields)]


@_rule("Split", "SplitV")
def _split(operation: Any, known: _Known) -> Sequence[Field | None]:
    value, axis = (1, 0) if operation.type == "Split" else (0, 2)
    field, along = known[value], tf.get_static_value(operation.inputs[axis])
    rank = operation.inputs[value].shape.rank
    if field is None or along is None or rank is None or int(along) % rank in field.axes:
        return []
    return [field] * len(operation.outputs)


@_rule("Conv2D", "DepthwiseConv2dNative", *_POOLING)
def _convolution(operation: Any, known: _Known) -> Sequence[Field | None]:
    field, layout = known[0], operation.get_attr("data_format").decode()
    axes = (layout.index("H"), layout.index("W"))
    size = size_of(operation.inputs[0], axes)
    if field is None or field.axes != axes:
        return []
    strides = [operation.get_attr("strides")[axis] for axis in axes]
    if operation.type in _POOLING:
        kernel = [operation.get_attr("ksize")[axis] for axis in axes]
        dilations = [1, 1]
    else:
        kernel = operation.inputs[1].shape.as_list()[:2]
        dilations = [operation.get_attr("dilations")[axis] for axis in axes]
    pads = _pads_before(_padding_of(operation, axes), size, kernel, strides, dilations)
    # Inside the batch of SpaceToBatchND neighbours are `block` apart.
    return [_windows(field, kernel, strides, np.multiply(dilations, field.block), pads)]


@_rule("Conv2DBackpropInput")
def _transposed_convolution(operation: Any, known: _Known) -> Sequence[Field | None]:
    field, layout = known[2], operation.get_attr("data_format").decode()
    axes = (layout.index("H"), layout.index("W"))
    size = size_of(operation.outputs[0], axes)
    if field is None or field.axes != axes:
        return []
    strides = [operation.get_attr("strides")[axis] for axis in axes]
    dilations = [operation.get_attr("dilations")[axis] for axis in axes]
    kernel = operation.inputs[1].shape.as_list()[:2]
    pads = _pads_before(_padding_of(operation, axes), size, kernel, strides, dilations)
    # What a tap of window i reads (`window_starts`), p = i*stride - pad + k*dilation, solved for i.
    extent = (np.array(kernel) - 1) * dilations
    step = np.array(strides, np.float64)
    return [field.window(1 / step, (np.array(pads) - extent) / step, np.array(pads) / step)]


@_rule("Pad", "PadV2", "MirrorPad")
def _pad(operation: Any, known: _Known) -> Sequence[Field | None]:
    pads = tf.get_static_value(operation.inputs[1])
    if known[0] is None or pads is None:
        return []
    before = -pads[list(known[0].axes), 0]
    return [known[0].window(1, before, before)]


@_rule("StridedSlice")
def _slice(operation: Any, known: _Known) -> Sequence[Field | None]:
    field, rank = known[0], operation.inputs[0].shape.rank
    begin, steps = (tf.get_static_value(operation.inputs[i]) for i in (1, 3))
    masks = {n: operation.get_attr(f"{n}_mask") for n in ("begin", "ellipsis", "new_axis")}
    if None in (field, rank) or begin is None or steps is None or masks["new_axis"]:
        return []
    assert field is not None
    if operation.get_attr("shrink_axis_mask"):
        return []
    starts: list[tuple[int, int]] = []  # (begin, step) of each axis
    for i, (first, step) in enumerate(zip(begin, steps, strict=True)):
        if masks["ellipsis"] >> i & 1:
            starts += [(0, 1)] * (rank - len(begin) + 1)
        else:
            starts.append((0 if masks["begin"] >> i & 1 else int(first), int(step)))
    starts += [(0, 1)] * (rank - len(starts))
    size = size_of(operation.inputs[0], field.axes)
    first, step = [], []
    for axis, length in zip(field.axes, size, strict=True):
        start, by = starts[axis]
        if by < 1 or length is None:
            return []
        first.append(start if start >= 0 else start + length)
        step.append(by)
    return [field.window(step, first, first)]


@_rule("Transpose")
def _transpose(operation: Any, known: _Known) -> Sequence[Field | None]:
    order = tf.get_static_value(operation.inputs[1])
    if known[0] is None or order is None:
        return []
    y, x = (order.tolist().index(axis) for axis in known[0].axes)
    return [known[0].at((y, x))]


@_rule("ExpandDims")
def _expand(operation: Any, known: _Known) -> Sequence[Field | None]:
    axis, rank = tf.get_static_value(operation.inputs[1]), operation.outputs[0].shape.rank
    if known[0] is None or axis is None or rank is None:
        return []
    new = int(axis) % rank
    y, x = (axis + (axis >= new) for axis in known[0].axes)
    return [known[0].at((y, x))]


@_rule("Tile")
def _tile(operation: Any, known: _Known) -> Sequence[Field | None]:
    field = known[0]
    if field is None:
        return []
    same = size_of(operation.inputs[0], field.axes) == size_of(operation.outputs[0], field.axes)
    return [field] if same else []


@_rule("MatMul")
def _dense(operation: Any, known: _Known) -> Sequence[Field | None]:
    """A dense layer on every cell of a map: Keras makes the map a matrix, and back."""
    field, weights = known[0], operation.inputs[1].shape
    if field is None or not field.flat or weights.rank != 2:
        return []
    if operation.get_attr("transpose_a") or known[1] is not None:
        return []
    read, made = reversed(weights) if operation.get_attr("transpose_b") else weights
    if made is None or read != field.flat[1]:
        return []
    return [dataclasses.replace(field, flat=(field.flat[0], made))]


@_rule("Reshape")
def _reshape(operation: Any, known: _Known) -> Sequence[Field | None]:
    """Keeps rows and columns, or repeats them where the axis after them is merged into them."""
    field, shapes = known[0], (operation.inputs[0].shape, operation.outputs[0].shape)
    if field is None or None in (shapes[0].rank, shapes[1].rank):
        return []
    if field.flat:
        sizes, columns = field.flat
        is_back = shapes[1].as_list()[1:] == [*sizes, columns]
        return [dataclasses.replace(field, flat=None)] if is_back else []
    if shapes[1].rank == 2 and shapes[0].rank > max(field.axes) + 1:
        *sizes, columns = shapes[0].as_list()[1:]
        if None in (*sizes, columns) or not shapes[1][1:].is_compatible_with([columns]):
            return []
        return [dataclasses.replace(field, flat=(tuple(sizes), columns))]
    old, new = (shape.as_list()[1:] for shape in shapes)  # without the batch
    if None in old or None in new or shapes[0][0] != shapes[1][0]:
        return []
    axes, repeats = [], []
    for axis in field.axes:
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
    return [field.at((axes[0], axes[1])).window(1 / np.array(repeats), middle, middle)]


@_rule("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea")
def _resize(operation: Any, known: _Known) -> Sequence[Field | None]:
    field = known[0]
    if field is None:
        return []
    old, new = (size_of(t, field.axes) for t in (operation.inputs[0], operation.outputs[0]))
    if None in (*old, *new):
        return []
    flags = operation.node_def.attr
    before, after = np.array(old, np.float64), np.array(new, np.float64)
    if flags["align_corners"].b:
        return [field.window((before - 1) / np.maximum(after - 1, 1), 0, 0)]
    scale = before / after
    half = flags["half_pixel_centers"].b or operation.type == "ResizeArea"
    shift = scale / 2 - 0.5 if half else 0 * scale
    return [field.window(scale, shift, shift)]


@_rule("SpaceToBatchND")
def _space_to_batch(operation: Any, known: _Known) -> Sequence[Field | None]:
    field = known[0]
    block, pads = (tf.get_static_value(operation.inputs[i]) for i in (1, 2))
    if field is None or block is None or pads is None or field.axes != (1, 2):
        return []
    if field.block != (1, 1):
        return []
    full = np.ones(2, int)
    full[: len(block)] = block
    before = np.zeros(2)
    before[: len(block)] = -pads[:, 0]
    moved = field.window(1, before, before)
    return [dataclasses.replace(moved, block=(int(full[0]), int(full[1])))]


@_rule("BatchToSpaceND")
def _batch_to_space(operation: Any, known: _Known) -> Sequence[Field | None]:
    field, crops = known[0], tf.get_static_value(operation.inputs[2])
    if field is None or crops is None:
        return []
    first = np.zeros(2)
    first[: len(crops)] = crops[:, 0]
    return [dataclasses.replace(field.window(1, first, first), block=(1, 1))]


@_rule("DepthToSpace", "SpaceToDepth")
def _depth_to_space(operation: Any, known: _Known) -> Sequence[Field | None]:
    layout, block = operation.get_attr("data_format").decode(), operation.get_attr("block_size")
    if known[0] is None or known[0].axes != (layout.index("H"), layout.index("W")):
        return []
    if operation.type == "SpaceToDepth":
        return [known[0].window(block, 0, block - 1)]
    middle = -(block - 1) / 2 / block
    return [known[0].window(1 / block, middle, middle)]


def _through_layer(call: LayerCall, fields: dict[Any, Field]) -> Field | None:
    field, layer = fields.get(call.features.ref()), call.layer
    axes = axes_of(layer)
    if field is None or field.axes != axes:
        return None
    window = (layer.kernel_size, layer.strides, layer.dilation_rate)
    pads = _pads_before(layer.padding_of_both_axes, size_of(call.features, axes), *window)
    return _windows(field, *window, pads)


def _of_the_same_size(
    made: tf.Tensor, read: Sequence[Any], fields: dict[Any, Field]
) -> Field | None:
    """Of a map that a layer made in a way that no rule follows, if it has the size of one read."""
    for tensor in read:
        field = fields.get(tensor.ref()) if isinstance(tensor, tf.Tensor) else None
        if field is None or field.flat or made.shape.rank != tensor.shape.rank:
            continue
        size = size_of(tensor, field.axes)
        if None not in size and size == size_of(made, field.axes):
            return field.window(1, np.nan, np.nan)
    return None


def _windows(field: Field, kernel: Any, strides: Any, dilations: Any, pads: Any) -> Field:
    first = window_starts(np.zeros(2), np.array(strides), np.array(pads))  # of pixel 0
    return field.window(strides, first, first + (np.array(kernel) - 1) * dilations)


def _union(fields: Sequence[Field]) -> Field | None:
    """Of several paths to one tensor. Where strides differ, sizes were rounded: the narrowest."""
    if not fields:
        return None
    fields = [f for f in fields if f.is_placed] or fields
    first = min(fields, key=lambda f: tuple(f.high - f.low))
    alike = [
        f
        for f in fields
        if (f.axes, f.block, f.flat) == (first.axes, first.block, first.flat)
        and np.allclose(f.stride, first.stride)
    ]
    low = np.min([f.low for f in alike], axis=0)
    high = np.max([f.high for f in alike], axis=0)
    return dataclasses.replace(first, low=low, high=high)


def _padding_of(operation: Any, axes: tuple[int, int]) -> Padding:
    """Of a convolution or a pooling of TensorFlow, along the axes of rows and columns."""
    padding = operation.get_attr("padding").decode()
    if padding != "EXPLICIT":
        return padding
    pads = operation.get_attr("explicit_paddings")
    y, x = ((pads[2 * axis], pads[2 * axis + 1]) for axis in axes)
    return y, x


def _pads_before(
    padding: Padding, size: Sequence[Any], kernel: Any, strides: Any, dilations: Any
) -> list[float]:
    """The rows above and the columns left of the map that the padding adds.

    Those of "SAME" depend on the size, unless the stride is 1. NaN: it is not known.
    """
    if padding == "VALID":
        return [0.0, 0.0]
    if padding != "SAME":
        return [float(before) for before, _ in padding]
    return [
        float("nan")
        if length is None and stride > 1
        else float(resolve_axis(length or 1, taps, stride, dilation, "SAME").pad_before)
        for length, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True)
    ]


def size_of(tensor: tf.Tensor, axes: tuple[int, int]) -> tuple[int | None, int | None]:
    """Returns the static sizes of rows and columns."""
    if tensor.shape.rank is None:
        return None, None
    return tensor.shape[axes[0]], tensor.shape[axes[1]]


def axes_of(layer: Any) -> tuple[int, int]:
    """Returns the axes of the rows and columns of the maps that a layer reads."""
    return (2, 3) if layer.data_format == "channels_first" else (1, 2)
