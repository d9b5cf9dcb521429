"""What a network costs in parameters and multiply-adds, before and after surgery."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tf_deformable._keras import is_graph
from tf_deformable.graphs.keras_graph import Shape, walk
from tf_deformable.graphs.opening import open_layers
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.models.surgery.replace import CONVOLUTIONS, holds_convolutions

_BILINEAR = 4  # multiply-adds of one sample of one channel
_ARGUMENTS = ("kernel_size", "strides", "dilation_rate", "padding")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """A layer, what it is, and what it costs.

    Attributes:
        path: its name, after those of the models that it is nested in.
        kind: its class.
        arguments: kernel size, strides, dilation and padding, as far as it has them.
        parameters: number of weights, all that it has.
        multiply_adds: for one image; None if the size of its maps is not known.
    """

    path: str
    kind: str
    arguments: dict[str, Any]
    parameters: int
    multiply_adds: int | None


@dataclasses.dataclass(frozen=True)
class Change:
    """A layer of a network and what stands in its place in the other one."""

    before: LayerCost
    after: tuple[LayerCost, ...]  # a separable convolution becomes two layers

    def __str__(self) -> str:
        """Returns what changed, in a line."""
        kinds = " + ".join(cost.kind for cost in self.after)
        text = self.before.kind
        if (self.before.kind,) != tuple(cost.kind for cost in self.after):
            text += f" -> {kinds}"
        for name, old in self.before.arguments.items():
            new = self.after[0].arguments.get(name)
            if new != old:
                text += f", {name} {old} -> {new}"
        return text


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What distinguishes two networks of the same layers. `print` shows it as a table.

    Attributes:
        changes: the layers that differ.
        parameters: of the two networks, all of them.
        multiply_adds: of the two networks for one image, in convolutions and dense layers; None
            where the size of the maps is not known.
    """

    changes: tuple[Change, ...]
    parameters: tuple[int, int]
    multiply_adds: tuple[int | None, int | None]

    def __str__(self) -> str:
        """Returns a table, one line per layer."""
        rows = [["layer", "parameters", "multiply-adds", "change"]]
        for change in self.changes:
            rows.append(
                [
                    change.before.path,
                    _arrow(change.before.parameters, sum(c.parameters for c in change.after)),
                    _arrow(change.before.multiply_adds, _total(change.after)),
                    str(change),
                ]
            )
        rows.append(["network", _arrow(*self.parameters), _arrow(*self.multiply_adds), ""])
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        name, parameters, count = widths
        lines = [
            f"{row[0]:<{name}}  {row[1]:>{parameters}}  {row[2]:>{count}}  {row[3]}".rstrip()
            for row in rows
        ]
        if None in self.multiply_adds:
            lines.append("multiply-adds need the size of the images: input_size=(height, width)")
        return "\n".join(lines)


def compare(before: Any, after: Any, input_size: tuple[int, int] | None = None) -> Comparison:
    """Says in which layers two networks differ, and what these and the networks cost.

    Layers are compared by name. Multiply-adds are those of one forward pass for one image, in
    convolutions and dense layers (bias, activation, normalisation and pooling are left out). For a
    deformable convolution they are those of the plain one, of the convolution that predicts the
    offsets, and 4 for each bilinear sample of each channel (5 if it is modulated).

    Example:
        >>> model = tf.keras.applications.ResNet50(weights=None, include_top=False)
        >>> deformable = tf_deformable.models.deformify(model)
        >>> print(tf_deformable.models.compare(model, deformable, input_size=(224, 224)))
        layer ...
        conv5_block1_2_conv 2,359,808 -> 2,442,770 ... Conv2D -> DeformableConv2D
        ...
        network 23,587,712 -> 23,836,598 3,855,925,248 -> 3,870,827,520

    Args:
        before: functional or built Sequential model.
        after: the same with other layers, as `deformify` returns it.
        input_size: (height, width) of the images, for a model with inputs of any size.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: a model is subclassed or not built.
    """
    old, new = (layer_costs(model, input_size) for model in (before, after))
    replacements: dict[str, list[LayerCost]] = {path: [] for path in old}
    for path, cost in new.items():
        # The longest: names of tf-keras may contain slashes without being nested.
        places = [place for place in old if f"{path}/".startswith(f"{place}/")]
        if places:
            replacements[max(places, key=len)].append(cost)
    changes = []
    for path, inside in replacements.items():
        if not inside or len(inside) == 1 and _same(inside[0], old[path]):
            continue
        changes.append(Change(old[path], tuple(inside)))
    return Comparison(
        changes=tuple(changes),
        parameters=(before.count_params(), after.count_params()),
        multiply_adds=(_total(old.values()), _total(new.values())),
    )


