"""The images of the experiments, and how detections on them are judged: those of the examples."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import numpy as np  # noqa: E402
from average_precision import DIGITS, Detections, mean_average_precision  # noqa: E402
from digit_scenes import CANVAS, Scenes, compose, pixel_labels  # noqa: E402
from digits import load  # noqa: E402
from runs import Budget  # noqa: E402

__all__ = [
    "CANVAS",
    "DIGITS",
    "Detections",
    "Scenes",
    "mean_average_precision",
    "pixel_labels",
    "scenes_of",
]


def scenes_of(seed: int, budget: Budget) -> tuple[Scenes, Scenes]:
    """Returns scenes for training, of this seed, and for the test, always the same."""
    splits = load(seed=seed, copies=3, max_scans=budget.max_scans)
    return (
        compose(splits.training, budget.scenes, np.random.default_rng(seed)),
        compose(splits.test, budget.test_scenes, np.random.default_rng(0)),
    )
