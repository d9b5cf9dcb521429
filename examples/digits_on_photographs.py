"""Writes a small data set: handwritten digits on photographs, as COCO files and as masks.

    python examples/digits_on_photographs.py --output build/digits_on_photographs

The digits and the two photographs ship with scikit-learn. Images differ in size, half are JPEG and
half PNG; the ids of the categories have gaps, as those of COCO do. Beside each image lies a mask,
a PNG of one channel: 0 where there is no digit, else the digit plus one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from digit_scenes import INK, crop, near
from digits import Array, Digits, load
from PIL import Image
from sklearn.datasets import load_sample_images

SIDES = (72, 128)  # least and largest height and width of an image
MOST = 4  # digits of an image
QUALITY = 92  # of JPEG


def main() -> None:
    """Writes the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--training", type=int, default=400, help="images (default: 400)")
    parser.add_argument("--validation", type=int, default=80, help="images (default: 80)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.output, options.training, options.validation, options.seed)
    print(f"{options.output}: train.json, train/, train_masks/, val.json, val/, val_masks/")


def write(
    folder: Path, training: int, validation: int, seed: int = 0, max_scans: int | None = None
) -> None:
    """Writes images, masks and annotations of a training and a validation set.

    No scan of a digit is in both. Some images have no digit.

    Args:
        folder: where to.
        training: number of images.
        validation: number of images.
        seed: of everything.
        max_scans: see `digits.load`.
    """
    splits = load(seed=seed, copies=1, max_scans=max_scans)
    photographs = load_sample_images().images
    for name, digits, count in (
        ("train", splits.training, training),
        ("val", splits.validation, validation),
    ):
        rng = np.random.default_rng([seed, len(name)])
        images, annotations = [], []
        for part in ("", "_masks"):
            (folder / f"{name}{part}").mkdir(parents=True, exist_ok=True)
        for identity in range(1, count + 1):
            image, mask, boxes = compose(photographs, digits, rng)
            stem = f"{identity:05d}"
            file_name = stem + (".jpg", ".png")[identity % 2]
            Image.fromarray(image).save(folder / name / file_name, quality=QUALITY)
            Image.fromarray(mask).save(folder / f"{name}_masks" / f"{stem}.png")
            height, width = mask.shape
            images.append(
                {"id": identity, "file_name": file_name, "height": height, "width": width}
            )
            for digit, (top, left, bottom, right) in boxes:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": identity,
                        "category_id": category_id(digit),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (bottom - top) * (right - left),
                        "iscrowd": 0,
                    }
                )
        content: dict[str, Any] = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": category_id(digit), "name": str(digit)} for digit in range(10)],
        }
        (folder / f"{name}.json").write_text(json.dumps(content))


def category_id(digit: int) -> int:
    """Returns the id of a digit's category: there are gaps between them, as in COCO."""
    return 3 * digit + 1 + 20 * (digit > 5)


def compose(
    photographs: list[Any], digits: Digits, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """Returns an image `[H, W, 3]`, its mask `[H, W]`, and digits with boxes (y1, x1, y2, x2)."""
    photograph = photographs[rng.integers(len(photographs))]
    size = rng.integers(SIDES[0], SIDES[1] + 1, 2)
    corner = rng.integers(0, np.array(photograph.shape[:2]) - size)
    image = photograph[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    image = image[:, :: rng.choice([-1, 1])].astype(np.float32)
    mask = np.zeros(size, np.uint8)
    boxes: list[tuple[int, list[int]]] = []
    for _ in range(rng.integers(0, MOST + 1)):
        chosen = rng.integers(len(digits))
        ink: Array = crop(digits.images[chosen, :, :, 0])
        y, x = rng.integers(0, size - ink.shape + 1)
        box = np.array([y, x, y + ink.shape[0], x + ink.shape[1]])
        if any(near(box, np.array(other)) for _, other in boxes):
            continue
        place = (slice(y, box[2]), slice(x, box[3]))
        # Dark on what is bright and the other way round, in any colour.
        is_bright = image[place].mean() > 127
        color = rng.uniform(0, 80, 3) if is_bright else rng.uniform(175, 255, 3)
        image[place] += ink[..., np.newaxis] * (color - image[place])
        mask[place][ink > INK] = digits.labels[chosen] + 1
        boxes.append((int(digits.labels[chosen]), box.tolist()))
    return image.round().clip(0, 255).astype(np.uint8), mask, boxes


if __name__ == "__main__":
    main()
