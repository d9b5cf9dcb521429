"""The Python code in the documents runs as it stands, from top to bottom."""

import importlib.util
import re
from pathlib import Path

import pytest
import tensorflow as tf

from tests import litert

ROOT = Path(__file__).parents[2]


DOCUMENTS = [
    "README.md",
    "docs/analysis.md",
    "docs/attention.md",
    "docs/conventions.md",
    "docs/detector.md",
    "docs/distribution.md",
    "docs/export.md",
    "docs/gpu.md",
    "docs/modes.md",
    "docs/roi_pooling.md",
    "docs/serving.md",
    "docs/weights.md",
    "docs/xla.md",
]
# Blocks that import one of these are left out where it is not installed.
OPTIONAL = ("torch", "torchvision")


OPTIONAL_PACKAGES = {"docs/export.md": ("onnx", "tf2onnx", "onnxruntime")}


@litert.ignore_deprecation
@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_runs(document, tmp_path, monkeypatch):
    for package in OPTIONAL_PACKAGES.get(document, ()):
        pytest.importorskip(package)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    tf.keras.utils.set_random_seed(0)
    names = {"__name__": "document"}
    for block in blocks:
        imported = [name for name in OPTIONAL if re.search(rf"^import {name}$", block, re.M)]
        if any(importlib.util.find_spec(name) is None for name in imported):
            continue
        exec(compile(block, document, "exec"), names)
