"""Matching of candidate boxes with targets: IoU, maximum, thresholds and the low-quality rule in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from libra_ops import _checks


class Matches(NamedTuple):
    """What `match_boxes` found for B images of N boxes each."""

    index: Tensor  # [B, N] int64: the target a box belongs to; safe to gather with for every box where G >= 1
    iou: Tensor  # [B, N] float32 in 0..1: the highest IoU with any target that can be found
    state: Tensor  # [B, N] int8: 1 positive, 0 negative, -1 ignored


def match_boxes(
    boxes: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float | None = None,
    crowd: Tensor | None = None,
) -> Matches:
    """Assign every box to a target, to the background, or to neither.

    A box is positive where its highest IoU is >= `positive_iou`, negative where it is < `negative_iou`, and ignored in
    between. IoU is intersection / max(union, 1e-6), in float32. Of equal targets the first is the box's own.

    Low-quality rule: with `min_positive_iou`, a target whose best IoU over all boxes reaches it claims every box that
    ties with that best, whatever `positive_iou`; where two targets claim a box, the later one gets it. A target without
    area, or that overlaps no box, claims nothing.

    Boxes with more than half of their own area inside a crowd region are ignored, and no target claims them. A box with
    a coordinate that is not finite is ignored, with IoU 0; such a target is as good as absent. In an image without
    targets every other box is negative. Memory beyond the result is O(N + G): the N x G matrix never exists.

    Args:
        boxes: [B, N, 4], or [N, 4] for the same boxes in every image; xyxy in pixels, any floating dtype (compared as
            float32).
        targets: [B, G, 4], padded; xyxy in pixels.
        valid: [B, G] bool: which targets are real and not padding.
        positive_iou: in 0..1.
        negative_iou: in 0..1, not above `positive_iou`.
        min_positive_iou: in 0..1; none: no low-quality rule.
        crowd: [B, G] bool, which of the targets are crowd regions and not objects (whatever `valid` says of them, so it
            has to be False in padding); or [B, C, 4], regions of their own (xyxy in pixels, a region without area is
            padding).

    Returns:
        Matches(index [B, N] int64, iou [B, N] float32, state [B, N] int8). `index` is 0 for a box that overlaps no
        target. For a box that was claimed, `iou` is still its highest IoU, maybe that with another target.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Source: mmdetection's MaxIoUAssigner, which Libra R-CNN's published configurations use; there a target without area
    or without overlap claims every box when min_positive_iou is 0, and images without targets lose their crowds.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]])
        >>> targets = torch.tensor([[[0.0, 0, 10, 10]]])
        >>> match_boxes(boxes, targets, torch.tensor([[True]]), positive_iou=0.7, negative_iou=0.3).state
        tensor([[ 1, -1,  0]], dtype=torch.int8)
    """
    _checks.check_boxes("targets", targets, "[B, G, 4]", dims=(3,))
    _checks.check_boxes("boxes", boxes, "[B, N, 4] or [N, 4]", dims=(2, 3))
    batch, count = targets.shape[:2]
    if boxes.dim() == 3 and boxes.shape[0] != batch:
        raise ValueError(
            f"boxes: expected [N, 4] or a batch of {batch} images like targets, got {_checks.describe(boxes)}"
        )
    _checks.check_at_most("targets", count, 2**31 - 1, "per image")
    _checks.check_dtype("valid", valid, torch.bool)
    _checks.check_shape("valid", valid, (batch, count), "one flag per target")
    _checks.check_same_device("targets", targets, boxes, "boxes")
    _checks.check_same_device("valid", valid, boxes, "boxes")
    positive_iou = _checks.check_number("positive_iou", positive_iou, 0, 1)
    negative_iou = _checks.check_number("negative_iou", negative_iou, 0, 1)
    if negative_iou > positive_iou:
        raise ValueError(f"negative_iou: expected at most positive_iou {positive_iou:g}, got {negative_iou:g}")
    if min_positive_iou is not None:
        min_positive_iou = _checks.check_number("min_positive_iou", min_positive_iou, 0, 1)
    if crowd is not None:
        valid, crowd = _split_crowd(crowd, _constant(targets), valid)
    boxes = _constant(boxes)
    return Matches(
        *_op(
            boxes if boxes.dim() == 3 else boxes.unsqueeze(0),
            _constant(targets),
            valid,
            crowd,
            positive_iou,
            negative_iou,
            min_positive_iou,
        )
    )


_op = torch.ops.libra_ops.match_boxes.default


def _constant(boxes: Tensor) -> Tensor:
    """As float32, without a gradient: whom a box is matched with has none."""
    boxes = boxes.detach() if boxes.requires_grad else boxes
    return boxes if boxes.dtype == torch.float32 else boxes.float()


def _split_crowd(crowd: Tensor, targets: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The targets that are objects [B, G] and the crowd regions [B, C, 4] float32, padded with boxes without area."""
    _checks.check_tensor("crowd", crowd)
    _checks.check_same_device("crowd", crowd, targets, "targets")
    if crowd.dtype == torch.bool:
        _checks.check_shape("crowd", crowd, valid.shape, "one flag per target")
        return valid & ~crowd, targets.masked_fill(~crowd.unsqueeze(-1), 0)
    if not crowd.is_floating_point():
        raise TypeError(
            "crowd: expected bool [B, G] (which targets are crowd regions) or floating boxes [B, C, 4], got "
            f"{_checks.describe(crowd)}"
        )
    _checks.check_boxes("crowd", crowd, "[B, C, 4], or bool [B, G]", dims=(3,))
    if crowd.shape[0] != targets.shape[0]:
        raise ValueError(f"crowd: expected a batch of {targets.shape[0]} images, got {_checks.describe(crowd)}")
    return valid, _constant(crowd)


@torch.library.register_fake("libra_ops::match_boxes")
def _(boxes, targets, valid, crowd, positive_iou, negative_iou, min_positive_iou):
    shape = (targets.shape[0], boxes.shape[1])
    return (
        boxes.new_empty(shape, dtype=torch.int64),
        boxes.new_empty(shape, dtype=torch.float32),
        boxes.new_empty(shape, dtype=torch.int8),
    )


for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::match_boxes", _device, torch.float32)
