"""From annotations to batches of one shape: the same order and the same augmentation whatever the number of workers.

B images of a batch, G target slots, P proposals, H x W pixels of the padded images. Boxes are xyxy in continuous
pixels.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from libra_det.config import DataConfig
from libra_det.data.augment import augment, jitter_factor, resize_boxes
from libra_det.data.cache import ImageCache
from libra_det.data.check import check_files
from libra_det.data.images import load_image, pad, resize, resized_size
from libra_det.data.problems import Problems
from libra_det.data.proposal_file import ProposalFile
from libra_det.data.records import Annotations, ImageRecord
from libra_det.data.sampler import PlannedBatch, Size, assign, choose_buckets, plan_batches
from libra_det.structures import Batch, Proposals, Targets

_SLOT_MULTIPLE = 8  # target slots are a multiple of this, so that few shapes are ever compiled


class Sample(NamedTuple):
    """One image as it enters a batch."""

    image: Tensor  # uint8 [3, H, W], resized
    boxes: Tensor  # float32 [G, 4], in pixels of `image`
    record: ImageRecord
    proposals: Tensor  # float32 [P, 4], in pixels of `image`; none but where the config names a file of them
    proposal_scores: Tensor  # float32 [P]


class DetectionDataset(Dataset[Sample]):
    """Images of a split with their objects, resized, and changed at random if it is for training.

    Args:
        annotations: what `load_annotations` gave.
        config: sizes, augmentation, batch size and workers.
        training: augment, shuffle, and leave out images without objects if `skip_empty`; an image with only crowd
            regions and difficult objects has nothing to find and counts as one without.
        seed: with the epoch and the index of an image it decides every random choice.

    `problems` counts what was handled in the annotations and, in data sets of up to 5000 images, what will be in the
    images (such as grayscale ones), whose headers are read for it. `target_slots` is G, `proposal_slots` P in a batch.

    Raises:
        ValueError: if no image is left to train on; or listing image files that are missing and, where headers are
            read, those that are no images or not of the annotated size. A damaged image is found when it is loaded.
            Also for a file of proposals that does not know all images, as `ProposalFile`.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, annotations: Annotations, config: DataConfig, training: bool, seed: int) -> None:
        self.annotations = annotations
        self.config = config
        self.training = training
        self.seed = seed
        skip = training and config.skip_empty
        self.images = [image for image in annotations.images if image.has_objects or not skip]
        if not self.images:
            raise ValueError(
                f"{annotations.name}: none of its {len(annotations.images)} images has an object to train on"
            )
        self.problems = Problems()
        self.problems.extend(annotations.problems)
        check_files(self.images, self.problems)
        most = max(int((~image.difficult).sum()) for image in self.images)
        self.target_slots = max(1, -(-most // _SLOT_MULTIPLE)) * _SLOT_MULTIPLE
        self._proposals = self._open_proposals()
        fullest = 0 if self._proposals is None else min(self._proposals.most(self.images), config.max_proposals)
        self.proposal_slots = max(1, -(-fullest // _SLOT_MULTIPLE)) * _SLOT_MULTIPLE
        self._buckets: list[Size] = []
        self._bucket_of: list[int] = []
        if training and config.size_buckets > 0:
            sizes = [self._padded_size(image) for image in self.images]
            self._buckets = choose_buckets(sizes, config.size_buckets)
            self._bucket_of = assign(sizes, self._buckets)
        self._cache: ImageCache | None = None
        if training and config.cache_mb > 0:
            self._cache = ImageCache([self._cached_size(image) for image in self.images], config.cache_mb)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch: in training a last one that is not full is left out, unless it is the only one."""
        full, rest = divmod(len(self.images), self.config.batch_size)
        return full if self.training and full else full + bool(rest)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, epoch=0)

    def sample(self, index: int, epoch: int) -> Sample:
        """Image `index` as it is seen in `epoch`; a pure function of seed, epoch and index."""
        record = self.images[index]
        random = np.random.default_rng([self.seed, epoch, index])
        factor = jitter_factor(self.config, random) if self.training else 1.0
        size = resized_size(record.width, record.height, self.config, factor)
        image = self._load(record) if self._cache is None else self._cache.get(index, lambda: self._load(record))
        if image.shape[1:] != size[::-1]:
            image = resize(image, *size, self.config.antialias)
        proposals, scores = torch.zeros(0, 4), torch.zeros(0)
        if self._proposals is not None:
            proposals, scores = self._proposals.read(record.id, self.config.max_proposals)
        # Whatever happens to an image happens to objects and proposals alike.
        boxes = resize_boxes(torch.cat((record.boxes, proposals)), (record.width, record.height), size)
        if self.training:
            image, boxes = augment(image, boxes, self.config, random)
        boxes, proposals = boxes.split((len(record.boxes), len(proposals)))
        return Sample(image, boxes, record, proposals, scores)

    def order(self, epoch: int) -> list[int]:
        """Indices in the order of `epoch`: shuffled by seed and epoch in training, else as annotated."""
        if not self.training:
            return list(range(len(self.images)))
        # The length sets this stream apart from those of the samples, whose last number is below it.
        return np.random.default_rng([self.seed, epoch, len(self.images)]).permutation(len(self.images)).tolist()

    def batches(self, epoch: int) -> list[PlannedBatch]:
        """The batches of `epoch`, `steps_per_epoch` of them: a pure function of seed and epoch.

        Each takes the next images of `order`; with `size_buckets` in training, images of one bucket as `plan_batches`
        groups them. The images that an epoch leaves out are the same either way, the last ones of its order.
        """
        order, size = self.order(epoch), self.config.batch_size
        order = order[: self.steps_per_epoch * size]
        if self._buckets:
            return plan_batches(order, self._bucket_of, self._buckets, size)
        return [PlannedBatch(order[start : start + size], None) for start in range(0, len(order), size)]

    def collate(self, samples: list[Sample], size: Size | None = None) -> Batch:
        """B samples -> a batch with `target_slots` slots for each image, of which difficult objects get none.

        Images are padded to `size`, or to the largest of them. Where the config names a file of proposals, these have
        `proposal_slots` slots.
        """
        images, sizes = pad([sample.image for sample in samples], self.config.size_divisor, size)
        batch, slots = len(samples), self.target_slots
        boxes = torch.zeros(batch, slots, 4)
        labels = torch.zeros(batch, slots, dtype=torch.int64)
        valid = torch.zeros(batch, slots, dtype=torch.bool)  # an object to be found
        crowd = torch.zeros(batch, slots, dtype=torch.bool)  # a region of many objects
        for position, sample in enumerate(samples):
            record = sample.record
            kept = ~record.difficult  # [G]
            count = int(kept.sum())
            boxes[position, :count] = sample.boxes[kept]
            labels[position, :count] = record.labels[kept]
            valid[position, :count] = record.wanted[kept]
            crowd[position, :count] = record.crowd[kept]
        records = [sample.record for sample in samples]
        original_sizes = torch.tensor([[record.height, record.width] for record in records], dtype=torch.float32)
        targets = Targets(boxes, labels, valid, crowd)
        ids, names = [record.id for record in records], [record.file_name for record in records]
        proposals = None if self._proposals is None else self._collate_proposals(samples)
        return Batch(images, sizes, original_sizes, targets, ids, names, proposals)

    def _collate_proposals(self, samples: list[Sample]) -> Proposals:
        batch, slots = len(samples), self.proposal_slots
        proposals = Proposals(
            torch.zeros(batch, slots, 4), torch.zeros(batch, slots), torch.zeros(batch, slots, dtype=torch.bool)
        )
        for position, sample in enumerate(samples):
            count = len(sample.proposals)
            proposals.boxes[position, :count] = sample.proposals
            proposals.scores[position, :count] = sample.proposal_scores
            proposals.valid[position, :count] = True
        return proposals

    def _open_proposals(self) -> ProposalFile | None:
        """The file that the config names for this use of the data; made sure that it knows all images."""
        file = self.config.proposals if self.training else self.config.eval_proposals
        if file is None:
            return None
        proposals = ProposalFile(file)
        proposals.check(self.images, self.annotations.name)
        return proposals

    def _padded_size(self, record: ImageRecord) -> Size:
        """Height and width that an image needs at its largest."""
        width, height = resized_size(record.width, record.height, self.config, self.config.scale_jitter[1])
        divisor = self.config.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _cached_size(self, record: ImageRecord) -> tuple[int, int]:
        """Width and height at which an image is loaded: that of training, or its own if the size changes each time."""
        low, high = self.config.scale_jitter
        return (
            resized_size(record.width, record.height, self.config, low)
            if low == high
            else (record.width, record.height)
        )

    def _load(self, record: ImageRecord) -> Tensor:
        """The image before anything random."""
        low, high = self.config.scale_jitter
        annotated_size = (record.width, record.height)
        if not self.training or low != high:
            return load_image(record.file, annotated_size=annotated_size)
        size = self._cached_size(record)
        return resize(
            load_image(record.file, annotated_size=annotated_size, smallest=size), *size, self.config.antialias
        )


class _Epoch(Dataset[Batch | Exception]):
    """The batches of an epoch."""

    def __init__(self, dataset: DetectionDataset, epoch: int, batches: Sequence[PlannedBatch]) -> None:
        self.dataset = dataset
        self.epoch = epoch
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | Exception:
        """The batch, or why it cannot be loaded: torch would wrap a raised error in the traceback of its worker."""
        batch = self.batches[number]
        try:
            samples = [self.dataset.sample(index, self.epoch) for index in batch.index]
        except (OSError, ValueError) as error:
            return error
        return self.dataset.collate(samples, batch.size)


class _Loader(DataLoader[Batch]):
    """Raises in this process, and as it is, the error that a worker met."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


def make_loader(
    dataset: DetectionDataset,
    *,
    epoch: int = 0,
    start_step: int = 0,
    device: torch.device | str = "cpu",
    batches: Sequence[Sequence[int]] | None = None,
    part: int = 0,
    parts: int = 1,
) -> DataLoader[Batch]:
    """Batches of one epoch.

    The same for the same (seed, epoch), whatever the number of workers; torch's own random numbers are not touched.

    Args:
        epoch: decides order and augmentation in training.
        start_step: batches at the beginning that are left out without loading them, to resume within an epoch.
        device: where the batches will go; for CUDA they come in page-locked memory.
        batches: positions in `dataset.images` of each batch; None: those of the epoch.
        part, parts: which of how many processes this is, each of which gets an equal share of every batch. A share is
            padded like the whole batch where this has a size of its own, in buckets.

    Returns:
        a loader of `structures.Batch`; its length is `dataset.steps_per_epoch - start_step`. Reading from it raises
        what `load_image` raises for a file that is missing or damaged.
    """
    steps = dataset.steps_per_epoch
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step: expected 0 to {steps}, the batches of an epoch, got {start_step}")
    if batches is None:
        planned = [batch.share(part, parts) for batch in dataset.batches(epoch)[start_step:]]
    else:
        planned = [PlannedBatch(list(batch), None) for batch in batches]
    workers = min(dataset.config.workers, len(planned))
    return _Loader(
        _Epoch(dataset, epoch, planned),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_set_signals,
        # Forked workers start in milliseconds and share the image cache.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def _set_signals(worker: int) -> None:
    """Ctrl-C and a closed terminal are for the training process, which ends its workers; SIGTERM ends this one, but
    not as an error.

    A job scheduler sends it to all processes at once. torch would raise an error about this one in the middle of the
    training step that is to be finished and saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
