"""Batches of photographs with boxes, at one size, for the detectors: of BCCD where $LIBRA_DATA is, else drawn shapes.

Images are brought to the size whatever their aspect ratio, so that every batch has the shape that is wanted.
B images of a batch, G target slots.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.detectors import Setting
from libra_det.config import DataConfig
from libra_det.data import load_annotations, load_image
from libra_det.data.images import pil_to_tensor, resize
from libra_det.data.shapes import draw_image
from libra_det.structures import Batch, Targets

SLOTS = 32  # a BCCD photo has at most 30 objects
BCCD = "photos of BCCD"
PHOTOS = 64  # of the data set that batches are drawn from


def folder() -> Path | None:
    """Of BCCD, or None where it is not there."""
    found = Path(os.environ.get("LIBRA_DATA") or "nowhere") / "bccd"
    return found if found.is_dir() else None


def source() -> str:
    return BCCD if folder() else "drawn shapes"


@functools.cache
def _photo(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, uint8 [3, H, W]; its boxes [G, 4] in pixels, and their labels [G]."""
    place = folder()
    if place is None:
        image, objects = draw_image("train", index)
        boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).reshape(-1, 4)
        return pil_to_tensor(image), boxes, torch.tensor([label % 3 for label, _ in objects], dtype=torch.int64)
    record = _records(place)[index]
    return load_image(record.file), record.boxes[:SLOTS], record.labels[:SLOTS]


@functools.cache
def _records(place: Path) -> list[Any]:
    images = load_annotations(DataConfig(data=str(place)), "train").images
    return [image for image in images if image.has_objects]


def batch_tensors(generator: torch.Generator, setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch drawn at random.

    Returns:
        images: uint8 [B, 3, H, W], H and W padded to multiples of 32 with zeros.
        boxes: float32 [B, G, 4] xyxy in pixels; labels: int64 [B, G]; valid: bool [B, G].
    """
    size, height, width = setting.batch, setting.height, setting.width
    images = torch.zeros(size, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.uint8)
    boxes, labels = torch.zeros(size, SLOTS, 4), torch.zeros(size, SLOTS, dtype=torch.int64)
    valid = torch.zeros(size, SLOTS, dtype=torch.bool)
    for place, index in enumerate(torch.randint(PHOTOS, (size,), generator=generator).tolist()):
        image, found, kinds = _photo(index)
        images[place, :, :height, :width] = resize(image, width, height)
        scale = torch.tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
        boxes[place, : len(found)] = found * scale
        labels[place, : len(found)] = kinds
        valid[place, : len(found)] = True
    return images, boxes, labels, valid


def our_batch(setting: Setting, images: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor) -> Batch:
    """As our data loader gives it."""
    sizes = boxes.new_tensor([[setting.height, setting.width]] * len(images))
    targets = Targets(boxes, labels, valid, torch.zeros_like(valid))
    return Batch(images, sizes, sizes, targets, list(range(len(images))), [""] * len(images))


def torchvision_batch(
    setting: Setting, images: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """As torchvision's detectors want it: images float32 in 0..1 and not padded; classes from 1 in Faster R-CNN."""
    first = 1 if setting.detector == "faster_rcnn" else 0
    floats = [(image[:, : setting.height, : setting.width].float() / 255).contiguous() for image in images]
    targets = [
        {"boxes": box[real], "labels": label[real] + first}
        for box, label, real in zip(boxes, labels, valid, strict=True)
    ]
    return floats, targets