def layer_costs(model: Any, input_size: tuple[int, int] | None = None) -> dict[str, LayerCost]:
    """Returns the cost of each layer of a model and its nested models, by path.

    Args:
        model: functional or built Sequential model.
        input_size: (height, width) of the images, for a model with inputs of any size.

    Raises:
        ValueError: the model is subclassed or not built.
    """
    if not is_graph(model):
        raise ValueError(
            f"layer_costs: model must be a functional or a built Sequential model, got "
            f"{type(model).__name__} {model.name!r}"
        )
    costs: dict[str, LayerCost] = {}
    for call in walk(open_layers(model, holds_convolutions), input_size).calls:
        layer, path = call.layer, call.path
        if not isinstance(layer, tf.keras.layers.Layer):
            continue
        count = _multiply_adds(layer, call.input_shapes[0], call.output_shapes[0])
        if path in costs:  # called in more than one place
            earlier = costs[path].multiply_adds
            count = None if count is None or earlier is None else count + earlier
        costs[path] = LayerCost(
            path=path,
            kind=type(layer).__name__,
            arguments={name: getattr(layer, name) for name in _ARGUMENTS if hasattr(layer, name)},
            parameters=layer.count_params(),
            multiply_adds=count,
        )
    return costs


def _multiply_adds(layer: Any, read: Shape, made: Shape) -> int | None:
    """The multiply-adds of one call, for one image."""
    keras = tf.keras.layers
    if isinstance(layer, keras.Dense):
        return _product(made[1:-1], math.prod(layer.kernel.shape))
    if not isinstance(layer, CONVOLUTIONS) or len(made) != 4:
        return 0
    channel_axis = 1 if layer.data_format == "channels_first" else 3
    channels = read[channel_axis]
    made = made[1:channel_axis] + made[channel_axis + 1 :]
    if isinstance(layer, keras.Conv2DTranspose):
        read = read[1:channel_axis] + read[channel_axis + 1 :]
        return _product(read, math.prod(layer.kernel.shape))
    if isinstance(layer, keras.SeparableConv2D):
        weights = (layer.depthwise_kernel, layer.pointwise_kernel)
        return _product(made, sum(math.prod(weight.shape) for weight in weights))
    if isinstance(layer, keras.DepthwiseConv2D):
        return _product(
            made, math.prod(layer.kernel_size) * layer.depth_multiplier * (channels or 0)
        )
    if isinstance(layer, DeformableConv2D):
        samples = math.prod(layer.kernel_size) * (channels or 0)
        bilinear = samples * (_BILINEAR + layer.modulated)
        branch = 0 if layer.offset_kernel is None else math.prod(layer.offset_kernel.shape)
        return _product(made, bilinear + math.prod(layer.kernel.shape) + branch)
    return _product(made, math.prod(layer.kernel.shape))


def _product(sizes: Shape, factor: int) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) * factor if len(known) == len(sizes) else None


def _same(one: LayerCost, other: LayerCost) -> bool:
    return one.kind == other.kind and one.arguments == other.arguments


def _total(costs: Any) -> int | None:
    counts = [cost.multiply_adds for cost in costs]
    return None if None in counts else sum(counts)


def _arrow(before: int | None, after: int | None) -> str:
    one, other = ("?" if count is None else f"{count:,}" for count in (before, after))
    return f"{one} -> {other}"
