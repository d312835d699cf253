"""Reads the annotations of a data set, in whichever of the usual layouts and formats they come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libra_det.config import DataConfig
from libra_det.data.coco import file_categories, read_coco, read_json
from libra_det.data.problems import Problems
from libra_det.data.records import Annotations, Category, ImageRecord
from libra_det.data.voc import read_voc
from libra_det.file_names import ImageFiles, name_mistake
from libra_det.layouts import data_folder, find_source, find_sources, find_splits

__all__ = ["Annotations", "Category", "ImageRecord", "Problems", "find_splits", "load_annotations"]

_SAMPLED_IMAGES = 20  # that are looked for in the folders where images may be


def load_annotations(config: DataConfig, split: str, categories: Sequence[Category] | None = None) -> Annotations:
    """Reads one split of `config.data`.

    Args:
        split: the name of a split, such as train, val or test. `train_annotations` and `eval_annotations`
            replace the file of `train_split` and `eval_split`.
        categories: the classes trained on, which decide the labels: `Annotations.categories` of the training split, or
            what a checkpoint was trained with. None: those of `train_split` if it is there, else the split's own.

    Returns:
        the annotations, with what was handled counted in `problems`.

    Raises:
        FileNotFoundError: if no layout was found; says which files were looked for.
        ValueError: listing the mistakes in the annotations by file and annotation. Images are not opened
            (unless their size is not annotated): `DetectionDataset` says which are missing, `check_data` decodes all.
    """
    source = find_source(config, split)
    if categories is None and split != config.train_split:
        categories = _training_categories(config)
    if source.voc_root is not None:
        return read_voc(source.voc_root, source.file, split, categories, allow_outside=config.allow_outside)
    content = read_json(source.file)
    return read_coco(source.file, content, _image_files(config, source.file, content), split, categories)


def _image_files(config: DataConfig, file: Path, content: dict[str, Any]) -> ImageFiles:
    """Where the images of a COCO file are: in the folder that holds most of some of them, the first of such."""
    folder = data_folder(config)
    bases = [file.parent] if folder is None else [folder, file.parent]
    if config.image_folder is not None:
        given = os.path.expanduser(config.image_folder)
        tried = [Path(given), *(base / given for base in bases)]
        candidates = [candidate for candidate in tried if os.path.isdir(candidate)]
        if not candidates:
            raise FileNotFoundError(f"image_folder: expected a folder, but none of {', '.join(map(str, tried))} is one")
    else:
        split = file.stem.removeprefix("instances_")
        candidates = [base / part for base in bases for part in ("", split, "images", f"images/{split}")]
    entries = content["images"]
    sampled = [entry.get("file_name") for entry in entries[:: -(-len(entries) // _SAMPLED_IMAGES)]]
    names = [name for name in sampled if name_mistake(name) is None]
    places = [ImageFiles(candidate, [*bases, candidate], config.allow_outside) for candidate in candidates]
    return max(places, key=lambda place: sum(map(place.has, names)))


def _training_categories(config: DataConfig) -> tuple[Category, ...] | None:
    """The classes of the training split; none if the data set has no such split."""
    if not find_sources(config, config.train_split):
        return None
    source = find_source(config, config.train_split)
    if source.voc_root is not None:
        return load_annotations(config, config.train_split).categories
    return file_categories(source.file, read_json(source.file)["categories"])
