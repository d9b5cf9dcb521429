"""The Python code in the documents runs as it stands, from top to bottom."""

import re
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "document", ["README.md", "docs/analysis.md", "docs/conventions.md", "docs/serving.md"]
)
def test_code_runs(document, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    tf.keras.utils.set_random_seed(0)
    names = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, document, "exec"), names)
