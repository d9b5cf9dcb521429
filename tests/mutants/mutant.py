"""What a mutant is, and how it gets into a source file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault that is put into one place of a source file.

    Attributes:
        context: text that the file has once; what the mutant replaces stands in it between « and ».
        mutated: what stands there instead. In C++ both are statements where the original ends with
            a semicolon, else expressions of one type.
        equivalent: why no test can tell the mutant from the original; empty if one can.
    """

    context: str
    mutated: str
    equivalent: str = ""

    @property
    def before(self) -> str:
        """What the file has."""
        return self.context.replace("«", "").replace("»", "")

    @property
    def original(self) -> str:
        """What is replaced."""
        return self.context.partition("«")[2].partition("»")[0]

    def span(self, source: str) -> tuple[int, int]:
        """Returns from where to where in the file the mutant replaces.

        Raises:
            ValueError: the file does not have the context, or more than once.
        """
        found = source.count(self.before)
        if found != 1 or self.context.count("«") != 1 or self.context.count("»") != 1:
            raise ValueError(f"the file has this {found} times, and not once: {self.before!r}")
        start = source.index(self.before) + self.context.index("«")
        return start, start + len(self.original)


@dataclasses.dataclass(frozen=True)
class File:
    """The mutants of a source file.

    Attributes:
        path: from the root of the source tree.
        tests: what kills them, quickest first: names of suites (suites.py).
        mutants: in any order; of two that overlap one is inside of the other.
        in_constants: whether constant expressions of C++ are among what is mutated.
    """

    path: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]
    in_constants: bool = False


def file(
    path: str,
    tests: Sequence[str],
    *mutants: tuple[str, str] | tuple[str, str, str],
    in_constants: bool = False,
) -> File:
    """Returns a `File` of (context, mutated) or (context, mutated, equivalent)."""
    return File(path, tuple(tests), tuple(Mutant(*each) for each in mutants), in_constants)


def mutated(source: str, mutant: Mutant) -> str:
    """Returns the source with the mutant in place of the original."""
    start, end = mutant.span(source)
    return source[:start] + mutant.mutated + source[end:]


def switched(source: str, mutants: Sequence[Mutant], is_on: Callable[[Mutant], str]) -> str:
    """Returns C++ that has all mutants, each behind a condition.

    Args:
        source: of one file.
        mutants: of that file.
        is_on: returns the C++ expression that is true where a mutant is to stand for the original.
    """
    spans = sorted(((*m.span(source), m) for m in mutants), key=lambda s: (s[0], -s[1]))

    def render(start: int, end: int) -> str:
        """The source from start to end with the mutants that come next and lie inside of it."""
        parts, at = [], start
        while spans and spans[0][0] < end:
            first, last, mutant = spans.pop(0)
            if last > end:
                raise ValueError(f"this overlaps with another mutant: {mutant.context!r}")
            parts.append(source[at:first])
            original = render(first, last)
            if source[first:last].rstrip().endswith(";"):
                parts.append(f"if ({is_on(mutant)}) {{ {mutant.mutated} }} else {{ {original} }}")
            else:
                parts.append(f"(({is_on(mutant)}) ? ({mutant.mutated}) : ({original}))")
            at = last
        parts.append(source[at:end])
        return "".join(parts)

    return render(0, len(source))
