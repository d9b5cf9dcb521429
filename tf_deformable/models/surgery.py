"""Makes convolutions of an existing Keras model deformable, and keeps what it has learned."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, is_compiled, is_graph, sublayers
from tf_deformable.graphs.strides import Stride, walk_strides
from tf_deformable.layers.deformable_conv2d import DeformableConv2D

Layers: TypeAlias = "str | re.Pattern[str] | Iterable[str] | Callable[[Any], bool]"

_DeformableConv2D: Any = DeformableConv2D
_KINDS = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D, tf.keras.layers.SeparableConv2D)
_CONVOLUTIONS = (*_KINDS, tf.keras.layers.Conv2DTranspose, DeformableConv2D)
_POOLS = (tf.keras.layers.MaxPooling2D, tf.keras.layers.AveragePooling2D)
# The arguments of DeformableConv2D that a convolution has too.
_COMMON_ARGUMENTS = (
    *("name", "trainable", "dtype", "kernel_size", "strides", "padding", "data_format"),
    *("dilation_rate", "activation", "use_bias", "bias_initializer", "bias_regularizer"),
    *("activity_regularizer", "bias_constraint"),
)
_KERNEL_ARGUMENTS = ("initializer", "regularizer", "constraint")
# Those that say what is computed: a replacement has them from the convolution.
_KEPT_ARGUMENTS = {
    *("name", "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate"),
    *("groups", "activation", "use_bias"),
}
_LAYER_ARGUMENTS = (
    set(inspect.signature(DeformableConv2D).parameters) | {"trainable", "dtype"}
) - {*_KEPT_ARGUMENTS, "kwargs"}


def deformify(
    model: Any,
    layers: Layers | None = "conv5",
    *,
    dilate_last_stage: bool = False,
    modulated: bool = False,
    offset_groups: int = 1,
    **layer_arguments: Any,
) -> Any:
    """Returns a copy of a model in which the chosen convolutions are deformable.

    The copy has the weights, names, dtype policies and `trainable` flags of the model, which stays
    as it is. The new offset branches start at zero, so the copy computes what the model computes
    until it is trained (with `dilate_last_stage`, on maps of twice the resolution). If the model
    was compiled, so is the copy, with a fresh optimizer, as far as Keras can rebuild the loss and
    the metrics from their configuration.

    Example:
    >>> model = tf.keras.applications.ResNet50(weights=None, include_top=False)
    >>> deformable = tf_deformable.models.deformify(model)
    >>> print(tf_deformable.models.compare(model, deformable, input_size=(224, 224)))
    ...

    As the paper does for DeepLab and R-FCN, the last stage at stride 16 instead of 32:

    >>> tf_deformable.models.deformify(model, dilate_last_stage=True)

    Args:
        model: functional or built Sequential model of Keras 3 or tf-keras. Models nested in it are
            searched too. Custom layers are copied by their `get_config`, whole.
        layers: which convolutions become deformable:
            `"conv5"`: the paper's choice, put in general terms: every convolution with a kernel
                larger than 1x1 that reads feature maps of the coarsest resolution (of those that
                such convolutions read). In a ResNet, the 3x3 convolutions of conv5.
            any other string, or compiled pattern: a regular expression for the whole name.
            a list of strings: names.
            a function: is called with each convolution, and says whether it is chosen.
            None: none of them, which leaves `dilate_last_stage`.
            A layer in a nested model goes by its name or its path, "backbone/conv5_block1_2_conv".
        dilate_last_stage: bool, whether the network's last stage keeps the resolution of the one
            before: where the coarsest maps that "conv5" speaks of are made, strides become 1, and
            the convolutions that read these maps are dilated by as much, the zero padding layers
            before them included. What is downsampled after that still is. Where the padding is
            explicit or "valid", the features of the original are among those of the copy, at
            every second pixel; with "same" they are shifted by a pixel if the size was even
            (TensorFlow pads by the stride). Pools of stride 1 stay: Keras cannot dilate them.
        modulated: bool, whether the layers also predict a mask (Deformable ConvNets v2). The mask
            starts at 1 (`mask_initial_value=1.0`), so that the output does not change.
        offset_groups: int, groups of input channels that move independently.
        **layer_arguments: further arguments of `DeformableConv2D`, for all layers, for example
            `offset_learning_rate_multiplier=0.1`; not those that say what a convolution computes
            (its kernel's size, say), which stay as they are.

    Returns:
        A model of the same class. `Conv2D` (with groups, too) and `DepthwiseConv2D` become a
        `DeformableConv2D`; `SeparableConv2D` becomes a Sequential of a `DeformableConv2D` and a
        1x1 `Conv2D`. A layer that is called in several places stays one layer.

    Raises:
        TypeError: `model` is not a Keras model, `layers` of another type, or an argument is none
            of the layers'.
        ValueError: the model is subclassed or not built; nothing was chosen, a name is not there,
            or a chosen layer cannot be replaced; `offset_groups` does not divide its channels;
            `dilate_last_stage` does not fit the network. The message names the layer and what to
            do.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.3 (conv5, stride 32 to
        16 with dilation 2) and section 2.1 (zero initialisation).
    """
    _check(model)
    _check_arguments("deformify", layer_arguments)
    network = _Network(model)
    if layers is None and not dilate_last_stage:
        raise ValueError("deformify: layers is None, and dilate_last_stage False: nothing to do")
    chosen = [] if layers is None else network.choose(layers)
    for site in chosen:
        channels = _channels(site.layer)
        if isinstance(offset_groups, int) and offset_groups > 0 and channels % offset_groups:
            raise ValueError(
                f"deformify: offset_groups must divide the channels that each layer reads, got "
                f"{offset_groups} for layer {site.path!r}, which reads {channels}"
            )
    arguments = {
        "modulated": modulated,
        "offset_groups": offset_groups,
        "mask_initial_value": 1.0,
        **layer_arguments,
    }
    changes = network.dilation() if dilate_last_stage else {}
    copier = _Copier({site.key for site in chosen}, changes, arguments)
    try:
        copy = copier.copy_model(model)
    except ValueError as error:
        if not dilate_last_stage:
            raise
        raise ValueError(
            "deformify: dilate_last_stage: the network cannot be built with its last stage at a "
            f"higher resolution, where its layers meet: {error}"
        ) from error
    copier.copy_weights()
    _compile_like(model, copy)
    return copy


def deformable_layer(layer: Any, **layer_arguments: Any) -> Any:
    """Returns a deformable layer with the weights of a convolution, for models of your own class.

    `deformify` cannot look into a subclassed model. Give such a model the layer where its
    constructor makes it (in a model that was called already, Keras 3 lets no layer in):

        class Deformable(Network):
            def __init__(self, trained):
                super().__init__()
                self.conv5 = tf_deformable.models.deformable_layer(trained.conv5)

    Args:
        layer: a `Conv2D`, `DepthwiseConv2D` or `SeparableConv2D` that has been built (called).
        **layer_arguments: arguments of `DeformableConv2D`, for example `modulated=True`;
            `mask_initial_value` is 1.0 unless given.

    Returns:
        A built `DeformableConv2D` that computes what `layer` does, or, for a `SeparableConv2D`, a
        Sequential of one and a 1x1 `Conv2D`.

    Raises:
        TypeError: an argument is none of `DeformableConv2D`, or one that the convolution has.
        ValueError: the layer is not built, or of another class.
    """
    _check_arguments("deformable_layer", layer_arguments)
    problem = _problem(layer)
    if problem is None and not layer.built:
        problem = "it has no weights yet: call it first"
    if problem:
        raise ValueError(f"deformable_layer: {layer.name} cannot be replaced: {problem}")
    new = _deformable(layer, {}, {"mask_initial_value": 1.0, **layer_arguments})
    channels = _channels(layer)
    has_channels_first = layer.data_format == "channels_first"
    shape = (None, channels, None, None) if has_channels_first else (None, None, None, channels)
    new.build(shape)
    _copy_convolution(layer, new)
    return new


def output_stride(model: Any) -> float:
    """Returns how many pixels of the images a cell of a model's (only) output stands for.

    Args:
        model: functional or built Sequential model from images to a feature map.

    Raises:
        ValueError: the model is subclassed or not built, or its output is not one map, or not of
            the same stride in both directions.
    """
    _check(model)
    strides = _Network(model).outputs
    if len(strides) != 1 or strides[0] is None or strides[0][0] != strides[0][1]:
        raise ValueError(
            f"output_stride: model {model.name!r} must return one map [B,h,w,C] with the same "
            f"stride in both directions, got strides {strides} (None: no map)"
        )
    return strides[0][0]


def images_and_features(operation: str, backbone: Any) -> tuple[Any, Any]:
    """Returns the only input and the only output of a backbone.

    Raises:
        ValueError: the model is subclassed or not built, or has several.
    """
    if not is_graph(backbone):
        raise ValueError(
            f"{operation}: backbone must be a functional or a built Sequential model, got "
            f"{type(backbone).__name__} {getattr(backbone, 'name', '')!r}"
        )
    counts = len(backbone.inputs), len(backbone.outputs)
    if counts != (1, 1):
        raise ValueError(
            f"{operation}: backbone must take images and return one feature map, got "
            f"{counts[0]} inputs and {counts[1]} outputs"
        )
    return backbone.inputs[0], backbone.outputs[0]


@dataclasses.dataclass
class _Site:
    """A layer of a network, where it is, and the maps that it reads."""

    layer: Any
    path: str
    stride: Stride | None = None  # of what it reads; None: not a map. The coarsest of all calls.
    makes: Stride | None = None  # of what it returns
    readers: set[int] = dataclasses.field(default_factory=set)  # keys of sites that read from it

    @property
    def key(self) -> int:
        return id(self.layer)


class _Network:
    """All layers of a model and its nested models, with the strides of the maps they read."""

    def __init__(self, model: Any) -> None:
        self.sites: dict[int, _Site] = {}
        calls, self.outputs = walk_strides(model)
        makers: dict[int, _Site] = {}
        for strided in calls:
            call = strided.call
            site = self.sites.setdefault(id(call.layer), _Site(call.layer, call.path))
            coarsest = max(filter(None, strided.read), default=None, key=math.prod)
            if coarsest and (not site.stride or math.prod(coarsest) > math.prod(site.stride)):
                site.stride, site.makes = coarsest, strided.made[0]
            for tensor in call.inputs:
                if id(tensor) in makers:
                    makers[id(tensor)].readers.add(site.key)
            makers |= dict.fromkeys(map(id, call.outputs), site)

    def choose(self, layers: Layers) -> list[_Site]:
        """Returns the sites that the argument of `deformify` names."""
        candidates = [s for s in self.sites.values() if isinstance(s.layer, _CONVOLUTIONS)]
        if isinstance(layers, str) and layers == "conv5":
            chosen = [s for s in self._last_stage() if _problem(s.layer) is None]
            rule = "is a plain convolution with a kernel larger than 1x1 on the coarsest maps"
        elif isinstance(layers, (str, re.Pattern)):
            try:
                pattern = re.compile(layers)
            except re.error as error:
                raise ValueError(
                    f"deformify: layers must be a regular expression, got {layers!r}: {error}"
                ) from error
            chosen = [
                s
                for s in candidates
                if pattern.fullmatch(s.path) or pattern.fullmatch(s.layer.name)
            ]
            rule = f"has a name that matches {pattern.pattern!r}"
        elif callable(layers):
            chosen = [s for s in candidates if layers(s.layer)]
            rule = "satisfies the function given"
        else:
            if not isinstance(layers, Iterable):
                raise TypeError(
                    "deformify: layers must be a string, a pattern, a list of names, a function "
                    f"or None, got {layers!r}"
                )
            chosen = [site for name in layers for site in self._named(name)]
            rule = "is named"
        if not chosen:
            names = ", ".join(s.path for s in candidates) or "none"
            raise ValueError(
                f"deformify: layers: no convolution {rule}; there are: {names}{self._hidden()}"
            )
        for site in chosen:
            problem = _problem(site.layer)
            if problem:
                raise ValueError(f"deformify: layer {site.path!r} cannot be replaced: {problem}")
        return chosen

    def dilation(self) -> dict[int, dict[str, Any]]:
        """Returns the arguments to change, by layer, for the last stage without its stride."""
        last = self._last_stage()
        stride = last[0].stride if last else None
        makers = [
            s
            for s in self.sites.values()
            if s.stride is not None and s.makes == stride and s.stride != stride
        ]
        if not makers or stride is None:
            raise ValueError(
                "deformify: dilate_last_stage: the network makes no map coarser than its input, "
                "so that there is no stride to remove"
            )
        factors = set()
        for maker in makers:
            if not isinstance(maker.layer, (*_CONVOLUTIONS, *_POOLS)):
                raise ValueError(
                    f"deformify: dilate_last_stage: the stride of layer {maker.path!r} "
                    f"({type(maker.layer).__name__}) cannot be removed, only those of 2D "
                    "convolutions and pools can; build the network with another stride there"
                )
            factors.add(tuple(maker.layer.strides))
        if len(factors) > 1:
            raise ValueError(
                "deformify: dilate_last_stage: the last stage must begin with one stride, got "
                + ", ".join(f"{m.path}: {tuple(m.layer.strides)}" for m in makers)
            )
        (factor,) = factors

        changes: dict[int, dict[str, Any]] = {}
        for maker in makers:
            layer = maker.layer
            changes[maker.key] = {"strides": (1, 1)}
            sizes = _kernel_size(layer)
            if (
                layer.padding == "valid"
                and max(sizes) > 1
                and all(size <= step for size, step in zip(sizes, factor, strict=True))
            ):  # Patches side by side: what the last ones lack is padded after the map.
                changes[maker.key]["padding"] = "same"
        for site in self.sites.values():
            layer = site.layer
            if isinstance(layer, _CONVOLUTIONS) and site.stride == stride:
                if max(_kernel_size(layer)) == 1:
                    continue
                rates = tuple(rate * f for rate, f in zip(layer.dilation_rate, factor, strict=True))
                changes.setdefault(site.key, {})["dilation_rate"] = rates
        for site in self.sites.values():
            if isinstance(site.layer, tf.keras.layers.ZeroPadding2D):
                change = self._padding(site, changes, factor)
                if change:
                    changes[site.key] = {"padding": change}
        return changes

    def _padding(
        self, site: _Site, changes: dict[int, dict[str, Any]], factor: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...] | None:
        """The zeros of a padding layer before unpadded layers that `changes` changes.

        As many that the map keeps its size, and those before the map as far from it in samples as
        they were.
        """
        readers = [self.sites[key] for key in site.readers]
        readers = [r for r in readers if r.key in changes and r.layer.padding == "valid"]
        if not readers:
            return None
        extents, grows = set(), set()
        for reader in readers:
            change = changes[reader.key]
            rates = change.get("dilation_rate", getattr(reader.layer, "dilation_rate", (1, 1)))
            extents.add(
                tuple(
                    (size - 1) * rate
                    for size, rate in zip(_kernel_size(reader.layer), rates, strict=True)
                )
            )
            grows.add("dilation_rate" in change)
        if len(extents) > 1 or len(grows) > 1 or len(readers) < len(site.readers):
            raise ValueError(
                f"deformify: dilate_last_stage: padding layer {site.path!r} is read by layers that "
                "need different padding; give each of them a padding layer of its own"
            )
        (extent,), (is_dilated,) = extents, grows
        before = [
            pads[0] * (step if is_dilated else 1)
            for pads, step in zip(site.layer.padding, factor, strict=True)
        ]
        return tuple(
            (start, max(total - start, 0)) for start, total in zip(before, extent, strict=True)
        )

    def _last_stage(self) -> list[_Site]:
        """The convolutions with kernels larger than 1x1 that read the coarsest maps."""
        spatial = [
            s
            for s in self.sites.values()
            if isinstance(s.layer, _CONVOLUTIONS)
            and s.stride is not None
            and max(_kernel_size(s.layer)) > 1
        ]
        coarsest = max((math.prod(s.stride) for s in spatial if s.stride), default=0.0)
        return [s for s in spatial if s.stride and math.prod(s.stride) == coarsest]

    def _named(self, name: str) -> list[_Site]:
        found = [s for s in self.sites.values() if name in (s.path, s.layer.name)]
        if found:
            return found
        names = [s.path for s in self.sites.values() if isinstance(s.layer, _CONVOLUTIONS)]
        similar = difflib.get_close_matches(str(name), names)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"deformify: layers: there is no layer {name!r}{hint}{self._hidden()}")

    def _hidden(self) -> str:
        """Says which layers hold convolutions that cannot be reached."""
        holders = [
            f"{site.path} ({type(site.layer).__name__})"
            for site in self.sites.values()
            if not isinstance(site.layer, _CONVOLUTIONS)
            and isinstance(site.layer, tf.keras.layers.Layer)
            and any(isinstance(inner, _KINDS) for inner in sublayers(site.layer))
        ]
        if not holders:
            return ""
        return (
            f"; convolutions inside of custom layers cannot be reached: {', '.join(holders)}; "
            "replace these where they are made, see tf_deformable.models.deformable_layer"
        )


class _Copier:
    """Copies models layer by layer; what is copied once is found again (layers may be shared)."""

    def __init__(
        self, chosen: set[int], changes: dict[int, dict[str, Any]], arguments: dict[str, Any]
    ) -> None:
        self._chosen = chosen
        self._changes = changes
        self._arguments = arguments
        self._copies: dict[int, tuple[Any, Any]] = {}  # outer models before what is in them

    def copy_model(self, model: Any) -> Any:
        """Returns a copy with new weights."""
        if isinstance(model, tf.keras.Sequential):
            layers = [self._copy(layer) for layer in model.layers]
            shape, dtype = tuple(model.inputs[0].shape), model.inputs[0].dtype
            name = model.inputs[0].name.split(":")[0]
            inputs = tf.keras.Input(batch_shape=shape, dtype=dtype, name=name)
            return type(model)([inputs, *layers], name=model.name)
        original = model
        if IS_KERAS_3:  # Keras 3 would compile the copy, and fail on a loss that it cannot load.
            original = tf.keras.Model(model.input, model.output, name=model.name)
        copy = tf.keras.models.clone_model(original, clone_function=self._copy)
        if type(copy) is not type(model):
            copy = type(model)(copy.input, copy.output, name=model.name)
        return copy

    def copy_weights(self) -> None:
        """Gives the copies the weights and `trainable` flags of what they are copies of."""
        for old, new in self._copies.values():
            if is_graph(old):
                new.trainable = old.trainable
                continue
            if id(old) in self._chosen:
                _copy_convolution(old, new)
                continue
            if not isinstance(old, tf.keras.layers.Layer):  # an operation without weights
                continue
            for one, other in zip(sublayers(old), sublayers(new), strict=True):
                other.trainable = one.trainable
            try:
                new.set_weights(old.get_weights())
            except ValueError as error:
                if not self._changes:
                    raise
                raise ValueError(
                    f"deformify: dilate_last_stage: layer {old.name!r} is made for feature maps of "
                    "another size; use the network without its classifier (include_top=False): "
                    f"{error}"
                ) from error
            if hasattr(new, "finalize_state"):  # Normalization computes with copies of its weights.
                new.finalize_state()

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            if is_graph(layer):
                self._copies[id(layer)] = (layer, None)  # its place is before its layers'
                new = self.copy_model(layer)
            elif id(layer) in self._chosen:
                change = self._changes.get(id(layer), {})
                new = _deformable(layer, change, self._arguments)
            else:
                new = self._copy_layer(layer)
            self._copies[id(layer)] = (layer, new)
        return self._copies[id(layer)][1]

    def _copy_layer(self, layer: Any) -> Any:
        if IS_KERAS_3 and isinstance(layer, tf.keras.layers.Lambda):  # It loads no functions.
            return tf.keras.layers.Lambda(
                layer.function,
                output_shape=layer._output_shape,
                mask=layer.mask,
                arguments=layer.arguments,
                name=layer.name,
                dtype=layer.get_config()["dtype"],
            )
        return type(layer).from_config({**layer.get_config(), **self._changes.get(id(layer), {})})


def _check(model: Any) -> None:
    if not isinstance(model, tf.keras.Model):
        raise TypeError(
            f"deformify: model must be a Keras model, got {type(model).__module__}."
            f"{type(model).__name__}"
        )
    kind = type(model).__name__
    if not is_graph(model):
        if isinstance(model, tf.keras.Sequential):
            raise ValueError(
                f"deformify: model {model.name!r} is not built: give it an Input, or call it once"
            )
        raise ValueError(
            f"deformify: model {model.name!r} is subclassed ({kind}), and what its call does cannot"
            " be rewritten: make it functional, or replace its convolutions in its constructor, "
            "see tf_deformable.models.deformable_layer"
        )
    plain = (tf.keras.Sequential, type(tf.keras.Model(model.inputs, model.outputs)), tf.keras.Model)
    if type(model) not in plain and type(model).__init__ not in [c.__init__ for c in plain]:
        raise ValueError(
            f"deformify: model {model.name!r} is a {kind}, whose constructor is its own: pass the "
            "functional model in it, tf.keras.Model(model.inputs, model.outputs)"
        )
    for layer in model.layers:
        if is_graph(layer):
            _check(layer)


def _check_arguments(operation: str, arguments: dict[str, Any]) -> None:
    for name in arguments:
        if name in _KEPT_ARGUMENTS:
            raise TypeError(
                f"{operation}: {name} is what the convolution has, and stays; got {name}="
                f"{arguments[name]!r}"
            )
        if name not in _LAYER_ARGUMENTS:
            similar = difflib.get_close_matches(name, _LAYER_ARGUMENTS)
            hint = f"; similar names: {', '.join(similar)}" if similar else ""
            raise TypeError(f"{operation}: DeformableConv2D has no argument {name!r}{hint}")


def _problem(layer: Any) -> str | None:
    """Returns why a layer cannot be replaced, None if it can."""
    kind = type(layer).__name__
    if isinstance(layer, DeformableConv2D):
        return "it is deformable already"
    if type(layer) in _KINDS:
        return None
    if isinstance(layer, tf.keras.layers.Conv2DTranspose):
        return (
            "it is a Conv2DTranspose, for which there is no deformable operator; "
            "UpSampling2D and a Conv2D, which can be replaced, do the same work"
        )
    if isinstance(layer, _KINDS):
        return (
            f"it is a {kind}, which may compute something else than the layer of Keras that it is "
            "derived from; use that one"
        )
    return f"it is a {kind}, not a Conv2D, DepthwiseConv2D or SeparableConv2D"


def _kernel_size(layer: Any) -> tuple[int, int]:
    size = layer.pool_size if isinstance(layer, _POOLS) else layer.kernel_size
    return size[0], size[1]


def _kernel(layer: Any) -> Any:
    """The weights of a convolution's taps; Keras 3 names those of a DepthwiseConv2D otherwise."""
    return layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel


def _channels(layer: Any) -> int:
    """The number of channels that a built convolution reads."""
    groups = layer.groups if type(layer) is tf.keras.layers.Conv2D else 1
    return int(_kernel(layer).shape[2]) * groups


def _deformable(layer: Any, change: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """Returns an unbuilt deformable layer for a convolution."""
    config = {**layer.get_config(), **change}
    common = {name: config[name] for name in _COMMON_ARGUMENTS if name in config}
    if type(layer) is tf.keras.layers.Conv2D:
        return _DeformableConv2D.from_config(
            {
                **common,
                "filters": layer.filters,
                "groups": layer.groups,
                **{f"kernel_{name}": config[f"kernel_{name}"] for name in _KERNEL_ARGUMENTS},
                **arguments,
            }
        )
    channels = int(_kernel(layer).shape[2])
    depthwise = {
        **common,
        "filters": channels * layer.depth_multiplier,
        "groups": channels,
        **{f"kernel_{name}": config[f"depthwise_{name}"] for name in _KERNEL_ARGUMENTS},
        **arguments,
    }
    if type(layer) is tf.keras.layers.DepthwiseConv2D:
        return _DeformableConv2D.from_config(depthwise)
    neutral = {"activation": None, "use_bias": False, "activity_regularizer": None}
    pointwise = {
        **common,
        "name": f"{layer.name}_pointwise",
        "filters": layer.filters,
        **{"kernel_size": (1, 1), "strides": (1, 1), "dilation_rate": (1, 1)},
        **{f"kernel_{name}": config[f"pointwise_{name}"] for name in _KERNEL_ARGUMENTS},
    }
    return tf.keras.Sequential(
        [
            _DeformableConv2D.from_config(
                {**depthwise, **neutral, "name": f"{layer.name}_depthwise"}
            ),
            tf.keras.layers.Conv2D.from_config(pointwise),
        ],
        name=layer.name,
    )


def _copy_convolution(old: Any, new: Any) -> None:
    """Copies weights and the `trainable` flag of a convolution into its deformable one."""
    new.trainable = old.trainable
    if type(old) is tf.keras.layers.SeparableConv2D:
        depthwise, with_bias = new.layers
        with_bias.kernel.assign(tf.convert_to_tensor(old.pointwise_kernel))
    else:
        depthwise = with_bias = new
    kernel = tf.convert_to_tensor(_kernel(old))
    if type(old) is not tf.keras.layers.Conv2D:  # [kh, kw, C, multiplier]: C groups of one channel
        kernel = tf.reshape(kernel, [*kernel.shape[:2], 1, -1])
    depthwise.kernel.assign(kernel)
    if old.use_bias:
        with_bias.bias.assign(tf.convert_to_tensor(old.bias))


def _compile_like(model: Any, copy: Any) -> None:
    """Compiles a copy as the model is, if Keras can do that from the configuration."""
    if not is_compiled(model):
        return
    try:
        copy.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError):  # A loss or metric that is not registered.
        return
