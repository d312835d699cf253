"""Finds the annotations of a data set, in whichever of the usual layouts it comes, and reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from libra_det.config import DataConfig
from libra_det.data.coco import file_categories, read_coco, read_json
from libra_det.data.problems import Problems
from libra_det.data.records import Annotations, Category, ImageRecord
from libra_det.data.shapes import shapes_folder
from libra_det.data.voc import read_voc

__all__ = ["Annotations", "Category", "ImageRecord", "Problems", "find_splits", "load_annotations"]

LAYOUTS = """\
Understood are
  COCO JSON      <split>.json, annotations/<split>.json, or, as COCO itself, annotations/instances_<split>2017.json with
                 the images in <split>2017/; as exported by some tools, <split>/_annotations.coco.json
  Pascal VOC     Annotations/*.xml, JPEGImages/ and ImageSets/Main/<split>.txt, in the folder or in one folder below
Files of other names: train_annotations, eval_annotations and image_folder; other splits: train_split and eval_split."""

_SAMPLED_IMAGES = 20  # that are looked for in the folders where images may be
_SPLIT_NAMES = {"val": ("val", "valid", "validation")}


class _Source(NamedTuple):
    """Where a split is: a COCO JSON file, or the list of a VOC split with the folder it belongs to."""

    file: Path
    voc_root: Path | None


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
    source = _find(config, split)
    if categories is None and split != config.train_split:
        categories = _training_categories(config)
    if source.voc_root is not None:
        return read_voc(source.voc_root, source.file, split, categories)
    content = read_json(source.file)
    return read_coco(source.file, content, _image_folder(config, source.file, content), split, categories)


def find_splits(config: DataConfig) -> list[str]:
    """Names of the splits of `config.data`: train_split, eval_split and then others that are there, such as test.

    Raises:
        FileNotFoundError: if there is none.
    """
    names = list(dict.fromkeys([config.train_split, config.eval_split, "train", "val", "test"]))
    found = [name for name in names if _sources(config, name)]
    if not found:
        _find(config, config.train_split)  # raises the error that says what was looked for
    return found


def _find(config: DataConfig, split: str) -> _Source:
    sources = _sources(config, split)
    folder = _folder(config)
    if not sources and folder is None:
        field = "train_annotations" if split == config.train_split else "eval_annotations"
        raise FileNotFoundError(
            f"{field}: needed for split {split!r}, as data ({config.data}) is not a folder to look into"
        )
    if not sources:
        looked_for = "".join(f"\n  {file}" for file in _coco_candidates(folder, split) + _voc_candidates(folder, split))
        others = [name for name in ("train", "val", "test") if _in_folder(folder, name)]
        raise FileNotFoundError(
            f"{config.data}: no annotations of split {split!r}{_hint(config, split, others)}; looked for{looked_for}\n"
            f"{LAYOUTS}"
        )
    if len(sources) > 1 and sources[0].voc_root is not None:
        folders = ", ".join(str(source.voc_root) for source in sources)
        raise ValueError(
            f"{config.data}: several VOC folders have a split {split!r}: {folders}; give one of them as data"
        )
    return sources[0]


def _hint(config: DataConfig, split: str, others: list[str]) -> str:
    """How to take a split that is there in place of one that is not."""
    if not others:
        return ""
    there = f"; there is {', '.join(others)}: "
    if split == config.train_split != config.eval_split:
        return f"{there}--train-split {others[0]} trains on it"
    return f"{there}--eval-split {others[-1]} evaluates on it (for `libra eval`: --split {others[-1]})"


def _sources(config: DataConfig, split: str) -> list[_Source]:
    """Where the split is, COCO JSON before VOC; more than one where the folder has several."""
    explicit = _explicit_file(config, split)
    if explicit is not None:
        return [_Source(explicit, None)]
    folder = _folder(config)
    return [] if folder is None else _in_folder(folder, split)


def _in_folder(folder: Path, split: str) -> list[_Source]:
    found = [_Source(file, None) for file in _coco_candidates(folder, split) if file.is_file()]
    return found or [_Source(file, file.parents[2]) for file in _voc_candidates(folder, split) if file.is_file()]


def _folder(config: DataConfig) -> Path | None:
    """The data set's folder; the embedded one is drawn first if need be. None if there are only explicit files."""
    explicit = config.train_annotations or config.eval_annotations
    if config.data == "shapes":
        return None if explicit else shapes_folder()
    folder = Path(config.data).expanduser()
    if folder.is_dir():
        return folder
    if explicit:
        return None
    kind = "is a file" if folder.exists() else "does not exist"
    raise FileNotFoundError(
        f"data: expected a folder with annotations or 'shapes', got {config.data!r}, which {kind}\n{LAYOUTS}"
    )


def _explicit_file(config: DataConfig, split: str) -> Path | None:
    choices = {"train_annotations": config.train_annotations, "eval_annotations": config.eval_annotations}
    for (field, given), name in zip(choices.items(), (config.train_split, config.eval_split), strict=True):
        if given is None or name != split:
            continue
        tried = [Path(given).expanduser(), Path(config.data).expanduser() / given]
        for file in tried:
            if file.is_file():
                return file
        raise FileNotFoundError(f"{field}: expected a COCO JSON file, but neither {tried[0]} nor {tried[1]} is there")
    return None


def _coco_candidates(folder: Path, split: str) -> list[Path]:
    candidates: list[Path] = []
    listed = sorted((folder / "annotations").glob("instances_*.json"), reverse=True)  # the newest year first
    for name in _SPLIT_NAMES.get(split, (split,)):
        official = re.compile(rf"instances_{re.escape(name)}(\d{{4}})?\.json")
        candidates += [folder / f"{name}.json", folder / "annotations" / f"{name}.json"]
        candidates += [file for file in listed if official.fullmatch(file.name)] or [
            folder / "annotations" / f"instances_{name}.json"
        ]
        candidates.append(folder / name / "_annotations.coco.json")
    return candidates


def _voc_candidates(folder: Path, split: str) -> list[Path]:
    inside = sorted(child for child in folder.iterdir() if (child / "Annotations").is_dir())
    roots = [folder] if (folder / "Annotations").is_dir() or not inside else inside
    return [root / "ImageSets" / "Main" / f"{split}.txt" for root in roots]


def _image_folder(config: DataConfig, file: Path, content: dict[str, Any]) -> Path:
    """The folder that file names are relative to: the one that holds most of some images, the first of such."""
    folder = _folder(config)
    bases = [file.parent] if folder is None else [folder, file.parent]
    if config.image_folder is not None:
        tried = [Path(config.image_folder).expanduser(), *(base / config.image_folder for base in bases)]
        candidates = [candidate for candidate in tried if candidate.is_dir()]
        if not candidates:
            raise FileNotFoundError(f"image_folder: expected a folder, but none of {', '.join(map(str, tried))} is one")
    else:
        split = file.stem.removeprefix("instances_")
        candidates = [base / part for base in bases for part in ("", split, "images", f"images/{split}")]
    entries = content["images"]
    sampled = [entry.get("file_name") for entry in entries[:: -(-len(entries) // _SAMPLED_IMAGES)]]
    names = [name for name in sampled if isinstance(name, str)]
    return max(candidates, key=lambda folder: sum((folder / name).is_file() for name in names))


def _training_categories(config: DataConfig) -> tuple[Category, ...] | None:
    """The classes of the training split; none if the data set has no such split."""
    if not _sources(config, config.train_split):
        return None
    source = _find(config, config.train_split)
    if source.voc_root is not None:
        return read_voc(source.voc_root, source.file, config.train_split, None).categories
    return file_categories(source.file, read_json(source.file)["categories"])
