"""The Python code in the documents runs as it stands, from top to bottom."""

import gc
import importlib.util
import re
from pathlib import Path

import pytest
import tensorflow as tf

from tests import litert

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "cc/kernels/README.md")
)
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
# "py" is Python that does not run as it stands: it needs files or machines of the reader's.
LANGUAGES = {"python", "py", "sh", "text", "c"}


def code(document):
    """The blocks of Python in a document, from top to bottom."""
    blocks = _FENCE.findall((ROOT / document).read_text())
    assert {language for language, _ in blocks} <= LANGUAGES
    return [block for language, block in blocks if language == "python"]


DOCUMENTS = [document for document in PAGES if code(document)]
# Blocks that import one of these are left out where it is not installed.
OPTIONAL = ("torch", "torchvision", "jax")
OPTIONAL_PACKAGES = {"docs/export.md": ("onnx", "tf2onnx", "onnxruntime")}


@pytest.fixture
def forgets():
    """Frees the models of a page before the next one: functions on it refer to themselves."""
    yield
    tf.keras.backend.clear_session()
    gc.collect()


@litert.ignore_deprecation
@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_runs(document, tmp_path, monkeypatch, forgets):
    for package in OPTIONAL_PACKAGES.get(document, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    tf.keras.utils.set_random_seed(0)
    names = {"__name__": "document"}
    for block in code(document):
        imported = [name for name in OPTIONAL if re.search(rf"^import {name}$", block, re.M)]
        if any(importlib.util.find_spec(name) is None for name in imported):
            continue
        exec(compile(block, document, "exec"), names)


def test_the_pages_that_teach_have_code():
    taught = {"analysis", "conventions", "detector", "first_layer", "roi_conventions"}
    taught |= {"roi_pooling", "segmentation", "serving", "surgery", "weights", "xla"}
    assert {"README.md", *(f"docs/{name}.md" for name in taught)} <= set(DOCUMENTS)


def test_every_block_is_found():
    for page in PAGES:
        assert not re.search(r"^[ \t>]+```|^~~~", (ROOT / page).read_text(), re.M), page
