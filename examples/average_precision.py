"""Detections of digits, and how good they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from digit_scenes import CANVAS, Scenes
from digits import Array
from recipes.evaluation import precision_at, results_of

DIGITS = 10  # classes
_RECALLS = 1001  # COCO has 101; at so many, the mean is the area under the curve


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detected boxes of N images, best first; rows beyond `counts` are empty."""

    boxes: Array  # [N, K, 4]
    scores: Array  # [N, K]
    classes: Array  # [N, K]
    counts: np.ndarray  # [N]

    @classmethod
    def of(cls, found: dict[str, Any]) -> Detections:
        """Takes over what `tf_deformable.models.boxes.select` and detectors return."""
        return cls(**{name: np.asarray(value) for name, value in found.items()})


def mean_average_precision(found: Detections, scenes: Scenes, threshold: float) -> float:
    """Area under the precision-recall curve, mean over classes, by pycocotools.

    A detection is right if it overlaps a digit of its class by `threshold` at least, and no better
    detection does so.
    """
    results = [
        result
        for image in range(len(scenes))
        for result in results_of(
            image, {name: rows[image] for name, rows in vars(found).items()}, range(DIGITS)
        )
    ]
    averages = precision_at(ground_truth(scenes), results, threshold, _RECALLS)
    return float(np.mean(list(averages.values())))


def ground_truth(scenes: Scenes) -> dict[str, Any]:
    """Returns scenes as a COCO file has them."""
    annotations = []
    for image, row in np.argwhere(scenes.present):
        y1, x1, y2, x2 = (float(value) for value in scenes.boxes[image, row])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": int(image),
                "category_id": int(scenes.labels[image, row]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": i, "height": CANVAS, "width": CANVAS} for i in range(len(scenes))],
        "annotations": annotations,
        "categories": [{"id": digit, "name": str(digit)} for digit in range(DIGITS)],
    }
