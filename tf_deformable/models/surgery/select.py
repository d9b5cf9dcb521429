"""The layers of a network, and which of them are chosen."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable._keras import is_graph
from tf_deformable.graphs.rebuild import pyramid_of
from tf_deformable.graphs.strides import Stride, walk_strides
from tf_deformable.models.surgery.replace import (
    CONVOLUTIONS,
    holds_convolutions,
    kernel_size,
    problem_of,
)

Layers: TypeAlias = "str | re.Pattern[str] | Iterable[str] | Callable[[Any], bool]"


@dataclasses.dataclass
class Site:
    """A layer of a network, where it is, and the maps that it reads."""

    layer: Any
    path: str
    stride: Stride | None = None  # of what it reads; None: not a map. The coarsest of all calls.
    makes: Stride | None = None  # of what it returns
    readers: set[int] = dataclasses.field(default_factory=set)  # keys of sites that read from it

    @property
    def key(self) -> int:
        """What stands for the layer in sets and dictionaries."""
        return id(self.layer)


class Network:
    """All layers of a model and its nested models, with the strides of the maps they read."""

    def __init__(self, model: Any) -> None:
        self.sites: dict[int, Site] = {}
        calls, self.outputs = walk_strides(model)
        makers: dict[int, Site] = {}
        for strided in calls:
            call = strided.call
            site = self.sites.setdefault(id(call.layer), Site(call.layer, call.path))
            coarsest = max(filter(None, strided.read), default=None, key=math.prod)
            if coarsest and (not site.stride or math.prod(coarsest) > math.prod(site.stride)):
                site.stride, site.makes = coarsest, strided.made[0]
            for tensor in call.inputs:
                if id(tensor) in makers:
                    makers[id(tensor)].readers.add(site.key)
            makers |= dict.fromkeys(map(id, call.outputs), site)

    def choose(self, layers: Layers) -> list[Site]:
        """Returns the sites that the argument of `deformify` names."""
        candidates = [s for s in self.sites.values() if isinstance(s.layer, CONVOLUTIONS)]
        if isinstance(layers, str) and layers == "conv5":
            chosen = [s for s in self.last_stage() if problem_of(s.layer) is None]
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
            problem = problem_of(site.layer)
            if problem:
                raise ValueError(f"deformify: layer {site.path!r} cannot be replaced: {problem}")
        return chosen

    def last_stage(self) -> list[Site]:
        """Returns the convolutions with kernels above 1x1 that read the coarsest maps."""
        spatial = [
            s
            for s in self.sites.values()
            if isinstance(s.layer, CONVOLUTIONS)
            and s.stride is not None
            and max(kernel_size(s.layer)) > 1
        ]
        coarsest = max((math.prod(s.stride) for s in spatial if s.stride), default=0.0)
        return [s for s in spatial if s.stride and math.prod(s.stride) == coarsest]

    def _named(self, name: str) -> list[Site]:
        found = [s for s in self.sites.values() if name in (s.path, s.layer.name)]
        if found:
            return found
        names = [s.path for s in self.sites.values() if isinstance(s.layer, CONVOLUTIONS)]
        similar = difflib.get_close_matches(str(name), names)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"deformify: layers: there is no layer {name!r}{hint}{self._hidden()}")

    def _hidden(self) -> str:
        """Says which layers hold convolutions that cannot be reached."""
        holders = [
            f"{site.path} ({type(site.layer).__name__})"
            for site in self.sites.values()
            if not isinstance(site.layer, CONVOLUTIONS)
            and isinstance(site.layer, tf.keras.layers.Layer)
            and holds_convolutions(site.layer)
        ]
        if not holders:
            return ""
        return (
            f"; convolutions inside of custom layers cannot be reached: {', '.join(holders)}; "
            "replace these where they are made, see tf_deformable.models.deformable_layer"
        )


def output_stride(model: Any) -> float:
    """Returns how many pixels of the images a cell of a model's (only) output stands for.

    Raises:
        ValueError: as `output_strides`; there are several outputs.
    """
    strides = output_strides(model)
    if len(strides) != 1:
        raise ValueError(
            f"output_stride: model {model.name!r} must return one map, got strides {strides}"
        )
    return strides[0]


def output_strides(model: Any) -> tuple[float, ...]:
    """Returns how many pixels of the images a cell of each output of a model stands for.

    Args:
        model: functional or built Sequential model from images to feature maps.

    Raises:
        ValueError: the model is subclassed or not built, or an output is not a map, or not of the
            same stride in both directions.
    """
    check_model(model)
    strides = Network(model).outputs
    found = [each[0] for each in strides if each is not None and each[0] == each[1]]
    if len(found) != len(strides):
        raise ValueError(
            f"output_strides: model {model.name!r} must return maps [B,h,w,C] with the same "
            f"stride in both directions, got strides {strides} (None: no map, or the stride "
            "depends on the size of the images)"
        )
    return tuple(found)


def one_map(operation: str, backbone: Any, level: str | int | None = None) -> Any:
    """Returns a backbone, or, if it returns several maps, a model of its layers that returns one.

    Args:
        operation: name of the public function, for messages.
        backbone: functional or built Sequential model.
        level: which of the maps, None for the only or the coarsest one: the key of an output that
            is a dictionary, or of `pyramid_outputs`, or the name or index of an output.

    Raises:
        ValueError: the model is subclassed or not built, takes several inputs, or has no such map.
    """
    _check_backbone(operation, backbone)
    if level is None and len(backbone.outputs) == 1:
        return backbone
    chosen = _map_of(operation, backbone, level)
    return tf.keras.Model(backbone.inputs[0], chosen, name=backbone.name)


def several_maps(operation: str, backbone: Any, levels: Sequence[str | int]) -> Any:
    """Returns a model of a backbone's layers that returns some of its maps, the finest first.

    Args:
        operation: name of the public function, for messages.
        backbone: functional or built Sequential model.
        levels: two or more of what `level` of `one_map` may be, but None.

    Raises:
        ValueError: as `one_map`; there are less than two levels, or two of the same stride.
    """
    _check_backbone(operation, backbone)
    if isinstance(levels, (str, int)) or None in levels or len(levels) < 2:
        raise ValueError(
            f"{operation}: pyramid must be a list of two maps or more, by name or index, got "
            f"{levels!r}"
        )
    images = backbone.inputs[0]
    maps = [_map_of(operation, backbone, level) for level in levels]
    strides = output_strides(tf.keras.Model(images, maps))
    if len(set(strides)) < len(strides):
        texts = ", ".join(
            f"{level!r} ({stride:g})" for level, stride in zip(levels, strides, strict=True)
        )
        raise ValueError(f"{operation}: pyramid: maps must differ in their strides, got {texts}")
    order = sorted(range(len(maps)), key=lambda number: strides[number])
    return tf.keras.Model(images, [maps[number] for number in order], name=backbone.name)


def _check_backbone(operation: str, backbone: Any) -> None:
    if not is_graph(backbone):
        raise ValueError(
            f"{operation}: backbone must be a functional or a built Sequential model, got "
            f"{type(backbone).__name__} {getattr(backbone, 'name', '')!r}"
        )
    if len(backbone.inputs) != 1:
        raise ValueError(
            f"{operation}: backbone must take images alone, got {len(backbone.inputs)} inputs"
        )


def _map_of(operation: str, backbone: Any, level: str | int | None) -> Any:
    """Returns one of the maps that a backbone returns, the coarsest for None."""
    images, outputs = backbone.inputs[0], backbone.output
    by_name = outputs if isinstance(outputs, dict) else None
    own = by_name or dict(zip(backbone.output_names, backbone.outputs, strict=True))
    maps = {**pyramid_of(backbone), **own}
    chosen = maps.get(level) if isinstance(level, str) else None
    if isinstance(level, int) and -len(backbone.outputs) <= level < len(backbone.outputs):
        chosen = (list(by_name.values()) if by_name else backbone.outputs)[level]
    if chosen is not None:
        return chosen
    _, found = walk_strides(tf.keras.Model(images, list(maps.values())))
    strides = dict(zip(maps, found, strict=True))
    cells = {name: math.prod(strides[name] or ()) for name in own if strides[name]}
    if level is not None or not cells:
        texts = [
            f"{name!r} (stride {stride[0]:g})" if stride else f"{name!r} (no map)"
            for name, stride in strides.items()
        ]
        raise ValueError(
            f"{operation}: level must be one of the maps that the backbone returns, or the "
            f"index of an output, got {level!r}; there are {', '.join(texts)}"
        )
    return own[max(cells, key=lambda name: cells[name])]


def check_model(model: Any) -> None:
    """Refuses what `deformify` cannot copy.

    Raises:
        TypeError: it is not a Keras model.
        ValueError: it is subclassed or not built.
    """
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
    for layer in model.layers:
        if is_graph(layer):
            check_model(layer)
