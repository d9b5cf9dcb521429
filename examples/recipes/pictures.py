"""Pictures of what a model found, drawn on the images in their own size, with Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def color_of(number: int) -> tuple[int, int, int]:
    """Returns the colour of a class: neighbours differ, and few of them look alike."""
    hue = (number * 0.61803398875) % 1.0  # the golden ratio spreads any number of hues
    value = (1.0, 0.8)[number // 8 % 2]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))  # type: ignore[return-value]


def draw_boxes(
    image: Any, boxes: Any, texts: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Returns a copy of an image with boxes on it, and a text at each of them.

    Args:
        image: `[H, W, 3]`, uint8.
        boxes: `[N, 4]`, (y1, x1, y2, x2) in pixels; the first ones are drawn on top.
        texts: one for each box, "" for none.
        colors: one for each box.
    """
    picture = Image.fromarray(np.asarray(image))
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    width = max(1, round(side / 200))
    font: Any = ImageFont.load_default(size=max(9, side // 32))
    for box, text, color in list(zip(boxes, texts, colors, strict=True))[::-1]:
        y1, x1, y2, x2 = (float(value) for value in box)
        draw.rectangle([x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=color, width=width)
        if not text:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left + 2, bottom - top + 2
        x = min(max(x1, 0), max(picture.width - text_width, 0))
        y = y1 - text_height if y1 >= text_height else min(y2, picture.height - text_height)
        draw.rectangle([x, y, x + text_width, y + text_height], fill=color)
        is_light = np.dot(color, (0.299, 0.587, 0.114)) > 140
        draw.text(
            (x + 1 - left, y + 1 - top), text, fill="black" if is_light else "white", font=font
        )
    return np.asarray(picture)


def draw_classes(image: Any, labels: Any, ignored: int = 255) -> NDArray[np.uint8]:
    """Returns an image in the colours of its pixels' classes; class 0 leaves it as it is.

    Args:
        image: `[H, W, 3]`, uint8.
        labels: `[H, W]`, integers.
        ignored: the class of pixels that are drawn grey.
    """
    image, labels = np.asarray(image), np.asarray(labels)
    palette = np.array([color_of(number) for number in range(int(labels.max(initial=0)) + 1)])
    palette[ignored:] = 128
    mixed = 0.35 * image + 0.65 * palette[labels]
    return np.where((labels == 0)[..., np.newaxis], image, mixed).round().astype(np.uint8)
