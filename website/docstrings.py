"""How the docstrings of the package become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Griffe knows the plural alone.
_EXAMPLE = re.compile(r"^Example:$", re.M)
# Sections of the layers whose entries look like arguments, which Griffe takes for running text.
_ENTRIES = re.compile(
    r"^(?P<title>(?:Input shape|Weights|Call arguments):)\n(?P<body>(?: {4}.*\n?|\n)+)", re.M
)
_ENTRY = re.compile(r"^(?P<indent> {4,})(?P<names>\w+(?:, \w+)*): ", re.M)


class Docstrings(griffe.Extension):
    """Rewrites what Griffe does not understand."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called with every object that may have a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_griffe_reads(obj.docstring.value)


def as_griffe_reads(docstring: str) -> str:
    """Returns a docstring in which examples and the entries of all sections are recognised."""
    docstring = _EXAMPLE.sub("Examples:", docstring)
    return _ENTRIES.sub(
        lambda section: section["title"] + "\n" + _as_list(section["body"]), docstring
    )


def _as_list(body: str) -> str:
    """Returns the body of a section with its entries as items of a Markdown list."""
    lines: list[str] = []
    for line in body.splitlines():
        entry = _ENTRY.match(line)
        if entry is None:
            lines.append(line)
            continue
        if lines and lines[-1].strip() and not _is_part_of_list(lines):
            lines.append("")  # A list begins after an empty line.
        names = ", ".join(f"`{name}`" for name in entry["names"].split(", "))
        lines.append(f"{entry['indent']}- {names}: {line[entry.end() :]}")
    return "\n".join(lines) + "\n"


def _is_part_of_list(lines: list[str]) -> bool:
    """Returns whether the last line belongs to an item."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if line.lstrip().startswith("- "):
            return True
    return False
