"""Proposals of a whole data set in one file, from which the few of an image are read without loading the rest.

A safetensors file, which holds plain tensors (nothing in it is executed), is mapped into memory and can be inspected
with other tools:

    boxes       [T, 4] float32 xyxy in pixels of the original images, the images one after the other, best first
    scores      [T] float16 in 0..1; the order of the boxes, not these, tells which is better
    offsets     [I + 1] int64: image i has the boxes offsets[i] to offsets[i + 1]
    image_ids   [I] int64, as in the annotations
    file_names  [N] uint8: the images' names, UTF-8 with a zero byte between

and as metadata what the proposals come from. Boxes keep float32, as float16 would move those of a photo of 640 pixels
by up to a quarter of a pixel. T boxes of I images, P of one image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from libra_det.data.records import ImageRecord
from libra_det.file_names import is_file
from libra_det.files import make_folder, whole_file
from libra_det.terminal import short, shown

FORMAT = "libra proposals 1"
_TENSORS = {
    "boxes": ("F32", ("T", 4)),
    "scores": ("F16", ("T",)),
    "offsets": ("I64", ("I + 1",)),
    "image_ids": ("I64", ("I",)),
    "file_names": ("U8", ("N",)),
}
_LONGEST_NAME = 10_000  # bytes of a file name, so that a file of many names takes no more memory than one of images
_FARTHEST = 1e7  # pixels from the corner of any image; farther away boxes are nonsense, and would become infinite
_LONGEST_HEADER = 2**20  # bytes; five tensors and what they come from take less than a thousandth
_SHOWN = 5  # images that a message names
_HOW = "`libra proposals RUN --split SPLIT --output FILE` computes them"


class ProposalWriter:
    """Collects proposals image by image and writes them at the end.

    Args:
        file: where to.
        images: how many there will be at most.
        limit: most proposals of one image.
    """

    def __init__(self, file: Path, images: int, limit: int) -> None:
        self.file, self.limit = file, limit
        # Memory that is never written to is never taken, so room for the most there can be costs nothing.
        self._boxes = np.empty((images * limit, 4), dtype=np.float32)
        self._scores = np.empty(images * limit, dtype=np.float16)
        self._offsets, self._image_ids, self._file_names = [0], [], []

    def add(self, image_id: int, file_name: str, boxes: Tensor, scores: Tensor) -> None:
        """The proposals of the next image: boxes [P, 4] in its original pixels, scores [P], best first, P <= limit."""
        start, end = self._offsets[-1], self._offsets[-1] + len(boxes)
        self._boxes[start:end] = boxes.numpy()
        self._scores[start:end] = scores.numpy()
        self._offsets.append(end)
        self._image_ids.append(image_id)
        self._file_names.append(file_name)

    def write(self, **facts: Any) -> int:
        """Writes the file, in one step as others see it; `facts` say what the proposals come from. Returns T.

        Raises:
            NotWritten: there is no room for the file, or the system refuses otherwise.
        """
        total = self._offsets[-1]
        tensors = {
            "boxes": self._boxes[:total],
            "scores": self._scores[:total],
            "offsets": np.array(self._offsets, dtype=np.int64),
            "image_ids": np.array(self._image_ids, dtype=np.int64),
            "file_names": np.frombuffer("\0".join(self._file_names).encode(errors="surrogatepass"), dtype=np.uint8),
        }
        metadata = {"format": FORMAT, "limit": str(self.limit), **{name: str(value) for name, value in facts.items()}}
        make_folder(self.file.parent)
        with whole_file(self.file, needed=sum(values.nbytes for values in tensors.values())) as unfinished:
            save_file(tensors, unfinished, metadata)
        return total


class ProposalFile:
    """A file of proposals, mapped into memory.

    Args:
        file: what `ProposalWriter` wrote.

    Attributes:
        facts: what the proposals come from, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is something else. Only the boxes and scores themselves are looked at later, when
            those of an image are read: at the size of COCO, to read them all takes as long as to read the annotations.
    """

    def __init__(self, file: Path | str) -> None:
        self.file = Path(os.path.expanduser(file))
        if not is_file(self.file):
            raise FileNotFoundError(f"proposals: there is no file {self.file}; {_HOW}")
        try:
            self._open()
            self.facts = dict(self._stream.metadata() or {})
            if self.facts.get("format") != FORMAT:
                raise ValueError(f"its format is {shown(self.facts.get('format'))} instead of {FORMAT!r}")
            self._read_index(self._checked_shapes())
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"proposals: {self.file} is not what `libra proposals` writes ({short(str(error))}); {_HOW}"
            ) from error

    def _checked_shapes(self) -> dict[str, list[int]]:
        """The shape of each tensor, none of which is read. A ValueError says which is not as it has to be."""
        missing = _TENSORS.keys() - set(self._stream.keys())
        if missing:
            raise ValueError(f"it has no tensor {', '.join(sorted(missing))}")
        shapes = {}
        for name, (dtype, wanted) in _TENSORS.items():
            tensor = self._stream.get_slice(name)
            shape = shapes[name] = tensor.get_shape()
            fits = len(shape) == len(wanted) and shape[1:] == list(wanted[1:])
            if tensor.get_dtype() != dtype or not fits:
                expected = ", ".join(map(str, wanted))
                raise ValueError(f"{name}: expected {dtype} [{expected}], got {tensor.get_dtype()} {short(shape)}")
        for name, other, size in (("scores", "boxes", 0), ("offsets", "image_ids", 1)):
            if shapes[name][0] != shapes[other][0] + size:
                raise ValueError(
                    f"{name}: expected {shapes[other][0] + size} numbers for {shapes[other][0]} {other}, "
                    f"got {shapes[name][0]}"
                )
        return shapes

    def _read_index(self, shapes: dict[str, list[int]]) -> None:
        """What is read of all images: where their boxes are, their ids and names."""
        total, images = shapes["boxes"][0], shapes["image_ids"][0]
        self._offsets = self._stream.get_tensor("offsets")
        if self._offsets[0] != 0 or self._offsets[-1] != total or (self._offsets[1:] < self._offsets[:-1]).any():
            raise ValueError(f"offsets: expected numbers that rise from 0 to the {total} boxes")
        image_ids = self._stream.get_tensor("image_ids").tolist()
        self._place = {image_id: place for place, image_id in enumerate(image_ids)}
        if len(self._place) != images:
            raise ValueError(f"image_ids: {images - len(self._place)} are there more than once")
        if shapes["file_names"][0] > images * _LONGEST_NAME:
            raise ValueError(f"file_names: {shapes['file_names'][0]} bytes are too many for {images} images")
        names = self._stream.get_tensor("file_names").tobytes().decode(errors="surrogatepass")
        self._file_names = names.split("\0") if images else []
        if len(self._file_names) != images:
            raise ValueError(f"file_names: expected {images}, one for each image, got {len(self._file_names)}")

    def read(self, image_id: int, limit: int) -> tuple[Tensor, Tensor]:
        """The best proposals of an image: boxes [P, 4] float32 xyxy in its original pixels, scores [P] float32.

        Raises:
            KeyError: the image is not in the file; `check` tells all such.
            ValueError: a box or a score of the image is none.
        """
        place = self._place[image_id]
        start = int(self._offsets[place])
        end = min(int(self._offsets[place + 1]), start + limit)
        if start == end:  # safetensors takes an empty slice at the end for an error
            return torch.zeros(0, 4), torch.zeros(0)
        boxes, scores = (self._stream.get_slice(name)[start:end] for name in ("boxes", "scores"))
        # NaN fails every comparison.
        if not (np.abs(boxes) <= _FARTHEST).all() or not (boxes[:, :2] <= boxes[:, 2:]).all():
            what = "a box that is NaN, infinite, inverted or far outside"
        elif not ((scores >= 0) & (scores <= 1)).all():
            what = "a score that is not in 0..1"
        else:
            return torch.from_numpy(boxes), torch.from_numpy(scores).float()
        raise ValueError(
            f"proposals: {self.file} has {what} for image {image_id} ({short(self._file_names[place])}); {_HOW}"
        )

    def most(self, images: Sequence[ImageRecord]) -> int:
        """The largest number of proposals that one of `images` has."""
        counts = np.diff(self._offsets)
        return max((int(counts[self._place[image.id]]) for image in images), default=0)

    def check(self, images: Sequence[ImageRecord], name: str) -> None:
        """Makes sure that the file was computed for these images.

        Args:
            images: what will be read.
            name: what they are called in messages, such as the split's name.

        Raises:
            ValueError: counting and naming images that the file lacks, or that it knows as another file.
        """
        missing = [image for image in images if image.id not in self._place]
        if missing:
            raise ValueError(
                f"proposals: {self.file} has none for {len(missing)} of the {len(images)} images of {name}: "
                f"{_some(missing, lambda image: f'{short(image.file_name)} (id {image.id})')}; {self._source()}. {_HOW}"
            )
        others = [image for image in images if self._name(image.id) != image.file_name]
        if others:
            raise ValueError(
                f"proposals: {self.file} is of other images: {len(others)} of the {len(images)} ids of {name} belong "
                f"to other files there (id {_some(others, self._other_name)}); {self._source()}. {_HOW}"
            )

    def _name(self, image_id: int) -> str:
        return self._file_names[self._place[image_id]]

    def _other_name(self, image: ImageRecord) -> str:
        return f"{image.id} is {short(image.file_name)}, there {short(self._name(image.id))}"

    def _source(self) -> str:
        facts = (f"{name} {short(self.facts[name])}" for name in ("model", "data", "split") if name in self.facts)
        return f"it holds {len(self._place)} images ({', '.join(facts)})"

    def _open(self) -> None:
        _check_header(self.file)
        self._stream = safe_open(self.file, framework="numpy")

    def __getstate__(self) -> dict[str, Any]:
        """Processes that are spawned instead of forked open the file again."""
        return {key: value for key, value in self.__dict__.items() if key != "_stream"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _check_header(file: Path) -> None:
    """A ValueError if the header is longer than any that is written: safetensors takes kilobytes for each tensor of it.

    A safetensors file begins with 8 bytes that tell its length.
    """
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, more than the {_LONGEST_HEADER} that one may have")


def _some(images: Sequence[ImageRecord], name: Callable[[ImageRecord], str]) -> str:
    more = len(images) - _SHOWN
    return ", ".join(map(name, images[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
