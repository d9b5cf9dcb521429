"""Variables of layers and what PyTorch's state dicts have for them, one table for both ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_deformable.convert.files import Array
from tf_deformable.convert.matching import Matching, joined


def _same(array: Array) -> Array:
    return array


class Parameter(NamedTuple):
    """A variable of a layer, and the array of a state dict that it is."""

    name: str  # without the prefix
    variable: Any
    shape: tuple[int, ...]  # of the array
    from_torch: Callable[[Array], Array] = _same
    to_torch: Callable[[Array], Array] = _same


Reorder = Callable[[Array], Array]


def linear(
    name: str, kernel: Any, bias: Any, reorder: Reorder = _same, reorder_back: Reorder = _same
) -> list[Parameter]:
    """A layer's kernel `[inputs, outputs]` and bias, if it has one, as PyTorch's `nn.Linear`.

    Args:
        name: of the module.
        kernel: the variable.
        bias: the variable, or None.
        reorder: from the order of the outputs, the last axis, in PyTorch to that in the layer.
        reorder_back: the inverse.
    """
    inputs, outputs = kernel.shape
    parameters = [
        Parameter(
            f"{name}.weight",
            kernel,
            (outputs, inputs),
            lambda array: reorder(array.T),
            lambda array: reorder_back(array).T,
        )
    ]
    if bias is not None:
        parameters.append(Parameter(f"{name}.bias", bias, (outputs,), reorder, reorder_back))
    return parameters


def load_parameters(
    op: str,
    target: str,
    parameters: Sequence[Parameter],
    arrays: Mapping[str, Array],
    prefix: str,
    *,
    ignore: str | None = None,
    not_needed: Sequence[str] = (),
) -> None:
    """Gives variables what a state dict has for them: all of it, or nothing.

    Args:
        op: the public function, for messages.
        target: what the weights are for, likewise.
        parameters: what is needed.
        arrays: the state dict.
        prefix: of the names; all that begin with it must be used.
        ignore: a regular expression for names under the prefix that may be left.
        not_needed: names under the prefix that belong to the module and may be there.

    Raises:
        ValueError: something is missing or left, or has another shape.
    """
    matching = Matching(op, arrays, [f"{prefix}." if prefix else ""], ignore)
    for name in not_needed:
        matching.pass_over(joined(prefix, name))
    for parameter in parameters:
        array = matching.take(joined(prefix, parameter.name), parameter.shape)
        matching.plan(parameter.variable, parameter.from_torch(array))
    matching.load(target)


def parameter_arrays(parameters: Sequence[Parameter], prefix: str) -> dict[str, Array]:
    """Returns the values of variables as a state dict."""
    return {
        joined(prefix, parameter.name): np.ascontiguousarray(
            parameter.to_torch(np.array(parameter.variable.numpy()))
        )
        for parameter in parameters
    }


def check_arguments(
    op: str, layer: str, given: Mapping[str, Any], known: Sequence[str], from_file: Sequence[str]
) -> None:
    """Raises TypeError for an argument that a layer does not have, or that a file decides."""
    for name in given:
        if name in from_file:
            raise TypeError(f"{op}: {name} is what the file says, and no argument")
        if name not in known:
            raise TypeError(f"{op}: {layer} has no argument {name!r}")


def arguments_of(layer_type: Any) -> list[str]:
    """Returns the names of a layer's arguments, with those that every layer takes."""
    names = inspect.signature(layer_type).parameters
    return [*(name for name in names if name != "kwargs"), "name", "dtype", "trainable"]


def described(layer: Any, names: Sequence[str]) -> str:
    """Returns a layer with the arguments that its weights depend on, for messages."""
    config = ", ".join(f"{name}={getattr(layer, name)}" for name in names)
    return f"{type(layer).__name__}({config})"
