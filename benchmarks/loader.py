"""Our data loader: JPEG files to batches, by so many processes."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks import photos
from benchmarks.case import OURS, Case, Plan, Side
from libra_det.config import DataConfig
from libra_det.data import DetectionDataset, load_annotations, make_loader
from libra_det.data.shapes import draw_data_set

TITLE = "Data loader"
AXIS = "processes"
OURS_IS = "libra_det"
TEXT = """\
*libra_det*: `libra_det.data.make_loader` as training has it: JPEG decoding, resizing, flips, collation into padded
batches; nothing is cached. Photos of 640 x 480 pixels (BCCD where `LIBRA_DATA` is set, else drawn shapes of 160 x 160).
*decode_jpeg on the GPU*: torchvision's decoder (nvJPEG) of the same files, and the resizing there, in this process;
measured only, our loader does not use it."""
GPU_DECODE = "decode_jpeg on the GPU"
# Shorter and longer side at most. Photos of 640 x 480 have then as many pixels as the training step's images, which for
# COCO are 800 x 1344.
SMALL_SIZE, COCO_SIZE = (240, 320), (898, 1344)


def case_name(size: tuple[int, int], workers: int) -> str:
    return f"{size[0]} / {size[1]}, {workers} process{'' if workers == 1 else 'es'}"


def cases(plan: Plan) -> list[Case]:
    cores = len(os.sched_getaffinity(0))
    if plan.sizes == "tiny":
        return [_case(plan, (48, 64), 1, batch=2, batches=2)]
    numbers = sorted({1, *(2**power for power in range(1, 7) if 2**power < cores), cores})
    if plan.sizes == "quick":
        numbers = sorted({1, cores})
    if plan.cuda:
        found = [_case(plan, COCO_SIZE, workers, batch=16, batches=max(4, 2 * workers)) for workers in numbers]
        return [*found, _on_the_gpu(plan, COCO_SIZE, images=64)]
    small = [_case(plan, SMALL_SIZE, workers, batch=4, batches=24) for workers in numbers]
    return small + plan.choose(
        full=[_case(plan, COCO_SIZE, workers, batch=4, batches=8) for workers in numbers], quick=[], tiny=[]
    )


class Loading:
    """Reads batches of an epoch that is long enough, from where it was: starting the processes is not in the time."""

    def __init__(self, size: tuple[int, int], workers: int, batch: int, batches: int, device: torch.device) -> None:
        self.size, self.workers, self.batch, self.batches, self.device = size, workers, batch, batches, device
        self._batches: Iterator[Any] | None = None

    def __call__(self) -> None:
        for _ in range(self.batches):
            self._next()

    def _next(self) -> None:
        if self._batches is None:
            self._batches = iter(self._endless())
        next(self._batches)

    def _endless(self) -> Iterator[Any]:
        dataset = _dataset(self.size, self.workers, self.batch)
        positions = [index % len(dataset) for index in range(self.batch * 10_000)]
        order = [positions[start : start + self.batch] for start in range(0, len(positions), self.batch)]
        yield from make_loader(dataset, device=self.device, batches=order)

    def release(self) -> None:
        self._batches = None


@functools.cache
def _drawn() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="libra-benchmarks-")
    draw_data_set(Path(folder.name), {"train": 32, "val": 1})
    return folder


@functools.cache
def _dataset(size: tuple[int, int], workers: int, batch: int) -> DetectionDataset:
    place = photos.folder() or Path(_drawn().name)
    config = DataConfig(
        data=str(place), short_side=size[0], long_side=size[1], antialias=False, batch_size=batch, workers=workers
    )
    return DetectionDataset(load_annotations(config, "train"), config, training=True, seed=0)


def decode_on_gpu(size: tuple[int, int], images: int, device: torch.device) -> None:
    """Files to resized images on the GPU, in this process."""
    records = _dataset(size, 0, 1).images
    files = [torchvision.io.read_file(str(records[index % len(records)].file)) for index in range(images)]
    for image in torchvision.io.decode_jpeg(files, torchvision.io.ImageReadMode.RGB, device=device):
        scale = min(size[0] / min(image.shape[1:]), size[1] / max(image.shape[1:]))
        target = [round(side * scale) for side in image.shape[1:]]
        torchvision.transforms.v2.functional.resize(image, target, antialias=False)


def _case(plan: Plan, size: tuple[int, int], workers: int, batch: int, batches: int) -> Case:
    loading = Loading(size, workers, batch, batches, plan.device)
    sides = {OURS: Side(loading, release=loading.release)}
    return _of(plan, case_name(size, workers), workers, batch * batches, sides, size == COCO_SIZE)


def _on_the_gpu(plan: Plan, size: tuple[int, int], images: int) -> Case:
    """Apart from the others: while it ran in turns with them, their processes would load ahead."""
    sides = {
        OURS: Side(_nothing, not_run="decodes in its processes"),
        GPU_DECODE: Side(
            lambda: decode_on_gpu(size, images, plan.device), note="decodes and resizes, no augmentation or collation"
        ),
    }
    return _of(plan, f"{size[0]} / {size[1]}, on the GPU", 1, images, sides, plot=False)


def _of(plan: Plan, name: str, workers: int, images: int, sides: dict[str, Side], plot: bool) -> Case:
    return Case(
        "loader",
        name,
        workers,
        _nothing,
        sides,
        goal=workers == len(os.sched_getaffinity(0)),
        whole=True,
        fewest=1 if plan.sizes == "tiny" else 3,
        images=images,
        extra={"plot": plot, "source": photos.source()},
    )


def _nothing(*_: object) -> tuple[Tensor, ...]:
    return ()
