"""The images of the experiments, and how detections on them are judged: those of the examples."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from average_precision import DIGITS, Detections, mean_average_precision  # noqa: E402
from digit_scenes import CANVAS, Scenes, compose, pixel_labels  # noqa: E402
from digits import load  # noqa: E402

__all__ = [
    "CANVAS",
    "DIGITS",
    "Detections",
    "Scenes",
    "compose",
    "load",
    "mean_average_precision",
    "pixel_labels",
]
