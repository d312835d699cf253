"""COCO JSON: ids of any kind of spacing, crowds, missing sizes; every mistake in the file found in one reading."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libra_det.data.image_file import image_size
from libra_det.data.problems import Problems
from libra_det.data.records import LONGEST_SIDE, Annotations, Category, GroundTruth, ImageSource, assemble
from libra_det.file_names import ImageFiles, name_mistake
from libra_det.plain_json import parse_json
from libra_det.terminal import few, short, shown


def read_json(file: Path) -> dict[str, Any]:
    """The object in a COCO JSON file, with its lists `images`, `annotations` and `categories` checked to be there.

    Raises:
        ValueError: naming the file, if it is no JSON or no COCO annotations.
    """
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        hint = "; a list is the form of results, not of annotations" if isinstance(content, list) else ""
        raise ValueError(
            f"{file}: expected a JSON object with images, annotations and categories, got {_name(content)}{hint}"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            got = _name(content[key]) if key in content else "nothing"
            raise ValueError(f"{file}: expected a list under {key!r}, got {got}")
        for position, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: {key}[{position}]: expected an object, got {_name(entry)}")
    if not content["images"]:
        raise ValueError(f"{file}: lists no images")
    return content


def read_coco(
    file: Path, content: dict[str, Any], files: ImageFiles, name: str, categories: Sequence[Category] | None
) -> Annotations:
    """Annotations of a COCO JSON file.

    Args:
        content: what `read_json` gave.
        files: where the images are.
        categories: those of the training split, which give the labels; none: the file's own.

    Raises:
        ValueError: listing all mistakes in the file, each with its image or annotation id.
    """
    problems = Problems()
    labels, own_categories = _labels(file, content["categories"], categories, problems)
    images = _images(file, content["images"], files, problems)
    image_index = {image.id: index for index, image in enumerate(images)}
    rows: list[tuple[int, int, int, list[float], float, bool]] = []
    seen: set[int] = set()
    unknown = _UnknownCategory(content["categories"], own_categories, categories)
    for position, entry in enumerate(content["annotations"]):
        mistake = _annotation_mistake(entry)
        if mistake is None and entry["id"] in seen:
            mistake = "this id is used before; annotation ids must differ"
        if mistake is None and entry["image_id"] in image_index and entry["category_id"] not in labels:
            mistake = unknown.mistake(entry["category_id"])
        if mistake is not None:
            problems.errors.append(f"{file}: annotation {short(entry.get('id', f'at position {position}'))}: {mistake}")
            continue
        seen.add(entry["id"])
        if entry["image_id"] not in image_index:
            problems.add("unknown_image", f"{file}: annotation {entry['id']} is of image {entry['image_id']}")
            continue
        area = entry.get("area")
        crowd = bool(entry.get("iscrowd"))
        area = float(area) if _is_number(area) else math.nan
        rows.append(
            (entry["id"], image_index[entry["image_id"]], labels[entry["category_id"]], entry["bbox"], area, crowd)
        )
    problems.raise_errors()

    ids, index, row_labels, bbox, areas, crowd = zip(*rows, strict=True) if rows else ((),) * 6
    truth = GroundTruth(
        np.array(ids, dtype=np.int64),
        np.array(index, dtype=np.int64),
        np.array(row_labels, dtype=np.int64),
        np.array(bbox, dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array(crowd, dtype=bool),
        np.zeros(len(rows), dtype=bool),
    )
    return assemble(
        name,
        own_categories,
        images,
        truth,
        problems,
        lambda row: f"{file}: annotation {truth.ids[row]} in {short(images[truth.image_index[row]].file_name)}",
        evaluate_unusable=True,
    )


def file_categories(file: Path, entries: list[dict[str, Any]]) -> tuple[Category, ...]:
    """The categories of a COCO JSON file, sorted by id.

    Raises:
        ValueError: naming file and category, if an id is used twice or an entry has no id or name.
    """
    found: dict[int, Category] = {}
    for position, entry in enumerate(entries):
        if not _is_integer(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"{file}: categories[{position}]: expected a 64-bit integer id and a name, got {shown(entry)}"
            )
        if entry["id"] in found:
            other = found[entry["id"]].name
            raise ValueError(
                f"{file}: category id {entry['id']} is used for both {shown(other)} and {shown(entry['name'])}"
            )
        found[int(entry["id"])] = Category(int(entry["id"]), entry["name"])
    return tuple(sorted(found.values()))


def _labels(
    file: Path, entries: list[dict[str, Any]], categories: Sequence[Category] | None, problems: Problems
) -> tuple[dict[int, int], tuple[Category, ...]]:
    """Label of each category id of the file, and the categories that the labels stand for."""
    own = file_categories(file, entries)
    if categories is None:
        return {category.id: label for label, category in enumerate(own)}, own
    categories = tuple(categories)
    by_name: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        by_name.setdefault(category.name, []).append(label)
    label_of = {category: label for label, category in enumerate(categories)}
    labels: dict[int, int] = {}
    for category in own:
        if category in label_of:
            labels[category.id] = label_of[category]
        elif len(by_name.get(category.name, ())) == 1:
            labels[category.id] = by_name[category.name][0]
            problems.add("category_by_name", f"{file}: category {category.id} {shown(category.name)}")
    return labels, categories


def _images(file: Path, entries: list[dict[str, Any]], files: ImageFiles, problems: Problems) -> list[ImageSource]:
    images: list[ImageSource] = []
    seen: set[int] = set()
    moved: list[ImageSource] = []  # found by the last parts of their names
    for position, entry in enumerate(entries):
        try:
            image, is_moved = _image(entry, files)
            if image.id in seen:
                raise ValueError("this id is used before; image ids must differ")
        except ValueError as error:
            name = entry.get("file_name")
            named = f" ({short(name)})" if name_mistake(name) is None else ""
            id = short(entry.get("id", f"at position {position}"))
            problems.errors.append(f"{file}: image {id}{named}: {error}")
            continue
        seen.add(image.id)
        images.append(image)
        if is_moved:
            moved.append(image)
            problems.add("outside_name", f"{file}: image {image.id} ({short(image.file_name)}), read from {image.file}")
    uses = Counter(image.file for image in images)
    problems.errors += [
        f"{file}: image {image.id} ({short(image.file_name)}): {uses[image.file]} images would be {image.file}; "
        "--allow-outside reads each from where its name leads, if you trust these annotations"
        for image in moved
        if uses[image.file] > 1
    ]
    return images


def _image(entry: dict[str, Any], files: ImageFiles) -> tuple[ImageSource, bool]:
    """An image of the file, and whether it was found by the last part of its name. A ValueError says what is wrong."""
    id, name, width, height = map(entry.get, ("id", "file_name", "width", "height"))
    if not _is_integer(id):
        raise ValueError(f"expected a 64-bit integer id, got {shown(id)}")
    mistake = name_mistake(name)
    if mistake is not None:
        raise ValueError(mistake)
    path, is_moved = files.find(name)
    if width is None and height is None:
        try:
            width, height = image_size(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"has no width and height, and {error}") from error
    if not all(_is_integer(side) and 0 < side <= LONGEST_SIDE for side in (width, height)):
        raise ValueError(f"expected width and height in whole pixels, got {shown(width)} and {shown(height)}")
    return ImageSource(int(id), path, name, int(width), int(height)), is_moved


def _annotation_mistake(entry: dict[str, Any]) -> str | None:
    """What is wrong with the form of an annotation, if anything."""
    for key in ("id", "image_id", "category_id"):
        if not _is_integer(entry.get(key)):
            return f"expected a 64-bit integer {key}, got {shown(entry.get(key))}"
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"expected a bbox of 4 numbers (left, top, width, height), got {shown(bbox)}"
    if entry.get("iscrowd") not in (None, 0, 1):
        return f"expected iscrowd 0 or 1, got {shown(entry['iscrowd'])}"
    return None


class _UnknownCategory:
    """Says why a category id has no label. There may be as many such annotations as there are categories."""

    def __init__(
        self, entries: list[dict[str, Any]], own: tuple[Category, ...], training: Sequence[Category] | None
    ) -> None:
        self._names = {entry["id"]: entry["name"] for entry in entries}
        self._ids = few(sorted(self._names) if training is None else [category.id for category in own])
        self._classes = few([category.name for category in own])

    def mistake(self, category_id: int) -> str:
        if category_id not in self._names:
            return f"category {category_id} is unknown; the file lists the ids {self._ids}"
        return (
            f"category {category_id} ({shown(self._names[category_id])}) is not among the classes trained on "
            f"({self._classes}); the training split has to list it"
        )


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -(2**63) <= value < 2**63 and value == int(value)  # NaN fails the first comparison


def _is_number(value: Any) -> bool:
    """True for NaN and infinity as well, but not for an integer that no float64 holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def _name(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
