"""COCO annotation files: read, checked, and turned into what a detector is trained on.

https://cocodataset.org/#format-data says what is in such a file. The rules of what is skipped and
what is refused are in docs/training.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.image_files import check_files, image_size
from recipes.problems import DataError, Problems

_LEAST_SIZE = 1e-3  # pixels; what is less of a box inside of its image is nothing


@dataclasses.dataclass(frozen=True)
class Category:
    """A class of objects: the id that it has in the file, and its name."""

    id: int
    name: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and the objects on it.

    Boxes are (y1, x1, y2, x2) in pixels: pixel i extends from i to i + 1.
    """

    id: int
    path: Path
    size: tuple[int, int]  # height, width
    boxes: NDArray[np.float32]  # [M, 4]; M may be 0
    labels: NDArray[np.int32]  # [M], places in the list of categories
    annotations: tuple[dict[str, Any], ...]  # for the evaluation: crowds too


@dataclasses.dataclass(frozen=True)
class CocoData:
    """What there is to train on, or to evaluate."""

    pictures: tuple[Picture, ...]
    categories: tuple[Category, ...]  # in the order of their ids, which may have gaps
    problems: Problems

    def __str__(self) -> str:
        objects = sum(len(picture.labels) for picture in self.pictures)
        empty = sum(not len(picture.labels) for picture in self.pictures)
        crowds = sum(bool(a["iscrowd"]) for p in self.pictures for a in p.annotations)
        text = (
            f"{len(self.pictures):,} images with {objects:,} objects of "
            f"{len(self.categories)} categories"
        )
        text += f"; {empty:,} images without any" if empty else ""
        text += f"; {crowds:,} crowds, not trained on, not held against it" if crowds else ""
        return text + (f"\nSkipped:\n{self.problems}" if self.problems.found else "")

    def ground_truth(self) -> dict[str, Any]:
        """Returns the data as a COCO file holds it, of what is in `pictures` alone."""
        return {
            "images": [
                {"id": p.id, "height": p.size[0], "width": p.size[1], "file_name": str(p.path)}
                for p in self.pictures
            ],
            "annotations": [dict(a) for picture in self.pictures for a in picture.annotations],
            "categories": [dataclasses.asdict(category) for category in self.categories],
        }


def read_coco(
    annotations: Path, folder: Path, categories: tuple[Category, ...] | None = None
) -> CocoData:
    """Reads a COCO file and decodes every image that it names.

    Args:
        annotations: the file.
        folder: where the images are that it names.
        categories: those of the training, for a file to evaluate on; None: the file's.

    Raises:
        DataError: nothing can be made of the file; the message says why.
    """
    content = _load(annotations)
    problems = Problems()
    own = _categories(annotations, content["categories"])
    if categories is None:
        categories = own
    elif missing := sorted({c.name for c in own} - {c.name for c in categories}):
        problems.add("categories that the training has not", ", ".join(missing))
    # By name: another file may give other ids to the same categories.
    places = {category.name: place for place, category in enumerate(categories)}
    labels = {category.id: places[category.name] for category in own if category.name in places}
    ids = [category.id for category in categories]

    records = _images(annotations, content["images"], folder, problems)
    objects: dict[Any, list[tuple[Any, int]]] = {}
    known = {category.id for category in own}
    every_id = {record["id"] for record in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            problems.add("annotations that are no objects", f"number {number}")
            continue
        name = annotation.get("id", f"number {number}")
        image, category = (_as_id(annotation.get(key)) for key in ("image_id", "category_id"))
        if image not in records:
            if image not in every_id:
                problems.add("annotations of images that are not in the file", name)
            continue  # Of an image that is skipped: that has been said.
        if category not in labels:
            if category not in known:
                problems.add("annotations of categories that are not in the file", name)
            continue
        objects.setdefault(image, []).append((annotation, labels[category]))

    pictures = []
    number = 0
    for identity, (path, size) in records.items():
        boxes, found, kept = [], [], []
        for annotation, label in objects.get(identity, ()):
            box = _box(annotation, size, problems)
            if box is None:
                continue
            number += 1
            y1, x1, y2, x2 = box
            is_crowd = bool(annotation.get("iscrowd", 0))
            area = annotation.get("area")
            is_area = isinstance(area, (int, float)) and math.isfinite(area) and area > 0
            kept.append(
                {
                    "id": number,  # those of the file may be missing, or there twice
                    "image_id": identity,
                    "category_id": ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area) if is_area else (x2 - x1) * (y2 - y1),
                    "iscrowd": int(is_crowd),
                }
            )
            if not is_crowd:
                boxes.append(box)
                found.append(label)
        pictures.append(
            Picture(
                id=identity,
                path=path,
                size=size,
                boxes=np.array(boxes, np.float32).reshape(-1, 4),
                labels=np.array(found, np.int32),
                annotations=tuple(kept),
            )
        )
    data = CocoData(tuple(pictures), categories, problems)
    if not any(len(picture.labels) for picture in pictures):
        raise DataError(
            f"{annotations}: there is no image with an object; what was skipped:\n{problems}"
        )
    return data


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of JSON or of the encoding
        raise DataError(f"{path}: is not JSON: {error}") from error
    names = ("images", "annotations", "categories")
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise DataError(
            f"{path}: is no COCO file of objects: it must have the lists {', '.join(names)}; "
            f"{', '.join(missing)} missing"
        )
    for name in names:
        if not isinstance(content[name], list):
            raise DataError(f"{path}: {name} must be a list, got {type(content[name]).__name__}")
    return content


