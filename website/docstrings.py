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
_PRODUCT = re.compile(r"(?<=\w)\*(?=\w)")
_ENTRY = re.compile(r"^(?P<indent> {4,})(?P<names>\w+(?:, \w+)*): ", re.M)


class Docstrings(griffe.Extension):
    """Rewrites what Griffe does not understand."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called with every object that may have a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_griffe_reads(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Is called with the package, once all of it is read."""
        shown: dict[str, griffe.Object | griffe.Alias] = {}
        for module in list(pkg.modules.values()):
            shown.update(show_functions_in_place_of_modules(module))
        for name in map(str, pkg.exports or ()):
            member = pkg.members.get(name)
            if isinstance(member, griffe.Alias) and member.target_path in shown:
                _put(pkg, name, shown[member.target_path])


def show_functions_in_place_of_modules(
    module: griffe.Module,
) -> dict[str, griffe.Object | griffe.Alias]:
    """Gives public functions the names that they share with the files they are from.

    `ops.dcnv3` is both, and Python has the function. Griffe has the module.

    Returns:
        The functions, by their paths before.
    """
    shown = {}
    for name in map(str, module.exports or ()):
        member = module.members.get(name)
        if isinstance(member, griffe.Module) and name in member.members:
            shown[member.members[name].path] = member.members[name]
            _put(module, name, member.members[name])
    return shown


def _put(module: griffe.Module, name: str, function: griffe.Object | griffe.Alias) -> None:
    """Makes `name` in the module the function."""
    module.members[name] = griffe.Alias(name, function, parent=module)
    function.aliases[f"{module.path}.{name}"] = module.members[name]


def as_griffe_reads(docstring: str) -> str:
    """Returns a docstring in which examples and the entries of all sections are recognised."""
    docstring = _EXAMPLE.sub("Examples:", docstring)
    docstring = "\n".join(map(_with_products, docstring.split("\n")))
    return _ENTRIES.sub(lambda found: f"{found['title']}\n{_as_list(found['body'])}", docstring)


def _with_products(line: str) -> str:
    """Returns a line in which the asterisks of kh*kw*2, unless they are code, are no emphasis."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = line.split("`")
    parts[::2] = [_PRODUCT.sub(r"\*", text) for text in parts[::2]]
    return "`".join(parts)


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
