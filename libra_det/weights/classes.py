"""Which classes a file's labels stand for: (id, name) of the labels 0..C-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from libra_det.checkpoint_values import LONGEST_NAME

Categories = list[tuple[int, str]]


def coco_categories() -> Categories:
    """COCO's 80 classes by their own ids, of which 1..90 not all are used."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return [(id, name) for id, name in enumerate(names) if name not in ("__background__", "N/A")]


def categories_of(meta: dict[str, Any], num_classes: int) -> tuple[Categories, list[str]]:
    """The classes that a published file names, else COCO's if there are 80 of them, else numbers.

    COCO's names get COCO's ids, all others 1..C in their order.

    Args:
        meta: what the file says: CLASSES as mmdetection 2 writes them, or dataset_meta as mmdetection 3.
        num_classes: C, by the shapes of the class layers.

    Returns:
        (id, name) of each label, and what the user should know about them.
    """
    names = _names(meta)
    coco = coco_categories()
    notes = []
    if names is not None and len(names) != num_classes:
        notes.append(f"names {len(names)} classes but has {num_classes}: its names are not used")
        names = None
    if names is None and num_classes == len(coco):
        return coco, [*notes, "names no classes; taken for COCO's 80"]
    if names is None:
        names = [f"class {number}" for number in range(1, num_classes + 1)]
        notes.append(f"names no classes; they are called {names[0]} to {names[-1]}")
    elif [_plain(name) for name in names] == [_plain(name) for _, name in coco]:
        return coco, notes
    return list(enumerate(names, start=1)), notes


def _names(meta: dict[str, Any]) -> list[str] | None:
    """Class names wherever mmdetection has put them; a single class may stand there as a string."""
    inner = meta.get("dataset_meta")
    for place in (meta, inner if isinstance(inner, dict) else {}):
        for key in ("CLASSES", "classes"):
            found = place.get(key)
            if _is_name(found):
                return [found]
            if isinstance(found, Sequence) and found and all(map(_is_name, found)):
                return list(found)
    return None


def _is_name(value: Any) -> bool:
    """A few bytes can stand for a very long text that very many classes share."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _plain(name: str) -> str:
    """mmdetection 1.x wrote underscores for COCO's spaces."""
    return name.replace("_", " ").lower()
