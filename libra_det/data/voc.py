"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from libra_det.data.image_file import SUFFIXES, image_size
from libra_det.data.problems import Problems
from libra_det.data.records import LONGEST_SIDE, Annotations, Category, GroundTruth, ImageSource, assemble
from libra_det.file_names import ImageFiles, is_file, name_mistake
from libra_det.terminal import few, short, shown


class _Object(NamedTuple):
    name: str
    bbox: list[float]  # left, top, width, height in continuous pixels
    difficult: bool
    where: str  # file and object, for messages


def read_voc(
    root: Path,
    split_file: Path,
    name: str,
    categories: Sequence[Category] | None,
    *,
    allow_outside: bool = False,
) -> Annotations:
    """Annotations of one split of a VOC folder.

    VOC counts pixels from 1 and includes the last: xmin, ymin, xmax, ymax become xyxy (xmin - 1, ymin - 1, xmax, ymax).
    A box whose corners are one pixel (xmax = xmin or ymax = ymin) is a stray click and counts as one without area.
    Objects marked difficult are left out of training, as if they had not been annotated; in evaluation they need not be
    found, and a detection of one is neither right nor wrong. Image ids are the positions in the split file, from 1.

    Args:
        root: the folder with Annotations/ and JPEGImages/.
        split_file: a text file with an image name without suffix on each line.
        categories: those of the training split, which give the labels; none: all class names of this split, sorted
            alphabetically, with ids from 1.
        allow_outside: read files also where names lead out of the folder.

    Raises:
        ValueError: listing all mistakes, each with the file and the number of the object in it.
    """
    problems = Problems()
    annotations = ImageFiles(root / "Annotations", [root], allow_outside)
    stems = _stems(split_file, annotations)
    folder = root / "JPEGImages"
    pictures = ImageFiles(folder, [root], allow_outside)
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() in SUFFIXES:
            files.setdefault(file.stem, file)
    images: list[ImageSource] = []
    objects: list[tuple[int, _Object]] = []
    for number, stem in enumerate(stems, start=1):
        try:
            xml = _annotation_file(stem, split_file, annotations)
            tree = _parse(xml)
            file = files.get(stem) or _named_file(tree, stem, xml, pictures, problems)
            width, height = _size(tree, xml) or image_size(file)
        except (OSError, ValueError) as error:
            problems.errors.append(str(error))
            continue
        file_name = file.relative_to(root) if file.is_relative_to(root) else file
        images.append(ImageSource(number, file, file_name.as_posix(), width, height))
        for position, element in enumerate(tree.iter("object"), start=1):
            where = f"{xml}: object {position}"
            try:
                objects.append((len(images) - 1, _object(element, where)))
            except ValueError as error:
                problems.errors.append(str(error))

    if categories is None:
        names = sorted({item.name for _, item in objects})
        categories = tuple(Category(id, name) for id, name in enumerate(names, start=1))
    labels = {category.name: label for label, category in enumerate(categories)}
    classes = few(list(labels))
    for _, item in objects:
        if item.name not in labels:
            problems.errors.append(
                f"{item.where}: class {shown(item.name)} is not among the classes trained on ({classes}); "
                "the training split has to have it"
            )
    problems.raise_errors()

    difficult = [item for _, item in objects if item.difficult]
    if difficult:
        problems.add("difficult", difficult[0].where, len(difficult))
    truth = GroundTruth(
        np.arange(1, len(objects) + 1, dtype=np.int64),
        np.array([index for index, _ in objects], dtype=np.int64),
        np.array([labels[item.name] for _, item in objects], dtype=np.int64),
        np.array([item.bbox for _, item in objects], dtype=np.float64).reshape(-1, 4),
        np.full(len(objects), math.nan),
        np.zeros(len(objects), dtype=bool),
        np.array([item.difficult for _, item in objects], dtype=bool),
    )
    return assemble(
        name, tuple(categories), images, truth, problems, lambda row: objects[row][1].where, evaluate_unusable=False
    )


def _stems(split_file: Path, annotations: ImageFiles) -> list[str]:
    """Names of the images of a split; a second column, as in VOC's lists per class, is left out."""
    try:
        text = split_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{split_file}: expected a text file with an image name on each line ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    stems = [line if is_file(annotations.folder / f"{line}.xml") else line.split()[0] for line in filter(None, lines)]
    if not stems:
        raise ValueError(f"{split_file}: lists no images")
    stem, uses = Counter(stems).most_common(1)[0]
    if uses > 1:
        raise ValueError(f"{split_file}: image {shown(stem)} is listed more than once")
    for stem in stems:
        mistake = name_mistake(stem)
        if mistake is not None:
            raise ValueError(f"{split_file}: {mistake}")
    return stems


def _annotation_file(stem: str, split_file: Path, annotations: ImageFiles) -> Path:
    try:
        xml, is_moved = annotations.find(f"{stem}.xml")
    except ValueError as error:
        raise ValueError(f"{split_file}: {error}") from error
    if is_moved:  # which an image may be, but not a list that is written for its folder
        raise ValueError(f"{split_file}: image {shown(stem)} has no annotation file in {annotations.folder}")
    return xml


def _named_file(tree: ElementTree.Element, stem: str, xml: Path, pictures: ImageFiles, problems: Problems) -> Path:
    """The image that an annotation file names, where none has the annotation file's own name."""
    name = (tree.findtext("filename") or f"{stem}.jpg").strip()
    mistake = name_mistake(name)
    if mistake is not None:
        raise ValueError(f"{xml}: {mistake}")
    try:
        path, is_moved = pictures.find(name)
    except ValueError as error:
        raise ValueError(f"{xml}: {error}") from error
    if is_moved:
        problems.add("outside_name", f"{xml}: {short(name)}, read from {path}")
    return path


def _parse(xml: Path) -> ElementTree.Element:
    """The root element. Entities of other files are never read, and expat bounds what those inside can grow to."""
    if not is_file(xml):
        raise FileNotFoundError(f"{xml}: this annotation file is missing")
    try:
        return ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:  # also of unknown encodings
        raise ValueError(f"{xml}: is not valid XML ({short(str(error))})") from error


def _size(tree: ElementTree.Element, xml: Path) -> tuple[int, int] | None:
    """Annotated width and height; none if they are missing or 0, as some tools write them."""
    texts = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    try:
        width, height = (int(float(text or 0)) for text in texts)
    except (ValueError, OverflowError):
        width = height = LONGEST_SIDE + 1
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(f"{xml}: expected width and height in whole pixels, got {' and '.join(map(shown, texts))}")
    return (width, height) if width > 0 and height > 0 else None


def _object(element: ElementTree.Element, where: str) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where}: has no name")
    texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts if text is not None)
    except ValueError:
        raise ValueError(
            f"{where} ({short(name)}): expected xmin, ymin, xmax and ymax as numbers, got {shown(texts)}"
        ) from None
    # The last pixel is included, but corners that coincide or are exchanged span nothing.
    width, height = (high - low + 1 if high > low else high - low for low, high in ((left, right), (top, bottom)))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return _Object(name, [left - 1, top - 1, width, height], difficult, where)
