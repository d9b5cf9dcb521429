"""Names of a file against what a layer needs: all of both, or nothing is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable.convert.files import Array


def joined(*parts: str) -> str:
    """Joins the parts of a name in a state dict, without those that are empty."""
    return ".".join(part.strip(".") for part in parts if part.strip("."))


class Matching:
    """Takes what is needed from named arrays, and keeps account.

    What goes wrong is collected; `load` then raises one error that lists all of it, before
    it changes any variable.

    Args:
        operation: the public function, for messages.
        arrays: the weights by name.
        scope: what the names begin with that must all be used.
        ignore: a regular expression for names (all of what follows the scope) that may be left.
    """

    def __init__(
        self,
        operation: str,
        arrays: Mapping[str, Array],
        scope: Sequence[str],
        ignore: str | None = None,
    ) -> None:
        self._operation = operation
        self._arrays = arrays
        self._scope = tuple(scope)
        try:
            self._ignore = re.compile(ignore) if ignore is not None else None
        except re.error as error:
            raise ValueError(
                f"{operation}: ignore must be a regular expression, got {ignore!r}: {error}"
            ) from error
        self._missing: list[str] = []
        self._wrong: list[str] = []
        self._used: set[str] = set()
        self._found = False
        self._loads: list[tuple[Any, Array]] = []

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str, layout: str) -> tuple[int, ...] | None:
        """The shape of an array whose rank is that of the layout, None if there is no such array.

        Args:
            name: of the array.
            layout: as "[F,C,kh,kw]".
        """
        if name not in self._arrays:
            self._missing.append(name)
            return None
        self._found = True
        shape = self._arrays[name].shape
        if len(shape) != layout.count(",") + 1 or 0 in shape:
            self._used.add(name)
            self._wrong.append(f"{name} must have shape {layout}, got {_text(shape)}")
            return None
        return shape

    def take(self, name: str, shape: Sequence[int]) -> Array:
        """Returns an array of this shape; zeros if it is missing or another one."""
        if name not in self._arrays:
            self._missing.append(name)
            return np.zeros(shape, np.float32)
        self._found = True
        self._used.add(name)
        array = self._arrays[name]
        if array.shape != tuple(shape):
            self._wrong.append(f"{name} must have shape {_text(shape)}, got {_text(array.shape)}")
            return np.zeros(shape, np.float32)
        if array.dtype.kind in "biu":
            self._wrong.append(f"{name} must hold floating-point numbers, got {array.dtype}")
        return array

    def pass_over(self, name: str) -> None:
        """Counts an array as used, if it is there: it belongs to the layer, which needs it not."""
        self._used.add(name)

    def refuse(self, problem: str) -> None:
        """Adds to what is wrong."""
        self._wrong.append(problem)

    def plan(self, variable: Any, value: Array) -> None:
        """Says that a variable shall have this value when all is well."""
        self._loads.append((variable, value))

    def check(self, target: str) -> None:
        """Raises what has been found so far.

        Args:
            target: what the weights are for.

        Raises:
            ValueError: something is missing or left, or has another shape.
        """
        unused = [name for name in self._arrays if self._is_left(name)]
        if not (self._missing or self._wrong or unused):
            return
        listed = {"missing": list(dict.fromkeys(self._missing)), "wrong": self._wrong}
        listed["not used"] = unused
        lines = [f"{self._operation}: the weights are not those of {target}; nothing is loaded"]
        lines += [f"{title}: {', '.join(names)}" for title, names in listed.items() if names]
        if self._missing and not unused and not self._found:
            there = ", ".join(self._arrays) or "none"
            if len(there) > 1000:
                there = f"{there[:1000]}... ({len(self._arrays)} in all)"
            lines.append(f"the names there are: {there}")
        raise ValueError("\n  ".join(lines))

    def load(self, target: str) -> None:
        """Gives the variables their values, if nothing is wrong; raises like `check` if it is."""
        self.check(target)
        for variable, value in self._loads:
            assert math.prod(variable.shape) == value.size
            variable.assign(tf.cast(value, variable.dtype))

    def _is_left(self, name: str) -> bool:
        if name in self._used:
            return False
        begins = [start for start in self._scope if name.startswith(start)]
        if not begins:
            return False
        rest = name[len(max(begins, key=len)) :]
        return self._ignore is None or self._ignore.fullmatch(rest) is None


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
