"""The Python code in the documents runs as it stands, from top to bottom."""

import re
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]


DOCUMENTS = [
    "README.md",
    "docs/analysis.md",
    "docs/conventions.md",
    "docs/detector.md",
    "docs/gpu.md",
    "docs/roi_pooling.md",
    "docs/serving.md",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_runs(document, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    tf.keras.utils.set_random_seed(0)
    names = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, document, "exec"), names)
