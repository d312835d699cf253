"""COCO JSON: ids of any kind of spacing, crowds, missing sizes; every mistake in the file found in one reading."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libra_det.data.images import image_size
from libra_det.data.problems import Problems
from libra_det.data.records import Annotations, Category, GroundTruth, ImageSource, assemble


def read_json(file: Path) -> dict[str, Any]:
    """The object in a COCO JSON file, with its lists `images`, `annotations` and `categories` checked to be there.

    Raises:
        ValueError: naming the file, if it is no JSON or no COCO annotations.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
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
    file: Path, content: dict[str, Any], image_folder: Path, name: str, categories: Sequence[Category] | None
) -> Annotations:
    """Annotations of a COCO JSON file.

    Args:
        content: what `read_json` gave.
        image_folder: what the file names are relative to.
        categories: those of the training split, which give the labels; none: the file's own.

    Raises:
        ValueError: listing all mistakes in the file, each with its image or annotation id.
    """
    problems = Problems()
    labels, own_categories = _labels(file, content["categories"], categories, problems)
    images = _images(file, content["images"], image_folder, problems)
    image_index = {image.id: index for index, image in enumerate(images)}
    rows: list[tuple[int, int, int, list[float], float, bool]] = []
    seen: set[int] = set()
    names = {entry.get("id"): entry.get("name") for entry in content["categories"] if _is_integer(entry.get("id"))}
    for position, entry in enumerate(content["annotations"]):
        mistake = _annotation_mistake(entry)
        if mistake is None and entry["id"] in seen:
            mistake = "this id is used before; annotation ids must differ"
        if mistake is None and entry["image_id"] in image_index and entry["category_id"] not in labels:
            mistake = _unknown_category(entry["category_id"], names, own_categories, categories)
        if mistake is not None:
            problems.errors.append(f"{file}: annotation {entry.get('id', f'at position {position}')}: {mistake}")
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
        lambda row: f"{file}: annotation {truth.ids[row]} in {images[truth.image_index[row]].file_name}",
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
            raise ValueError(f"{file}: categories[{position}]: expected a 64-bit integer id and a name, got {entry!r}")
        if entry["id"] in found:
            other = found[entry["id"]].name
            raise ValueError(f"{file}: category id {entry['id']} is used for both {other!r} and {entry['name']!r}")
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
    labels: dict[int, int] = {}
    for category in own:
        if category in categories:
            labels[category.id] = categories.index(category)
        elif len(by_name.get(category.name, ())) == 1:
            labels[category.id] = by_name[category.name][0]
            problems.add("category_by_name", f"{file}: category {category.id} {category.name!r}")
    return labels, categories


def _images(file: Path, entries: list[dict[str, Any]], image_folder: Path, problems: Problems) -> list[ImageSource]:
    images: list[ImageSource] = []
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        where = f"{file}: image {entry.get('id', f'at position {position}')}"
        if not _is_integer(entry.get("id")):
            problems.errors.append(f"{where}: expected a 64-bit integer id, got {entry.get('id')!r}")
        elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            problems.errors.append(f"{where}: expected a file_name, got {entry.get('file_name')!r}")
        elif entry["id"] in seen:
            problems.errors.append(f"{where} ({entry['file_name']}): this id is used before; image ids must differ")
        else:
            seen.add(entry["id"])
            path = image_folder / entry["file_name"]
            size = (entry.get("width"), entry.get("height"))
            try:
                if size == (None, None):
                    size = image_size(path)
            except (OSError, ValueError) as error:
                problems.errors.append(f"{where}: has no width and height, and {error}")
                continue
            if not all(_is_integer(side) and side > 0 for side in size):
                problems.errors.append(
                    f"{where} ({entry['file_name']}): expected width and height in whole pixels, "
                    f"got {size[0]!r} and {size[1]!r}"
                )
                continue
            images.append(ImageSource(int(entry["id"]), path, entry["file_name"], int(size[0]), int(size[1])))
    return images


def _annotation_mistake(entry: dict[str, Any]) -> str | None:
    """What is wrong with the form of an annotation, if anything."""
    for key in ("id", "image_id", "category_id"):
        if not _is_integer(entry.get(key)):
            return f"expected a 64-bit integer {key}, got {entry.get(key)!r}"
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"expected a bbox of 4 numbers (left, top, width, height), got {bbox!r}"
    if entry.get("iscrowd") not in (None, 0, 1):
        return f"expected iscrowd 0 or 1, got {entry['iscrowd']!r}"
    return None


def _unknown_category(
    category_id: int, names: dict[Any, Any], own: tuple[Category, ...], training: Sequence[Category] | None
) -> str:
    if category_id not in names:
        known = names if training is None else [category.id for category in own]
        return f"category {category_id} is unknown; the file lists the ids {_few(sorted(known))}"
    return (
        f"category {category_id} ({names[category_id]!r}) is not among the classes trained on "
        f"({_few([category.name for category in own])}); the training split has to list it"
    )


def _few(values: Sequence[Any]) -> str:
    """The first values, readably."""
    return ", ".join(map(str, values[:12])) + (f", ... ({len(values)} in all)" if len(values) > 12 else "")


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
