"""Average precision of detections, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Names of the twelve numbers of COCO, in the order of `COCOeval.stats`.
_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


def results_of(
    image_id: int, found: dict[str, Any], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns the detections in one image as COCO's results have them.

    Args:
        image_id: that of the image.
        found: `boxes` `[N, 4]`, `scores` and `classes` `[N]`, `counts`: what a detector returns
            for it, boxes in pixels of the image.
        category_ids: those of the classes.
    """
    results = []
    for row in range(int(found["counts"])):
        y1, x1, y2, x2 = (float(value) for value in found["boxes"][row])
        results.append(
            {
                "image_id": image_id,
                "category_id": int(category_ids[int(found["classes"][row])]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found["scores"][row]),
            }
        )
    return results


def evaluate(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns COCO's numbers, -1 where there is nothing to measure.

    Args:
        ground_truth: as a COCO file has it.
        results: detections, as `results_of` returns them.

    Returns:
        `AP` (mean over IoU 0.5 to 0.95), `AP50`, `AP75`, `AP_small`, ..., `AR100`, ...
    """
    run = _run(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        run.summarize()
    return dict(zip(_NAMES, map(float, run.stats), strict=True))


def precision_at(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], iou: float, recalls: int = 101
) -> dict[int, float]:
    """Returns the average precision of each category that has objects, by its id, at one IoU.

    Args:
        ground_truth: as a COCO file has it.
        results: detections, as `results_of` returns them.
        iou: the overlap from which a detection is right.
        recalls: at so many recalls from 0 to 1 the precision is averaged; COCO has 101.
    """
    run = _run(ground_truth, results, [iou], recalls)
    precisions = run.eval["precision"][0, :, :, 0, -1]  # [recalls, categories]
    averages = np.mean(precisions, axis=0)
    return {
        identity: float(average)
        for identity, average in zip(run.params.catIds, averages, strict=True)
        if average >= 0
    }


def _run(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    ious: Sequence[float] | None = None,
    recalls: int | None = None,
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # It tells what it does.
        truth = _index({**ground_truth, "info": {}})
        # `loadRes` refuses an empty list, which is what an untrained detector finds.
        found = (
            truth.loadRes(list(results)) if results else _index({**ground_truth, "annotations": []})
        )
        run = COCOeval(truth, found, "bbox")
        if ious is not None:
            run.params.iouThrs = np.array(ious)
        if recalls is not None:
            run.params.recThrs = np.linspace(0.0, 1.0, recalls)
        run.evaluate()
        run.accumulate()
    return run


def _index(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco
