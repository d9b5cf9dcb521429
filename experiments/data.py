"""The images of the experiments: those of the examples, digits.py and digit_scenes.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from digit_scenes import CANVAS, MOST, Scenes, compose, pixel_labels  # noqa: E402
from digits import Array, load  # noqa: E402

__all__ = ["CANVAS", "MOST", "Array", "Scenes", "compose", "load", "pixel_labels"]
