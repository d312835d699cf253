"""Images to predict: found in folders, and read by workers into batches of one padded size.

Images of a batch have the same padded size, so that what is found in one does not depend on the others in its batch: a
detector sees the padding (the balanced pyramid averages over it), and one image alone has the least.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from libra_det.config import DataConfig
from libra_det.data.image_file import SUFFIXES, image_size, open_image
from libra_det.data.images import load_image, pad, resize, resized_size
from libra_det.structures import Batch

DRAWN_BY = b"drawn by libra predict"
"""JPEG comment of the pictures, by which a later call tells them from photos."""


class Source(NamedTuple):
    """An image to predict."""

    file: Path
    file_name: str  # relative to the folder that was searched, but with it where two agree; or the file as it was given
    picture: Path  # under the output folder


class PhotoBatch(NamedTuple):
    """Images read together, or images that cannot be read: then there is no `batch`, but one of `errors` for each."""

    index: list[int]  # positions among the sources
    batch: Batch | None
    errors: list[str]  # by `index`, where there is no batch


def find_images(inputs: Sequence[Path]) -> list[Source]:
    """The given files and, sorted, all images in the given folders but those that `predict_files` has drawn.

    Raises:
        FileNotFoundError: a folder or file is missing, or a folder holds no images.
    """
    files = []
    for path in inputs:
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found = [file for file in images if not is_drawing(file)]
            if not found:
                besides = " but pictures that libra predict has drawn" if images else ""
                raise FileNotFoundError(
                    f"{path}: no images in this folder{besides}; expected files ending in {', '.join(SUFFIXES)}"
                )
            names = [file.relative_to(path) for file in found]
            files += [
                Source(file, name.as_posix(), name.with_suffix(".jpg")) for file, name in zip(found, names, strict=True)
            ]
        elif path.exists():
            files.append(Source(path, str(path), Path(path.with_suffix(".jpg").name)))
        else:
            raise FileNotFoundError(f"{path}: no such image file or folder")
    uses = Counter(source.file_name for source in files)
    return [source if uses[source.file_name] == 1 else source._replace(file_name=str(source.file)) for source in files]


def is_drawing(file: Path) -> bool:
    """True for a picture that `predict_files` has drawn."""
    if file.suffix != ".jpg":
        return False
    try:
        with open_image(file) as image:
            return image.info.get("comment") == DRAWN_BY
    except (OSError, ValueError):  # a damaged file, which is not ours then
        return False


def by_padded_size(sizes: Sequence[tuple[int, int] | None], config: DataConfig, batch_size: int) -> list[list[int]]:
    """Positions of images, at most `batch_size` together and only of one padded size, smallest sizes first.

    Args:
        sizes: width and height of each image; None for one that goes alone.
        config: its sizes are used.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    batches = [[position] for position, size in enumerate(sizes) if size is None]
    for position, size in enumerate(sizes):
        if size is not None:
            width, height = resized_size(*size, config)
            divisor = config.size_divisor
            groups.setdefault((-(-height // divisor), -(-width // divisor)), []).append(position)
    for key in sorted(groups):
        group = groups[key]
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def read_photos(
    sources: Sequence[Source], config: DataConfig, *, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[PhotoBatch]:
    """All images, in batches of one padded size; an image that cannot be read comes alone, with the reason.

    Args:
        config: short_side, long_side, size_divisor and antialias are used.
        workers: processes that read ahead; 0 reads in this one.
    """
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_size_or_none, [source.file for source in sources]))
    batches = by_padded_size(sizes, config, batch_size)
    workers = min(workers, len(batches))
    loader = DataLoader(
        _Photos([[sources[position].file for position in batch] for batch in batches], config),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        # Forked workers start in milliseconds; they touch no GPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for batch, read in zip(batches, loader, strict=True):
        good = [position for position, error in zip(batch, read.errors, strict=True) if not error]
        bad = [(position, error) for position, error in zip(batch, read.errors, strict=True) if error]
        if bad:
            yield PhotoBatch([position for position, _ in bad], None, [error for _, error in bad])
        if good:
            yield PhotoBatch(good, read.batch, [])


class _Read(NamedTuple):
    """What a worker sends: the images that could be read, and an error or "" for each."""

    batch: Batch | None
    errors: list[str]

    def pin_memory(self) -> _Read:
        return self._replace(batch=None if self.batch is None else self.batch.pin_memory())


class _Photos(Dataset[_Read]):
    """Batch i: the images of `batches[i]`, resized and padded."""

    def __init__(self, batches: list[list[Path]], config: DataConfig) -> None:
        self.batches = batches
        self.config = config

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Read:
        images: list[Tensor] = []
        originals: list[tuple[int, ...]] = []
        errors = []
        for file in self.batches[index]:
            try:
                image = load_image(file)
            except (OSError, ValueError) as error:
                errors.append(str(error) if str(file) in str(error) else f"{file}: {error}")
                continue
            errors.append("")
            size = resized_size(image.shape[2], image.shape[1], self.config)
            images.append(resize(image, *size, self.config.antialias))
            originals.append(tuple(image.shape[1:]))
        if not images:
            return _Read(None, errors)
        padded, sizes = pad(images, self.config.size_divisor)
        original_sizes = torch.tensor(originals, dtype=torch.float32)  # [B, 2] height, width
        return _Read(Batch(padded, sizes, original_sizes, None, list(range(len(images))), [""] * len(images)), errors)


def _size_or_none(file: Path) -> tuple[int, int] | None:
    """Width and height as displayed; None for a file that will turn out to be no image."""
    try:
        return image_size(file)
    except (OSError, ValueError):
        return None
