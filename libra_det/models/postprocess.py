"""Non-maximum suppression of padded batches into a fixed number of slots, and the last steps of every detector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

import libra_ops
from libra_det.config import ModelConfig
from libra_det.models.exporting import exporting
from libra_det.structures import Detections


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """The best boxes of each image of which none overlaps a better one of its group: `libra_ops.nms_padded`.

    `torch.export` gets PyTorch's and torchvision's operations instead, so that its files do without this package.

    Args:
        boxes: [B, T, 4] float32 xyxy.
        scores: [B, T] float32.
        groups: [B, T] int64, not negative; boxes of one image suppress each other only within a group, such as a class.
        valid: [B, T] bool; other slots neither suppress nor survive.
        iou_threshold: a box that overlaps a better one of its group by more than this goes.
        limit: slots wanted, K = min(limit, T).

    Returns:
        index [B, K] int64 by falling score, and valid [B, K] bool: the slot holds a survivor.
    """
    if exporting() and not torch.onnx.is_in_onnx_export():
        kept = _suppress_for_export(boxes, scores, groups, valid, iou_threshold)
        best = scores.masked_fill(~kept, -torch.inf).topk(torch.sym_min(limit, scores.shape[1]), dim=1)
        return best.indices, best.values > -torch.inf
    return libra_ops.nms_padded(boxes, scores, groups, iou_threshold=iou_threshold, max_output=limit, valid=valid)


def _suppress_for_export(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Which slots survive [B, T], without a choice of paths by the data: all groups of all images go through
    torchvision's `nms` together, each moved to a place of its own.

    The moves are whole pixels, and in float64 they leave a box its size to 1e-9 px, where in float32 a thousand groups
    of large images would cost tenths of a pixel. Two slots more, alone in their groups, always survive: torchvision
    tells the tracer that at least two boxes do.
    """
    batch = groups.shape[0]
    group = (groups * batch + torch.arange(batch, device=groups.device)[:, None]).flatten()  # of the batch, [B * T]
    chosen = F.pad(valid.flatten(), (0, 2), value=True).nonzero().squeeze(1)  # [M + 2] positions in B * T + 2
    corners = boxes.reshape(-1, 4).double().masked_fill(~valid.reshape(-1, 1), 0.0)
    room = 2 * corners.abs().amax().ceil() + 4
    places = torch.cat((group + 2, torch.arange(2, device=groups.device))) * room
    extra = torch.arange(4, device=boxes.device, dtype=torch.float64).expand(2, 4)  # any two boxes with an area
    moved = torch.cat((corners, extra)) + places[:, None]
    ranks = F.pad(scores.flatten().double(), (0, 2))
    survivors = chosen[nms(moved[chosen], ranks[chosen], iou_threshold)]
    kept = torch.zeros_like(ranks, dtype=torch.bool).index_fill(0, survivors, True)
    return kept[:-2].view(valid.shape)


def boxes_at(boxes: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, 4] of `boxes` [B, T, 4] at the positions `index` [B, K]."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def finish(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    valid: Tensor,
    sizes: Tensor,
    original_sizes: Tensor,
    config: ModelConfig,
) -> Detections:
    """The last steps of every detector, in the order of the published ones.

    Boxes are clipped to the resized image and scaled to the original one; what scores more than `score_threshold` is
    thinned by non-maximum suppression within a class; the best `detections_per_image` stay.

    Args:
        boxes: [B, T, 4] float32 xyxy in pixels of the resized images.
        scores, labels, valid: [B, T] float32, int64 and bool; slots that are not valid are no candidates.
        sizes, original_sizes: [B, 2] float32 (height, width) of the images, resized and as stored.
    """
    scale = (original_sizes / sizes).flip(-1).repeat(1, 2)[:, None]  # [B, 1, 4]
    boxes = clip_boxes(clip_boxes(boxes, sizes) * scale, original_sizes)
    valid = valid & (scores > config.score_threshold) & usable(boxes)
    index, valid = non_maximum_suppression(boxes, scores, labels, valid, config.nms_iou, config.detections_per_image)
    return Detections(
        boxes_at(boxes, index).masked_fill(~valid[..., None], 0.0),
        scores.gather(1, index).masked_fill(~valid, 0.0),
        labels.gather(1, index).masked_fill(~valid, 0),
        valid,
    )


def usable(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] that can stand as a result -> [...] bool: finite, and with an area."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes.isfinite().all(-1) & (sizes > 0).all(-1)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, T, 4] clipped to images of `sizes` [B, 2] (height, width) in pixels."""
    limits = sizes.flip(-1).repeat(1, 2)[:, None]  # [B, 1, 4]: width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)
