"""No part of the package reaches into another's private names, nor into those of Keras.

What Keras does not document, and is called otherwise in each of the two, is in `_keras.py`.
"""

from __future__ import annotations

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tf_deformable"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_keras.py")
OF_NAMED_TUPLES = ("_asdict", "_fields", "_make", "_replace")  # documented, whatever their names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in OF_NAMED_TUPLES


def _is_own(value: ast.expr) -> bool:
    """Whether an expression is the object, or the class, that the code is a part of."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in ("super", "type")
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def _is_module(module: str, name: str) -> bool:
    path = PACKAGE.parent.joinpath(*module.split("."), name)
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_private_names_stay_where_they_are(path: pathlib.Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tf_deformable"):
            found += [
                f"line {node.lineno}: {alias.name} of {node.module}"
                for alias in node.names
                if _is_private(alias.name) and not _is_module(str(node.module), alias.name)
            ]
    assert not found
