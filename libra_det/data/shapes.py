"""The embedded data set: shapes that the package draws itself, the same on every machine.

Five classes with a long tail (circle, square, triangle, star, ring), objects of 8 to 112 pixels, and many near misses
that are not labelled: outlines, halves, shapes with a bite, crosses. Written once as COCO JSON and JPEG into a cache
folder. Random numbers come from numpy's RandomState, whose streams are frozen; corners lie on a grid of a quarter
pixel, so that the labels do not depend on the last bit of a sine.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

VERSION = 1  # of the drawing: a change of anything below needs a new one
SPLITS = {"train": 600, "val": 120}  # images
IMAGE_SIZE = 160  # pixels, square
CLASSES = {"circle": 0.50, "square": 0.25, "triangle": 0.12, "star": 0.08, "ring": 0.05}  # share of the objects
MIN_SIZE, MAX_SIZE = 8.0, 112.0  # longer side of an object, pixels, log-uniform
MIN_OBJECTS, MAX_OBJECTS = 2, 8  # of an image that is not empty
EMPTY_SHARE = 0.04  # images with near misses only
MIN_NEAR_MISSES, MAX_NEAR_MISSES = 2, 6
MIN_NEAR_MISS_SIZE, MAX_NEAR_MISS_SIZE = 16.0, 48.0  # smaller ones could not be told from objects
MIN_CONTRAST = 150  # sum of the differences of red, green and blue to what lies behind a shape
RING_HOLE = 0.5  # inner radius of a ring, of the outer one
STAR_WAIST = 0.42  # inner radius of a star, of the outer one

_NEAR_MISSES = (
    "outlined circle",
    "outlined square",
    "outlined triangle",
    "half circle",
    "bitten circle",
    "bitten square",
    "cross",
)
_SCALE = 4  # drawn larger by this and reduced: smooth edges, and corners on quarter pixels
_PALETTE = (
    (230, 57, 70), (244, 140, 6), (255, 202, 58), (82, 183, 136), (42, 157, 143), (67, 170, 219),
    (58, 92, 204), (123, 44, 191), (214, 90, 168), (141, 85, 60), (240, 240, 235), (45, 49, 66),
)  # fmt: skip
_BACKGROUNDS = (
    (222, 214, 200),
    (203, 216, 222),
    (214, 224, 204),
    (226, 208, 212),
    (168, 178, 190),
    (120, 132, 128),
    (84, 90, 112),
)


class _Shape(NamedTuple):
    """What is drawn: polygons or ellipses in units of a quarter pixel, each added (True) or taken away (False)."""

    parts: list[tuple[bool, np.ndarray]]  # int64 [P, 2] corners; an ellipse is [2, 2], its bounding box
    box: tuple[int, int, int, int]  # left, top, right, bottom of what is added


def shapes_folder() -> Path:
    """Folder of the embedded data set as COCO JSON (train.json, val.json); drawn on the first call, in some seconds.

    It lies in $LIBRA_CACHE, or ~/.cache/libra_det where that is not set.

    Raises:
        OSError: if the cache folder cannot be written; says how to choose another.
    """
    cache = Path(os.environ.get("LIBRA_CACHE") or Path.home() / ".cache" / "libra_det").expanduser()
    folder = cache / f"shapes-v{VERSION}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache))
    except OSError as error:
        raise OSError(
            f"{cache}: the embedded data set cannot be written here ({error}); set LIBRA_CACHE to a folder that can"
        ) from error
    try:
        draw_data_set(unfinished)
        unfinished.chmod(0o755)  # mkdtemp's folders are private
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def draw_data_set(folder: Path, splits: dict[str, int] | None = None) -> None:
    """Draws images and annotations into `folder`: <split>.json and <split>/*.jpg.

    Args:
        splits: number of images of each split; none: `SPLITS`. Image i of a split is the same whatever the number.
    """
    for split, count in (SPLITS if splits is None else splits).items():
        (folder / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            image, objects = draw_image(split, index)
            file_name = f"{split}/{index + 1:05d}.jpg"
            image.save(folder / file_name, quality=92, subsampling=0)
            images.append({"id": index + 1, "file_name": file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
            for label, (left, top, right, bottom) in objects:
                bbox = [left, top, right - left, bottom - top]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": bbox,
                        "area": bbox[2] * bbox[3],
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def draw_image(split: str, index: int) -> tuple[Image.Image, list[tuple[int, tuple[float, float, float, float]]]]:
    """One image and its objects: (label, xyxy in pixels) each."""
    random = np.random.RandomState([VERSION, *split.encode(), index])
    canvas = Image.fromarray(_background(random)).resize((IMAGE_SIZE * _SCALE,) * 2, Image.Resampling.BILINEAR)
    empty = random.random_sample() < EMPTY_SHARE
    num_objects = 0 if empty else random.randint(MIN_OBJECTS, MAX_OBJECTS + 1)
    num_near_misses = random.randint(MIN_NEAR_MISSES, MAX_NEAR_MISSES + 1)
    wanted = [
        (label, _log_uniform(random, MIN_SIZE, MAX_SIZE))
        for label in random.choice(len(CLASSES), num_objects, p=list(CLASSES.values()))
    ]
    wanted += [(-1, _log_uniform(random, MIN_NEAR_MISS_SIZE, MAX_NEAR_MISS_SIZE)) for _ in range(num_near_misses)]
    objects: list[tuple[int, tuple[float, float, float, float]]] = []
    taken: list[tuple[int, int, int, int]] = []
    for label, size in sorted(wanted, key=lambda item: -item[1]):  # large ones first, while there is room
        name = list(CLASSES)[label] if label >= 0 else _NEAR_MISSES[random.randint(len(_NEAR_MISSES))]
        for _ in range(20):
            shape = _place(name, size, random)
            if not any(_overlap(shape.box, other) for other in taken):
                break
        else:
            continue
        taken.append(shape.box)
        _draw(canvas, shape, random)
        if label >= 0:
            left, top, right, bottom = (side / _SCALE for side in shape.box)
            objects.append((int(label), (left, top, right, bottom)))
    pixels = np.asarray(canvas.resize((IMAGE_SIZE,) * 2, Image.Resampling.BOX), dtype=np.float64)
    grain = random.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1)) * random.uniform(1.0, 5.0)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)), objects


def _log_uniform(random: np.random.RandomState, low: float, high: float) -> float:
    return float(low * (high / low) ** random.random_sample())


def _background(random: np.random.RandomState) -> np.ndarray:
    """A soft gradient with clouds and sometimes stripes: uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    colors = [np.array(_BACKGROUNDS[i]) + random.uniform(-12, 12, 3) for i in random.randint(len(_BACKGROUNDS), size=2)]
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] / IMAGE_SIZE
    angle = random.uniform(0, 2 * np.pi)
    blend = (0.5 + 0.5 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)))[..., None]
    coarse = Image.fromarray(random.uniform(0, 255, (6, 6)).astype(np.uint8))
    clouds = np.asarray(coarse.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC), dtype=np.float64)[..., None] - 128
    pixels = colors[0] * blend + colors[1] * (1 - blend) + clouds * random.uniform(0.05, 0.3)
    if random.random_sample() < 0.3:
        period = random.uniform(0.05, 0.2)
        pixels += (
            random.uniform(4, 12) * np.sin((x * np.sin(angle) + y * np.cos(angle)) * 2 * np.pi / period)[..., None]
        )
    return pixels.clip(0, 255).astype(np.uint8)


def _place(name: str, size: float, random: np.random.RandomState) -> _Shape:
    """A shape somewhere inside the image, `size` pixels in diameter."""
    radius = size * _SCALE / 2
    angle = random.uniform(0, 2 * np.pi)
    canvas = IMAGE_SIZE * _SCALE
    center = np.rint(radius + 2 + random.random_sample(2) * (canvas - 2 * radius - 4))
    if name in ("circle", "ring", "outlined circle"):
        hole = {"circle": 0.0, "ring": RING_HOLE, "outlined circle": 0.86}[name]
        parts = [(True, _ellipse(center, radius))] + ([(False, _ellipse(center, radius * hole))] if hole else [])
    elif name in ("square", "outlined square", "triangle", "outlined triangle"):
        corners = 4 if name.endswith("square") else 3
        parts = [(True, _polygon(center, [radius], corners, angle))]
        if name.startswith("outlined"):
            parts.append((False, _polygon(center, [radius * (0.82 if corners == 4 else 0.7)], corners, angle)))
    elif name == "star":
        parts = [(True, _polygon(center, [radius, radius * STAR_WAIST], 10, angle))]
    elif name == "cross":
        bar = radius * np.array([[-1, -0.22], [1, -0.22], [1, 0.22], [-1, 0.22]])
        parts = [(True, _turn(bar, angle + turn, center)) for turn in (0, random.uniform(1.0, 2.1))]
    else:  # a circle or square from which half, or a bite, is taken away
        whole = _polygon(center, [radius], 4, angle) if name.endswith("square") else _ellipse(center, radius)
        if name.startswith("half"):
            bite = _turn(radius * np.array([[0, -1.1], [1.1, -1.1], [1.1, 1.1], [0, 1.1]]), angle, center)
        elif name.endswith("square"):
            bite = _polygon(center, [0, radius * 1.8, radius * 1.8], 3, angle, spread=0.7)
        else:
            bite = _polygon(center, [0, radius * 1.6, radius * 1.6], 3, angle, spread=0.7)
        parts = [(True, whole), (False, bite)]
    added = np.concatenate([corners for add, corners in parts if add])
    (left, top), (right, bottom) = added.min(0).tolist(), added.max(0).tolist()
    return _Shape(parts, (left, top, right + 1, bottom + 1))  # the pen fills the last quarter pixel too


def _ellipse(center: np.ndarray, radius: float) -> np.ndarray:
    radius = np.rint(radius)
    return np.stack([center - radius, center + radius]).astype(np.int64)


def _polygon(
    center: np.ndarray, radii: list[float], corners: int, angle: float, spread: float | None = None
) -> np.ndarray:
    """Corners at equal angles (or, with `spread`, within that angle to both sides), their radii repeating."""
    steps = np.arange(corners) * 2 * np.pi / corners if spread is None else np.array([0.0, -spread, spread])
    lengths = np.resize(radii, corners)
    return _turn(np.stack([lengths * np.cos(steps), lengths * np.sin(steps)], axis=1), angle, center)


def _turn(points: np.ndarray, angle: float, center: np.ndarray) -> np.ndarray:
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.rint(points @ rotation + center).astype(np.int64)


def _overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """True if the boxes share more than a tenth of the smaller one."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((sides[2] - sides[0]) * (sides[3] - sides[1]) for sides in (box, other))
    return width > 0 and height > 0 and width * height > 0.1 * smaller


def _draw(canvas: Image.Image, shape: _Shape, random: np.random.RandomState) -> None:
    """Fills the shape with a colour of the palette that shades from its top to its bottom."""
    mask = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(mask)
    for add, corners in shape.parts:
        points = [tuple(point) for point in corners.tolist()]
        (pen.ellipse if len(points) == 2 else pen.polygon)(points, fill=255 if add else 0)
    left, top, right, bottom = shape.box
    behind = np.array(canvas.getpixel(((left + right) // 2, (top + bottom) // 2)))
    order = random.permutation(len(_PALETTE))
    contrasts = np.abs(np.array(_PALETTE)[order] - behind).sum(1)
    color = np.array(_PALETTE)[order[int(np.argmax(contrasts > MIN_CONTRAST))]] + random.uniform(-15, 15, 3)
    shade = np.linspace(1.08, 0.86, bottom - top)[:, None, None]  # lit from above
    fill = (color * shade).clip(0, 255).astype(np.uint8).repeat(right - left, axis=1)
    canvas.paste(Image.fromarray(fill), (left, top), mask.crop(shape.box))
