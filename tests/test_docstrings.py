"""The examples in the docstrings of public names run as they stand, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable

MODULES = (
    *("analysis", "config", "convert", "export", "layers", "models", "models.boxes", "ops"),
    "reference",
)


def _examples() -> dict[str, doctest.DocTest]:
    """The examples of every public function and class, and of the methods of classes."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found: dict[str, doctest.DocTest] = {}
    for module in (tf_deformable, *(_module(name) for name in MODULES)):
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if not value.__module__.startswith("tf_deformable"):
                continue
            for test in finder.find(value, value.__qualname__, globs={}):
                if test.examples:
                    found[f"{value.__module__}.{test.name}"] = test
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"tf_deformable.{name}")


EXAMPLES = _examples()


@pytest.mark.parametrize("test", EXAMPLES.values(), ids=EXAMPLES)
def test_example(test: doctest.DocTest, tmp_path: Path) -> None:
    test.globs = {"np": np, "tf": tf, "tf_deformable": tf_deformable, "folder": tmp_path}
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=report.append).failed == 0, "".join(report)


def test_there_are_examples_of_what_most_users_call() -> None:
    names = {name.rpartition(".")[2] for name in EXAMPLES}
    assert names >= {
        *("DeformableConv2D", "DeformablePSRoIPool", "DeformableRoIPool", "PSRoIPool", "RoIPool"),
        *("DCNv3", "DCNv4", "MultiScaleDeformableAttention", "dcnv3", "dcnv4"),
        *("deformable_conv2d", "deformable_psroi_pool", "deformable_roi_pool"),
        *("compare", "deeplab", "deformify", "detector", "sampling_locations"),
    }
