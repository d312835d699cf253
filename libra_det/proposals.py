"""Compute the proposals of a data set with a Faster R-CNN, for Fast R-CNN to be trained and tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from libra_det.config import Config, DataConfig
from libra_det.data import DetectionDataset, load_annotations, make_loader
from libra_det.data.proposal_file import ProposalWriter
from libra_det.models import FasterRCNN
from libra_det.models.fast_rcnn import HOW_TO_GET_PROPOSALS
from libra_det.photos import by_padded_size
from libra_det.predict import Detector


def check_proposals_are_named(config: Config) -> None:
    """Before training begins: Fast R-CNN needs files of proposals for both splits.

    Raises:
        ValueError: one is not named.
    """
    if config.model.detector != "fast_rcnn":
        return
    for name in ("proposals", "eval_proposals"):
        if getattr(config.data, name) is None:
            raise ValueError(f"{name}: expected a file of `libra proposals`, got none; {HOW_TO_GET_PROPOSALS}")


def write_proposals(
    detector: Detector, data: DataConfig, split: str, output: Path, *, source: str, limit: int | None = None
) -> tuple[int, int]:
    """Proposals of all images of a split, with or without objects, as `model.detect` would judge them.

    Args:
        detector: a Faster R-CNN with its configuration.
        data: the data set; sizes and batches too are as it says, flips and jitter are not.
        split: which of its splits.
        output: the file, as `ProposalFile` reads it.
        source: what the detector is, for the file's notes.
        limit: most proposals of an image; none: the model's `proposals_test`.

    Returns:
        The numbers of images and of proposals.

    Raises:
        ValueError: the detector has no region proposal network; or as `DetectionDataset`.
        FileNotFoundError: there are no annotations of this split.
    """
    model = detector.model
    if not isinstance(model, FasterRCNN):
        raise ValueError(
            f"detector: expected a Faster R-CNN, whose region proposal network finds regions, got "
            f"{detector.config.model.detector} ({source})"
        )
    config = replace(data, proposals=None, eval_proposals=None)
    dataset = DetectionDataset(load_annotations(config, split), config, training=False, seed=0)
    limit = model.config.proposals_test if limit is None else limit
    writer = ProposalWriter(output, len(dataset), limit)
    model.eval()
    # Images of one padded size at a time, so that what is found in one does not depend on its neighbours.
    batches = by_padded_size([(image.width, image.height) for image in dataset.images], config, config.batch_size)
    loader = make_loader(dataset, device=detector.device, batches=batches)
    with tqdm(total=len(dataset), desc="proposing", unit="image", disable=None, dynamic_ncols=True) as progress:
        for batch in loader:
            found = model.propose(batch.to(detector.device), limit)
            scale = (batch.original_sizes / batch.sizes).flip(1).repeat(1, 2)[:, None]  # [B, 1, 4], of x, y, x, y
            boxes, scores, valid = found.boxes.cpu() * scale, found.scores.cpu(), found.valid.cpu()
            for position, (image_id, file_name) in enumerate(zip(batch.image_ids, batch.file_names, strict=True)):
                kept = valid[position]
                writer.add(image_id, file_name, boxes[position][kept], scores[position][kept])
            progress.update(len(batch.image_ids))
    total = writer.write(model=source, data=Path(data.data).name, split=split)
    return len(dataset), total
