"""Boxes on pictures, with PIL, and pictures in files."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from libra_det.files import write_bytes
from libra_det.terminal import short

LEGIBLE_SIDE = 480  # pixels; smaller pictures are enlarged so that their labels can be read
_LONGEST_NAME = 60  # characters of a class name on a picture


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """A copy of `image` with a box, a class name and a score for every object.

    Pictures whose longer side is under 480 pixels are enlarged by a whole factor first. One colour per class.

    Args:
        image: any mode; the copy is RGB.
        boxes: K boxes xyxy in pixels of `image`.
        labels: K class numbers from 0, which choose the colours.
        names: K class names.
        scores: K scores in 0..1, or None for ground truth.
    """
    factor = max(1, round(LEGIBLE_SIDE / max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    line = max(2, round(side / 400))
    font = ImageFont.load_default(size=max(11, round(side / 60)))
    # Worst first, so that the best lie on top.
    for index in reversed(range(len(boxes))):
        box = [float(value) * factor for value in boxes[index]]
        color = class_color(labels[index])
        draw.rectangle(_ordered(box), outline=color, width=line)
        name = short(names[index], _LONGEST_NAME)
        text = name if scores is None else f"{name} {scores[index]:.2f}"
        _draw_label(draw, text, box, color, font, canvas.size)
    return canvas


def beside(left: Image.Image, right: Image.Image, titles: tuple[str, str]) -> Image.Image:
    """Two pictures of one size side by side, each under its title."""
    font = ImageFont.load_default(size=16)
    bar, gap = 26, 8
    canvas = Image.new("RGB", (left.width + gap + right.width, left.height + bar), "white")
    draw = ImageDraw.Draw(canvas)
    for x, picture, title in ((0, left, titles[0]), (left.width + gap, right, titles[1])):
        draw.text((x + 4, 3), title, fill="black", font=font)
        canvas.paste(picture, (x, bar))
    return canvas


def save_picture(picture: Image.Image, file: Path, format: str, **options: Any) -> None:
    """Write a picture as `PIL.Image.save` does, but whole or not at all; raises as `files.whole_file`."""
    encoded = io.BytesIO()
    picture.save(encoded, format, **options)
    write_bytes(file, encoded.getvalue())


def class_color(label: int) -> tuple[int, int, int]:
    """RGB; neighbours in the list of classes differ well (steps of the golden ratio around the hues)."""
    hue = (0.08 + label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """The text on a filled ground above the box, or inside it where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else max(box[1], 0)
    draw.rectangle([x, y, x + width, y + height], fill=color)
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text((x + 2 - left, y + 2 - top), text, fill="black" if brightness > 140 else "white", font=font)


def _ordered(box: list[float]) -> list[float]:
    """PIL refuses a rectangle whose corners are swapped."""
    return [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
