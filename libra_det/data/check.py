"""Looks at the image files of a data set, and describes the whole of it for `libra check`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from libra_det.config import DataConfig
from libra_det.data.annotations import find_splits, load_annotations
from libra_det.data.image_file import annotated_as_stored, image_header
from libra_det.data.images import load_image
from libra_det.data.problems import AnnotationError, Problems
from libra_det.data.records import Annotations, ImageRecord

_HEADER_LIMIT = 5000  # images whose headers are read before training: a second or two
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
        report.append(f"{len(errors)} to be mended before training:\n" + _indented("\n".join(errors)))
        raise ValueError("\n".join(report))
    report.append("All images can be loaded.")
    return "\n".join(report)


def describe(annotations: Annotations) -> str:
    """A split in a few lines: images, sizes, and a table of classes with COCO's small, medium and large objects."""
    images = annotations.images
    labels = torch.cat([image.labels for image in images])
    crowd = torch.cat([image.crowd for image in images])
    wanted = torch.cat([image.wanted for image in images])
    areas = torch.cat([image.areas for image in images])
    counts = torch.tensor([len(image.boxes) for image in images])
    image_index = torch.repeat_interleave(torch.arange(len(images)), counts)  # of each object
    widths, heights = [image.width for image in images], [image.height for image in images]
    lines = [
        f"{annotations.name}: {len(images)} images of {min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}, "
        f"{int(wanted.sum())} objects of {len(annotations.categories)} classes, {int(crowd.sum())} crowds; "
        f"{int((counts == 0).sum())} images are empty, at most {int(counts.max())} objects in one"
    ]
    rows = [("class", "objects", "images", "small", "medium", "large")]
    for label, category in enumerate(annotations.categories):
        own = (labels == label) & wanted
        if not own.any() and len(annotations.categories) > 30:
            continue  # a few photos of COCO need no eighty lines
        small, large = own & (areas < _SMALL), own & (areas > _LARGE)
        row = (
            own.sum(),
            image_index[own].unique().numel(),
            small.sum(),
            own.sum() - small.sum() - large.sum(),
            large.sum(),
        )
        rows.append((category.name, *(str(int(count)) for count in row)))
    width = max(len(row[0]) for row in rows)
    lines += [f"  {name:<{width}}" + "".join(f"{count:>9}" for count in counts) for name, *counts in rows]
    return "\n".join(lines)


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
        for found in tqdm(results, annotations.name, len(annotations.images), unit=" images", leave=False):
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
        problems.add(header.kind, image.file_name)
    if header.orientation != 1:
        problems.add("not_rotated" if as_stored else "rotated", image.file_name)
    return True


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
