"""Annotations in memory: what every format is read into, with its boxes checked.

A annotations of a data set, G objects of one image. Boxes are xyxy in continuous pixels of the image as displayed,
unless a name says `bbox`: that is COCO's left, top, width, height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from libra_det.data.problems import Problems
from libra_det.terminal import short

LONGEST_SIDE = 1_000_000  # pixels of an image, as annotated; larger numbers are mistakes


class Category(NamedTuple):
    """A class of objects, by the id that the annotations give it."""

    id: int
    name: str


class ImageSource(NamedTuple):
    """An image before its objects are known."""

    id: int
    file: Path
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageRecord:
    """One image and the objects in it that a detector can learn."""

    id: int  # as in the annotations
    file: Path
    file_name: str  # as in the annotations
    width: int  # pixels, as displayed
    height: int
    boxes: Tensor  # [G, 4] float32 xyxy, inside the image and with an area
    labels: Tensor  # [G] int64: position of the category in `Annotations.categories`
    crowd: Tensor  # [G] bool: COCO's iscrowd
    difficult: Tensor  # [G] bool: VOC's difficult; training sees neither a target nor a crowd region there
    areas: Tensor  # [G] float32: the annotated area (of the mask, where there was one), else that of the box

    @property
    def wanted(self) -> Tensor:
        """[G] bool: objects to be found, which are neither crowd regions nor difficult."""
        return ~(self.crowd | self.difficult)

    @property
    def has_objects(self) -> bool:
        """True if there is something to find."""
        return bool(self.wanted.any())


class GroundTruth(NamedTuple):
    """All annotations of a data set as they were written, in columns."""

    ids: np.ndarray  # [A] int64
    image_index: np.ndarray  # [A] int64: position in `Annotations.images`
    labels: np.ndarray  # [A] int64
    bbox: np.ndarray  # [A, 4] float64: left, top, width, height
    areas: np.ndarray  # [A] float64; NaN where none was given
    crowd: np.ndarray  # [A] bool
    difficult: np.ndarray  # [A] bool


@dataclass(frozen=True)
class Annotations:
    """A split of a data set.

    `categories` are sorted by id: a label is a position in them. `problems` counts what was handled while reading.
    `ground_truth` keeps what an evaluator is to see, which includes boxes that are of no use for training.
    """

    name: str
    categories: tuple[Category, ...]
    images: list[ImageRecord]
    problems: Problems
    ground_truth: GroundTruth

    def coco(self) -> dict[str, Any]:
        """Ground truth for pycocotools, as a dict of COCO JSON.

        Gives the official evaluation of a COCO file: every annotation with its own bbox, area, iscrowd and image id,
        also those that training leaves out; only boxes with NaN or infinity are missing. COCO's numbers know nothing
        of VOC's difficult objects: these have iscrowd 1, so that they need not be found, and difficult 1 for
        `metrics.voc_average_precision`. Annotation ids are shifted to begin at 1 where one is below, because
        pycocotools takes a match with id 0 for none.
        """
        truth = self.ground_truth
        shift = max(0, 1 - int(truth.ids.min(initial=1)))
        columns = zip(*(column.tolist() for column in truth), strict=True)
        return {
            "images": [
                {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "categories": [category._asdict() for category in self.categories],
            "annotations": [
                {
                    "id": annotation_id + shift,
                    "image_id": self.images[index].id,
                    "category_id": self.categories[label].id,
                    "bbox": bbox,
                    "area": area if np.isfinite(area) else bbox[2] * bbox[3],
                    "iscrowd": int(crowd or difficult),
                    **({"difficult": 1} if difficult else {}),
                }
                for annotation_id, index, label, bbox, area, crowd, difficult in columns
            ],
        }


def assemble(
    name: str,
    categories: tuple[Category, ...],
    images: list[ImageSource],
    truth: GroundTruth,
    problems: Problems,
    where: Callable[[int], str],
    *,
    evaluate_unusable: bool,
) -> Annotations:
    """Checks the boxes, counts what is wrong with them and groups them by image.

    Args:
        truth: the annotations as written. Boxes that are not finite, inverted, without area or outside their image are
            left out of the images' boxes; those partly outside are clipped.
        where: file and annotation of row i of `truth`, for messages.
        evaluate_unusable: keep finite boxes that training leaves out in the ground truth for evaluation.
    """
    left, top, box_width, box_height = truth.bbox.T
    with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond float64 is infinite, and counted as such below
        boxes = np.stack([left, top, left + box_width, top + box_height], axis=1)  # [A, 4] xyxy
    sizes = np.array([(image.width, image.height) for image in images], dtype=np.float64).reshape(-1, 2)
    limits = np.tile(sizes[truth.image_index], 2)  # [A, 4]: width, height, width, height

    finite = np.isfinite(boxes).all(axis=1)
    inverted = finite & ((box_width < 0) | (box_height < 0))
    no_area = finite & ~inverted & ((box_width == 0) | (box_height == 0))
    usable = finite & ~inverted & ~no_area
    outside = usable & ((boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= limits[:, :2]).any(axis=1))
    usable &= ~outside
    clipped = np.clip(np.where(usable[:, None], boxes, 0.0), 0.0, limits)
    # A pixel is the rounding of 0-based against 1-based formats, not worth a report.
    partly_outside = usable & (np.abs(clipped - np.where(usable[:, None], boxes, 0.0)) > 1.0).any(axis=1)
    found = {"not_finite": ~finite, "inverted": inverted, "no_area": no_area, "outside": outside}
    for kind, rows in {**found, "partly_outside": partly_outside}.items():
        if rows.any():
            problems.add(kind, where(int(np.argmax(rows))), int(rows.sum()))

    box_areas = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    areas = np.where(np.isfinite(truth.areas), truth.areas, box_areas)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(truth.image_index[rows], kind="stable")]
    areas = areas.clip(*np.array([-1, 1]) * np.finfo(np.float32).max).astype(np.float32)
    columns = (clipped.astype(np.float32), truth.labels, truth.crowd, truth.difficult, areas)
    ends = np.bincount(truth.image_index[rows], minlength=len(images)).cumsum()
    by_image = ([torch.from_numpy(part) for part in np.split(column[rows], ends[:-1])] for column in columns)
    records = [ImageRecord(*image, *objects) for image, *objects in zip(images, *by_image, strict=True)]
    empty = [record.file_name for record in records if not record.has_objects]
    if empty:
        problems.add("no_objects", short(empty[0]), len(empty))
    evaluated = finite if evaluate_unusable else usable
    return Annotations(name, categories, records, problems, GroundTruth(*(column[evaluated] for column in truth)))