def _categories(path: Path, records: list[Any]) -> tuple[Category, ...]:
    found: dict[int, Category] = {}
    for record in records:
        is_record = isinstance(record, dict) and _as_id(record.get("id")) is not None
        if not is_record or not isinstance(record.get("name"), str):
            raise DataError(
                f"{path}: a category must have an id, an integer, and a name, got {record}"
            )
        if record["id"] in found:
            raise DataError(f"{path}: two categories have the id {record['id']}")
        if record["name"] in {category.name for category in found.values()}:
            raise DataError(f"{path}: two categories are called {record['name']!r}")
        found[record["id"]] = Category(record["id"], record["name"])
    if not found:
        raise DataError(f"{path}: there are no categories")
    return tuple(found[identity] for identity in sorted(found))


def _images(
    path: Path, records: list[Any], folder: Path, problems: Problems
) -> dict[int, tuple[Path, tuple[int, int]]]:
    """Returns path and size of every image that can be read, by its id."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder of images")
    paths: dict[int, Path] = {}
    names: dict[int, str] = {}
    declared: dict[int, tuple[Any, Any]] = {}
    seen: set[int] = set()
    for record in records:
        is_record = isinstance(record, dict) and _as_id(record.get("id")) is not None
        if not is_record or not isinstance(record.get("file_name"), str):
            raise DataError(
                f"{path}: an image must have an id, an integer, and a file_name, got {record}"
            )
        identity, name = record["id"], record["file_name"]
        if identity in seen:
            raise DataError(f"{path}: two images have the id {identity}: {name} is the second")
        seen.add(identity)
        # By their names: a folder may well be one of links to images elsewhere.
        place = Path(os.path.abspath(folder / name))
        if not place.is_relative_to(os.path.abspath(folder)):
            problems.add("images outside of the folder", name)
            continue
        paths[identity], names[identity] = folder / name, name
        declared[identity] = record.get("height"), record.get("width")
    found = {}
    results = check_files(list(paths.values()), image_size)
    for identity, size in zip(paths, results, strict=True):
        name = names[identity]
        if isinstance(size, ValueError):
            problems.add("images that cannot be read", f"{name} ({size})")
        elif None not in declared[identity] and declared[identity] != size:
            height, width = declared[identity]
            problems.add(
                "images of another size than the file says",
                f"{name} ({size[0]}x{size[1]}, not {height!r}x{width!r})",
            )
        else:
            found[identity] = paths[identity], size
    return found


def _as_id(value: Any) -> int | None:
    """Returns an id, None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _box(
    annotation: dict[str, Any], size: tuple[int, int], problems: Problems
) -> tuple[float, float, float, float] | None:
    """Returns the part of an annotation's box that is in its image, None if there is none."""
    box = annotation.get("bbox")
    name = annotation.get("id")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        problems.add("annotations without a box", name)
        return None
    is_number = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in box]
    if not all(is_number) or not all(map(math.isfinite, box)):
        problems.add("boxes that are not four numbers", name)
        return None
    left, top, width, height = map(float, box)
    if width <= 0 or height <= 0:
        problems.add("boxes without area", name)
        return None
    y1, x1 = max(top, 0.0), max(left, 0.0)
    y2, x2 = min(top + height, float(size[0])), min(left + width, float(size[1]))
    if y2 - y1 < _LEAST_SIZE or x2 - x1 < _LEAST_SIZE:
        problems.add("boxes outside of their image", name)
        return None
    return y1, x1, y2, x2
