"""Detections of digits, and how good they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from digit_scenes import Scenes
from digits import Array

from tf_deformable.models import boxes

DIGITS = 10  # classes


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
    """Area under the precision-recall curve, mean over classes (as PASCAL VOC since 2010).

    A detection is right if it overlaps a digit of its class by `threshold` at least, and no better
    detection does so.
    """
    ious = boxes.iou(found.boxes, scenes.boxes).numpy()
    averages = []
    for digit in range(DIGITS):
        records = []  # (score, right)
        for image in range(len(scenes)):
            free = scenes.labels[image] == digit
            for row in np.flatnonzero(found.classes[image, : found.counts[image]] == digit):
                overlaps = np.where(free, ious[image, row], 0.0)
                best = overlaps.argmax()
                right = overlaps[best] >= threshold
                free[best] &= not right
                records.append((found.scores[image, row], right))
        positives = np.sum(scenes.labels == digit)
        if positives == 0:
            continue
        order = np.argsort([-score for score, _ in records], kind="stable")
        right = np.cumsum(np.array([right for _, right in records], float)[order])
        recall = np.concatenate([[0.0], right / positives])
        precision = right / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        averages.append(np.sum(np.diff(recall) * envelope))
    return float(np.mean(averages))
