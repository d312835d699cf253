"""Looks at the image files of a data set, and describes the whole of it for `libra check`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from libra_det.config import DataConfig
from libra_det.data.annotations import find_splits, load_annotations
from libra_det.data.image_file import annotated_as_stored, image_header
from libra_det.data.images import load_image
from libra_det.data.problems import AnnotationError, Problems
from libra_det.data.records import Annotations, ImageRecord
from libra_det.terminal import printable, short

_HEADER_LIMIT = 5000  # images whose headers are read before training: a second or two
FEW_CLASSES = 30  # in longer tables those without objects are left out
_MOST_ERRORS = 1000  # lines
MANY_CLASSES = 2000  # lines of the longest table; LVIS has 1203 classes
_LONGEST_NAME = 80  # characters of a name in a table
_SMALL, _LARGE = 32.0**2, 96.0**2  # COCO's limits, square pixels of the original image


def check_files(images: Sequence[ImageRecord], problems: Problems) -> None:
    """Makes sure, without decoding them, that images can be loaded, and counts in `problems` what loading will convert.

    Of more than 5000 images only the existence is checked.

    Raises:
        ValueError: listing what cannot be loaded.
    """
    found = Problems()
    for image in images:
        if len(images) <= _HEADER_LIMIT:
            _inspect(image, found)
        elif not image.file.is_file():
            found.errors.append(f"{image.file}: this image file is missing (image {image.id})")
    found.raise_errors()
    problems.extend(found)


def check_data(config: DataConfig) -> str:
    """Reads all annotations and decodes all images of a data set, with a progress bar.

    Returns:
        a summary: images, objects and their sizes by class for each split, and what is handled, with examples.

    Raises:
        FileNotFoundError: if there are no annotations in a layout that is understood.
        ValueError: with the summary and all that would stop training or evaluation.
    """
    report: list[str] = [config.data]
    errors: list[str] = []
    categories = None
    for split in find_splits(config):
        try:
            annotations = load_annotations(config, split, categories)
        except ValueError as error:
            errors += error.errors if isinstance(error, AnnotationError) else [str(error)]
            continue
        if split == config.train_split:
            categories = annotations.categories
        problems = Problems()
        problems.extend(annotations.problems)
        problems.extend(_decode_all(annotations))
        errors.extend(problems.errors)
        report.append(describe(annotations))
        if problems.summary():
            report.append("handled:\n" + _indented(problems.summary()))
    if errors:
        more = [f"... and {len(errors) - _MOST_ERRORS} more"] if len(errors) > _MOST_ERRORS else []
        listed = "\n".join([*map(printable, errors[:_MOST_ERRORS]), *more])
        report.append(f"{len(errors)} to be mended before training:\n{_indented(listed)}")
        raise ValueError("\n".join(report))
    report.append("All images can be loaded.")
    return "\n".join(report)


def describe(annotations: Annotations) -> str:
    """A split in a few lines: images, sizes, and a table of classes with COCO's small, medium and large objects."""
    images = annotations.images
    wanted = torch.cat([image.wanted for image in images])
    crowd = torch.cat([image.crowd for image in images])
    counts = torch.tensor([len(image.boxes) for image in images])
    widths, heights = [image.width for image in images], [image.height for image in images]
    lines = [
        f"{printable(annotations.name)}: {len(images)} images of {min(widths)}x{min(heights)} to "
        f"{max(widths)}x{max(heights)}, {int(wanted.sum())} objects of {len(annotations.categories)} classes, "
        f"{int(crowd.sum())} crowds; {int((counts == 0).sum())} images are empty, "
        f"at most {int(counts.max())} objects in one"
    ]
    numbers = _numbers_of_classes(annotations, wanted, counts)
    shown = range(len(numbers))
    if len(numbers) > FEW_CLASSES:  # a few photos of COCO need no eighty lines
        shown = [label for label in shown if numbers[label, 0]]
    rows = [("class", "objects", "images", "small", "medium", "large")]
    rows += [
        (short(annotations.categories[label].name, _LONGEST_NAME), *map(str, numbers[label].tolist()))
        for label in shown[:MANY_CLASSES]
    ]
    width = max(len(row[0]) for row in rows)
    lines += [f"  {name:<{width}}" + "".join(f"{count:>9}" for count in counts) for name, *counts in rows]
    if len(shown) > MANY_CLASSES:
        lines.append(f"  ... and {len(shown) - MANY_CLASSES} more classes with objects")
    return "\n".join(lines)


def _numbers_of_classes(annotations: Annotations, wanted: Tensor, counts: Tensor) -> np.ndarray:
    """[C, 5] int64: objects, images with such, and small, medium and large objects of each class."""
    images = annotations.images
    labels = torch.cat([image.labels for image in images])[wanted].numpy()  # [W] of the objects to be found
    areas = torch.cat([image.areas for image in images])[wanted].numpy()  # [W]
    image_index = torch.repeat_interleave(torch.arange(len(images)), counts)[wanted].numpy()  # [W]
    pairs = np.unique(labels * len(images) + image_index)  # a class and an image that has it

    def count(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=len(annotations.categories))

    objects, small, large = count(labels), count(labels[areas < _SMALL]), count(labels[areas > _LARGE])
    return np.stack([objects, count(pairs // len(images)), small, objects - small - large, large], axis=1)


def _decode_all(annotations: Annotations) -> Problems:
    """What loading every image would convert or refuse."""

    def decode(image: ImageRecord) -> Problems:
        found = Problems()
        if _inspect(image, found):
            try:
                load_image(image.file, annotated_size=(image.width, image.height))
            except (OSError, ValueError) as error:
                found.errors.append(f"{error} (image {image.id})")
        return found

    problems = Problems()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, annotations.images)
        for found in tqdm(
            results, printable(annotations.name), len(annotations.images), unit=" images", leave=False, disable=None
        ):
            problems.extend(found)
    return problems


def _inspect(image: ImageRecord, problems: Problems) -> bool:
    """Adds what the header of an image tells to `problems`; False if it cannot be loaded."""
    try:
        header = image_header(image.file)
        as_stored = annotated_as_stored(image.file, header, (image.width, image.height))
    except (OSError, ValueError) as error:
        problems.errors.append(f"{error} (image {image.id})")
        return False
    if header.kind is not None:
        problems.add(header.kind, short(image.file_name))
    if header.orientation != 1:
        problems.add("not_rotated" if as_stored else "rotated", short(image.file_name))
    return True


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
