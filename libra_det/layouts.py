"""Finds the files of a data set's annotations, in whichever of the usual layouts they come.

Nothing heavy is imported here, so that `libra check` answers a wrong path at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from libra_det.config import DataConfig
from libra_det.file_names import is_file
from libra_det.terminal import shown

LAYOUTS = """\
Understood are
  COCO JSON      <split>.json, annotations/<split>.json, or, as COCO itself, annotations/instances_<split>2017.json with
                 the images in <split>2017/; as exported by some tools, <split>/_annotations.coco.json
  Pascal VOC     Annotations/*.xml, JPEGImages/ and ImageSets/Main/<split>.txt, in the folder or in one folder below
Files of other names: train_annotations, eval_annotations and image_folder; other splits: train_split and eval_split."""

_SPLIT_NAMES = {"val": ("val", "valid", "validation")}


class Source(NamedTuple):
    """Where a split is: a COCO JSON file, or the list of a VOC split with the folder it belongs to."""

    file: Path
    voc_root: Path | None


def find_splits(config: DataConfig) -> list[str]:
    """Names of the splits of `config.data`: train_split, eval_split and then others that are there, such as test.

    Raises:
        FileNotFoundError: if there is none.
    """
    names = list(dict.fromkeys([config.train_split, config.eval_split, "train", "val", "test"]))
    found = [name for name in names if find_sources(config, name)]
    if not found:
        find_source(config, config.train_split)  # raises the error that says what was looked for
    return found


def find_source(config: DataConfig, split: str) -> Source:
    """Where a split of `config.data` is.

    Raises:
        FileNotFoundError: if it is nowhere; says which files were looked for.
        ValueError: if several VOC folders have it.
    """
    sources = find_sources(config, split)
    folder = data_folder(config)
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


def find_sources(config: DataConfig, split: str) -> list[Source]:
    """Where the split is, COCO JSON before VOC; more than one where the folder has several."""
    explicit = _explicit_file(config, split)
    if explicit is not None:
        return [Source(explicit, None)]
    folder = data_folder(config)
    return [] if folder is None else _in_folder(folder, split)


def data_folder(config: DataConfig) -> Path | None:
    """The data set's folder; the embedded one is drawn first if need be. None if there are only explicit files."""
    explicit = config.train_annotations or config.eval_annotations
    if config.data == "shapes":
        if explicit:
            return None
        from libra_det.data.shapes import shapes_folder  # which draws, with numpy and PIL

        return shapes_folder()
    folder = _user_path(config.data)
    if os.path.isdir(folder):
        return folder
    if explicit:
        return None
    kind = "is a file" if is_file(folder) else "does not exist"
    raise FileNotFoundError(
        f"data: expected a folder with annotations or 'shapes', got {shown(config.data)}, which {kind}\n{LAYOUTS}"
    )


def _hint(config: DataConfig, split: str, others: list[str]) -> str:
    """How to take a split that is there in place of one that is not."""
    if not others:
        return ""
    there = f"; there is {', '.join(others)}: "
    if split == config.train_split != config.eval_split:
        return f"{there}--train-split {others[0]} trains on it"
    return f"{there}--eval-split {others[-1]} evaluates on it (for `libra eval`: --split {others[-1]})"


def _in_folder(folder: Path, split: str) -> list[Source]:
    found = [Source(file, None) for file in _coco_candidates(folder, split) if is_file(file)]
    return found or [Source(file, file.parents[2]) for file in _voc_candidates(folder, split) if is_file(file)]


def _explicit_file(config: DataConfig, split: str) -> Path | None:
    choices = {"train_annotations": config.train_annotations, "eval_annotations": config.eval_annotations}
    for (field, given), name in zip(choices.items(), (config.train_split, config.eval_split), strict=True):
        if given is None or name != split:
            continue
        tried = [_user_path(given), _user_path(config.data) / given]
        for file in tried:
            if is_file(file):
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
    inside = sorted(child for child in folder.iterdir() if os.path.isdir(child / "Annotations"))
    roots = [folder] if os.path.isdir(folder / "Annotations") or not inside else inside
    return [root / "ImageSets" / "Main" / f"{split}.txt" for root in roots]


def _user_path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # Path.expanduser ends with a RuntimeError where there is no such user
