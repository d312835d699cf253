"""One batch through a trained model: as it is, in half precision, and with its mirror image as well.

B images of a batch, K detections of each, H x W pixels of the padded images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from libra_det.models import DetectionModel
from libra_det.models.postprocess import non_maximum_suppression
from libra_det.structures import Batch, Detections


@dataclass(frozen=True)
class Inference:
    """How images go through a model."""

    flip: bool = False
    """Detect in the mirrored images too, and merge both: non-maximum suppression within each class over the union."""
    half: bool = False
    """Compute the layers in half precision: float16 on CUDA, bfloat16 on the CPU. Boxes and scores stay float32."""

    @torch.no_grad()
    def __call__(self, model: DetectionModel, batch: Batch, device: torch.device) -> Detections:
        """Detections in pixels of the original images, on `device`, where the model is."""
        batch = batch.to(device)
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, self.half):
            found = model.detect(batch)
            if not self.flip:
                return found
            mirrored = model.detect(flipped(batch))
        return merged(found, _flipped_back(mirrored, batch.original_sizes), model.config.nms_iou)


def flipped(batch: Batch) -> Batch:
    """The batch with each image mirrored left to right, within its own width: the padding stays where it is."""
    widths = batch.sizes[:, 1].long()  # [B]
    columns = torch.arange(batch.images.shape[3], device=batch.images.device)
    source = torch.where(columns < widths[:, None], widths[:, None] - 1 - columns, columns)  # [B, W]
    images = torch.take_along_dim(batch.images, source[:, None, None], 3)
    proposals = batch.proposals
    if proposals is not None:
        proposals = proposals._replace(boxes=_flipped_boxes(proposals.boxes, proposals.valid, batch.sizes))
    return replace(batch, images=images, proposals=proposals, targets=None)


def merged(first: Detections, second: Detections, iou_threshold: float) -> Detections:
    """Two findings in the same images [B, K] as one [B, K].

    Of detections of one class that overlap by more than `iou_threshold` the one of the higher score stays, with its own
    box and score; then the K best stay.
    """
    slots = first.scores.shape[1]
    boxes, scores, labels, valid = (torch.cat(pair, 1) for pair in zip(first, second, strict=True))  # [B, 2K]
    index, valid = non_maximum_suppression(boxes, scores, labels, valid, iou_threshold, slots)
    return Detections(
        torch.take_along_dim(boxes, index[..., None], 1).masked_fill(~valid[..., None], 0.0),
        torch.take_along_dim(scores, index, 1).masked_fill(~valid, 0.0),
        torch.take_along_dim(labels, index, 1).masked_fill(~valid, 0),
        valid,
    )


def _flipped_back(found: Detections, original_sizes: Tensor) -> Detections:
    return found._replace(boxes=_flipped_boxes(found.boxes, found.valid, original_sizes))


def _flipped_boxes(boxes: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, S, 4] in images of `sizes` [B, 2] (height, width), mirrored: x becomes width - x."""
    left, top, right, bottom = boxes.unbind(-1)
    widths = sizes[:, 1:]
    return torch.stack((widths - right, top, widths - left, bottom), -1).masked_fill(~valid[..., None], 0.0)
