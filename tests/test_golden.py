"""Every golden vector has a row that says where it comes from, and the row is right."""

from __future__ import annotations

import fnmatch
import json
import pathlib
import re

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).with_name("golden")
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix not in (".md", ".py"))


def rows() -> list[list[str]]:
    """The cells of the table of provenance."""
    text = (FOLDER / "README.md").read_text()
    section = text.partition("## Where they come from\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def recorded_versions(path: pathlib.Path) -> set[str]:
    """What a file itself says of what computed it, as "torch 2.13.0"."""
    if path.suffix != ".npz":
        return set()
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
    if "versions" in meta:
        return {f"{name} {version.partition('+')[0]}" for name, version in meta["versions"].items()}
    said = f"{meta['framework']}, {meta.get('version', '')}"
    return set(re.findall(r"(?:torchvision|torch|mxnet|transformers) \d[\d.]*\d", said)) | set(
        re.findall(r"InternImage [0-9a-f]{7}", said)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_provenance_is_told(path: pathlib.Path) -> None:
    own = [row for row in rows() if fnmatch.fnmatch(path.name, row[0].strip("`"))]
    assert len(own) == 1, f"{path.name} has {len(own)} rows in tests/golden/README.md"
    _, computed_by, licence, recorded_by = own[0]
    assert re.fullmatch(r"(BSD-3-Clause|Apache-2\.0|MIT)(, Apache-2\.0)?", licence)
    assert recorded_by
    versions = recorded_versions(path)
    assert versions or path.suffix != ".npz"
    missing = {version for version in versions if version not in computed_by}
    assert not missing, f"{path.name} is of {missing}, its row says: {computed_by}"


def test_no_row_is_left_without_files() -> None:
    for row in rows():
        assert fnmatch.filter([path.name for path in FILES], row[0].strip("`")), row[0]
