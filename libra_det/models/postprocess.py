"""Non-maximum suppression of padded batches, and the choice of the best survivors into a fixed number of slots."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

# Most boxes that go through NMS together: its work grows with their square, but on a GPU each call has its price.
_TOGETHER_CPU = 1_000
_TOGETHER_CUDA = 25_000


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression of all images at once; the only place of it whose work has data-dependent shapes.

    Args:
        boxes: [B, T, 4] float32 xyxy.
        scores: [B, T] float32.
        groups: [B, T] int64, not negative; boxes of one image suppress each other only within a group, such as a class.
        valid: [B, T] bool; other slots neither suppress nor survive.
        iou_threshold: a box that overlaps a better one of its group by more than this goes.

    Returns:
        [B, T] bool: the slot survives.
    """
    batch, _ = scores.shape
    image = torch.arange(batch, device=scores.device)[:, None]
    group = (groups * batch + image).flatten()
    chosen = valid.flatten().nonzero().squeeze(1)  # [M] positions in B * T
    survivors = _nms_in_groups(boxes.reshape(-1, 4)[chosen], scores.flatten()[chosen], group[chosen], iou_threshold)
    kept = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    kept[chosen[survivors]] = True
    return kept.view_as(valid)


def _nms_in_groups(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Positions [K] of the survivors among boxes [M, 4], which suppress each other only where `group` [M] is equal.

    Few boxes go through NMS at once, each group moved to a place of its own; of many, each group by itself costs less.
    Both decide alike, so that what else is in a batch does not matter: the moves are whole pixels, and in float64 they
    leave a box its size to 1e-9 px, where in float32 a thousand groups of large images would cost tenths of a pixel.
    """
    if len(boxes) == 0:
        return group
    boxes, scores = boxes.double(), scores.double()
    if len(boxes) <= (_TOGETHER_CUDA if boxes.is_cuda else _TOGETHER_CPU):
        room = (boxes.max() - boxes.min()).ceil() + 1
        return nms(boxes + (group * room)[:, None], scores, iou_threshold)
    order = group.argsort()
    sizes = group[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = order.split(sizes)
    return torch.cat([part[nms(boxes[part], scores[part], iou_threshold)] for part in parts])


def best_slots(scores: Tensor, keep: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Positions of the best kept slots of each image.

    Args:
        scores: [B, T] float32; keep: [B, T] bool.
        limit: slots wanted, K = min(limit, T).

    Returns:
        index [B, K] int64 by falling score, and valid [B, K] bool: the slot was kept.
    """
    ranked = scores.masked_fill(~keep, -torch.inf)
    best = ranked.topk(min(limit, scores.shape[1]), dim=1)
    return best.indices, best.values > -torch.inf


def usable(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] that can stand as a result -> [...] bool: finite, and with an area."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes.isfinite().all(-1) & (sizes > 0).all(-1)
