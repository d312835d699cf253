"""Non-maximum suppression of padded batches: fixed shapes, and no copy to the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from libra_ops import _checks


class Survivors(NamedTuple):
    """What `nms_padded` kept of B images, K slots each: the best first, then empty slots."""

    index: Tensor  # [B, K] int64: a box's place among the N of its image; 0 in an empty slot, so safe to gather with
    valid: Tensor  # [B, K] bool: the slot holds a box


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    *,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None = None,
    valid: Tensor | None = None,
) -> Survivors:
    """Greedy non-maximum suppression of all images at once, within groups.

    In every image, boxes are taken by falling score, of equal scores the lower index first. A box is kept unless its
    IoU with a box kept before, of the same group, is more than `iou_threshold`. As soon as `max_output` are kept, the
    image is done.

    A box takes no part, so that it neither suppresses nor is kept, if `valid` is False, its score is NaN or not more
    than `score_threshold`, or one of its coordinates is not finite.

    IoU is intersection / (area + area - intersection) in float32, an area being width * height. Boxes that lie apart,
    or without area, have an IoU of 0 or NaN and suppress nothing.

    Nothing is copied to the host, no shape depends on values, and memory beyond the result is O(N) per image.

    Args:
        boxes: [B, N, 4] xyxy in pixels, any floating dtype (compared as float32).
        scores: [B, N], any floating dtype (compared as float32).
        groups: [B, N] int64, any numbers: classes or pyramid levels; none: all boxes of an image are one group.
        iou_threshold: in 0..1.
        max_output: boxes kept of an image at most, 0 or more.
        score_threshold: none: every score but NaN takes part. It is rounded to the dtype that is compared in, as in
            PyTorch's `scores > threshold`.
        valid: [B, N] bool: which slots hold a box; none: all.

    Returns:
        Survivors(index [B, K] int64, valid [B, K] bool) with K = min(max_output, N), on the device of `boxes`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range; the message names it.

    Source: torchvision's `batched_nms` in its exact form, class by class (`_batched_nms_vanilla`), image by image: for
    float32, the first K of what it returns. The GPU's version of that rounds `iou_threshold` to float32, this one
    compares with the number itself, as torchvision does on the CPU.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        >>> nms_padded(boxes, torch.tensor([[0.5, 0.9, 0.2]]), iou_threshold=0.5, max_output=3)
        Survivors(index=tensor([[1, 2, 0]]), valid=tensor([[ True,  True, False]]))
    """
    _checks.check_boxes("boxes", boxes, "[B, N, 4]", dims=(3,))
    shape = boxes.shape[:2]
    _checks.check_floating("scores", scores)
    _checks.check_shape("scores", scores, shape, "one score per box")
    _checks.check_same_device("scores", scores, boxes, "boxes")
    for name, value, dtype, meaning in (
        ("groups", groups, torch.int64, "one group per box"),
        ("valid", valid, torch.bool, "one flag per box"),
    ):
        if value is not None:
            _checks.check_dtype(name, value, dtype)
            _checks.check_shape(name, value, shape, meaning)
            _checks.check_same_device(name, value, boxes, "boxes")
    iou_threshold = _checks.check_number("iou_threshold", iou_threshold, 0, 1)
    max_output = _checks.check_integer("max_output", max_output, 0, 2**63 - 1)
    if score_threshold is not None:
        score_threshold = _checks.check_number("score_threshold", score_threshold, -math.inf)
    return Survivors(
        *_op(_constant(boxes), _constant(scores), groups, iou_threshold, max_output, score_threshold, valid)
    )


_op = torch.ops.libra_ops.nms_padded.default


def _constant(values: Tensor) -> Tensor:
    """As float32, without a gradient: which boxes are kept has none."""
    values = values.detach() if values.requires_grad else values
    return values if values.dtype == torch.float32 else values.float()


@torch.library.register_fake("libra_ops::nms_padded")
def _(boxes, scores, groups, iou_threshold, max_output, score_threshold, valid):
    shape = (boxes.shape[0], torch.sym_min(max_output, boxes.shape[1]))
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)


for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::nms_padded", _device, torch.float32)
