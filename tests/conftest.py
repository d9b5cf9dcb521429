"""What all tests share. It runs before TensorFlow is imported, which is when these are read."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
# A setting of the developer's shell does not decide what the tests run.
os.environ.pop("TF_DEFORMABLE_BACKEND", None)


@pytest.fixture(autouse=True)
def default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what a test chooses with `set_backend`."""
    monkeypatch.setattr("tf_deformable.config._process_backend", None)
