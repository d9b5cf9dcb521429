"""Detections of a model in image files, and how good they are while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.coco_file import Category, CocoData
from recipes.detection_input import Size, image_batches, to_original
from recipes.evaluation import evaluate, precision_at, results_of
from recipes.image_files import decode
from recipes.pictures import color_of, draw_boxes

TRUTH_COLOR = (255, 255, 255)
SHOWN = ("AP", "AP50", "AP75", "AR100")  # of COCO's numbers, after every epoch


def detect(
    model: Any, paths: Sequence[Path], sizes: Sequence[Size], target: Size, batch: int
) -> list[dict[str, Any]]:
    """Returns what a detector finds in each file, boxes in pixels of the file's image.

    Args:
        model: the detector.
        paths: image files.
        sizes: height and width of each of them.
        target: size of the images that the model gets.
        batch: number of images at a time.
    """
    found = model.predict(image_batches(paths, sizes, target, batch), verbose=0)
    rows = [{name: value[row] for name, value in found.items()} for row in range(len(paths))]
    for row, size in zip(rows, sizes, strict=True):
        row["boxes"] = to_original(row["boxes"], size, target)
    return rows


def draw_detections(
    path: Path, found: dict[str, Any], categories: Sequence[Category], threshold: float
) -> Any:
    """Returns the image of a file with the detections of at least a score, `[H, W, 3]`, uint8."""
    rows = [row for row in range(int(found["counts"])) if found["scores"][row] >= threshold]
    classes = [int(found["classes"][row]) for row in rows]
    texts = [
        f"{categories[label].name} {found['scores'][row]:.2f}"
        for row, label in zip(rows, classes, strict=True)
    ]
    image = decode(path.read_bytes())
    return draw_boxes(image, found["boxes"][rows], texts, [color_of(label) for label in classes])


class CocoEvaluation(tf.keras.callbacks.Callback):
    """Puts COCO's numbers into the logs, as `val_AP` and so on, after every epoch.

    Args:
        data: what to evaluate on.
        size: of the images that the model gets.
        batch: number of images at a time.
        every: after how many epochs, and after the last one.
    """

    def __init__(self, data: CocoData, size: Size, batch: int, every: int = 1) -> None:
        super().__init__()
        self.data, self.size, self.batch, self.every = data, size, batch, every
        self._truth = data.ground_truth()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Evaluates."""
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        numbers = evaluate(self._truth, self.results(self.model))
        if logs is not None:
            logs.update({f"val_{name}": numbers[name] for name in SHOWN})
        shown = ", ".join(f"{name} {numbers[name]:.3f}" for name in SHOWN)
        print(f"Epoch {epoch + 1}: {shown} on {len(self.data.pictures)} images")

    def results(self, model: Any) -> list[dict[str, Any]]:
        """Returns what a model finds, as COCO's results."""
        pictures, ids = self.data.pictures, [category.id for category in self.data.categories]
        paths, sizes = [p.path for p in pictures], [p.size for p in pictures]
        every = detect(model, paths, sizes, self.size, self.batch)
        return [
            result
            for picture, found in zip(pictures, every, strict=True)
            for result in results_of(picture.id, found, ids)
        ]

    def report(self, model: Any) -> str:
        """Returns COCO's numbers and the average precision of each category, as a table."""
        results = self.results(model)
        numbers = evaluate(self._truth, results)
        averages = precision_at(self._truth, results, 0.5)
        names = {category.id: category.name for category in self.data.categories}
        width = max(map(len, [*names.values(), "AP_medium"]))
        lines = [f"{name:<{width}}{value:>8.3f}" for name, value in numbers.items() if value >= 0]
        lines.append("AP50 of each category")
        lines += [f"{names[i]:<{width}}{value:>8.3f}" for i, value in averages.items()]
        return "\n".join(lines)

    def draw(self, model: Any, count: int = 4, threshold: float = 0.5) -> dict[str, Any]:
        """Returns pictures of the first images that have objects: what is there in white."""
        chosen = [picture for picture in self.data.pictures if len(picture.labels)][:count]
        paths, sizes = [p.path for p in chosen], [p.size for p in chosen]
        pictures = {}
        for number, (picture, found) in enumerate(
            zip(chosen, detect(model, paths, sizes, self.size, self.batch), strict=True)
        ):
            image = draw_detections(picture.path, found, self.data.categories, threshold)
            blank, white = [""] * len(picture.boxes), [TRUTH_COLOR] * len(picture.boxes)
            pictures[f"detections/{number}"] = np.hstack(
                [image, draw_boxes(decode(picture.path.read_bytes()), picture.boxes, blank, white)]
            )
        return pictures
