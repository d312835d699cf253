"""box_iou and match_boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import libra_ops
from libra_ops import reference
from tests.attack.operations.draw import Draw
from tests.attack.operations.operation import Arguments, Operation, any_meta, arithmetic, close, expect, plain

KINDS = ("iou", "iof", "giou", "diou", "ciou")
_LEADING = (((), ()), ((), ()), ((), ()), ((2,), (2,)), ((), (3,)), ((2, 1), (3,)), ((1,), ()), ((0,), (1,)))


def draw_overlaps(draw: Draw) -> Arguments:
    leading1, leading2 = draw.choice(_LEADING)
    n, m = draw.length(), draw.length()
    return {
        "boxes1": draw.tensor(draw.boxes((*leading1, n))),
        "boxes2": draw.tensor(draw.boxes((*leading2, m))),
        "kind": draw.choice(KINDS),
    }


def check_overlaps(given: Arguments, overlaps: Any) -> None:
    boxes1, boxes2 = given["boxes1"], given["boxes2"]
    leading = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    expect(overlaps, (*leading, boxes1.shape[-2], boxes2.shape[-2]), arithmetic(boxes1, boxes2))
    if overlaps.is_meta or overlaps.numel() == 0:
        return
    dtype, overlaps = overlaps.dtype, overlaps.detach()
    a, b = plain(boxes1, dtype), plain(boxes2, dtype)
    nan = a.isnan().any(-1)[..., :, None] | b.isnan().any(-1)[..., None, :]
    assert overlaps.isnan()[nan.expand(overlaps.shape)].all(), "a box with NaN has an overlap"
    finite = a.isfinite().all(-1)[..., :, None] & b.isfinite().all(-1)[..., None, :]
    if given["kind"] in ("iou", "iof"):
        inside = (overlaps >= 0) & (overlaps <= 1)
        assert inside[finite.expand(overlaps.shape)].all(), "an overlap of finite boxes is not in 0..1"


def compare_overlaps(given: Arguments, overlaps: Any) -> None:
    """Pairs of boxes up to 1e18: the twin's arithmetic in the same order, but for the arc tangent."""
    dtype = overlaps.dtype
    boxes = [plain(given[name], dtype) for name in ("boxes1", "boxes2")]
    huge = [~(x.abs() <= 1e18).all(-1) for x in boxes]
    calm = ~(huge[0][..., :, None] | huge[1][..., None, :]).expand(overlaps.shape)
    masked = [x.masked_fill(rows[..., None], 0) for x, rows in zip(boxes, huge, strict=True)]
    twin = reference.box_iou(*masked, given["kind"])
    rough = 1e-5 if given["kind"] == "ciou" else 0.0
    close(overlaps.detach()[calm], twin[calm], rtol=rough, atol=rough)


def draw_matches(draw: Draw) -> Arguments:
    batch, n, g = draw.choice((1, 1, 2, 3, 0)), draw.length(), draw.choice((0, 1, 2, 3, 5, 8, 17, 33))
    low, high = sorted((draw.fraction(), draw.fraction()))
    crowd = draw.choice((None, None, "flags", "regions"))
    if crowd == "flags":
        crowd = torch.from_numpy(draw.flags((batch, g)))
    elif crowd == "regions":
        crowd = draw.tensor(draw.boxes((batch, draw.choice((0, 1, 3)))))
    return {
        "boxes": draw.tensor(draw.boxes((batch, n) if draw.chance(0.5) else (n,))),
        "targets": draw.tensor(draw.boxes((batch, g))),
        "valid": torch.from_numpy(draw.flags((batch, g))),
        "positive_iou": high,
        "negative_iou": low,
        "min_positive_iou": draw.choice((None, draw.fraction())),
        "crowd": crowd,
    }


def check_matches(given: Arguments, matches: Any) -> None:
    index, iou, state = matches
    targets, boxes = given["targets"], given["boxes"]
    shape = (targets.shape[0], boxes.shape[-2])
    for found, dtype in ((index, torch.int64), (iou, torch.float32), (state, torch.int8)):
        expect(found, shape, dtype)
        assert not found.requires_grad
    if any_meta(given):
        return
    assert ((iou >= 0) & (iou <= 1)).all(), "an IoU is not in 0..1"
    assert ((state >= -1) & (state <= 1)).all(), "a state is none of -1, 0, 1"
    assert ((index >= 0) & (index < max(1, targets.shape[1]))).all(), "an index is out of range"


def compare_matches(given: Arguments, matches: Any) -> None:
    boxes, targets = (plain(given[name], torch.float32) for name in ("boxes", "targets"))
    boxes, targets = (x.masked_fill(x.isinf(), math.nan) for x in (boxes, targets))
    valid, crowd = (None if given[name] is None else as_flags(given[name]) for name in ("valid", "crowd"))
    if crowd is not None:
        if crowd.dtype == torch.bool:
            valid, crowd = valid & ~crowd, targets.masked_fill(~crowd[..., None], 0)
        crowd = crowd.float()
        crowd = crowd.masked_fill(~crowd.isfinite().all(-1, keepdim=True), 0)  # such a region counts for nothing
    names = ("positive_iou", "negative_iou", "min_positive_iou")
    rules = [None if given[name] is None else float(np.float32(float(given[name]))) for name in names]
    index, iou, state = reference.match_boxes(boxes, targets, valid, *rules, crowd)
    if any((x.abs() > 1e18).any() for x in (boxes, targets, crowd) if x is not None):
        close(matches[1], iou, rtol=1e-5, atol=1e-6)
        return
    for found, twin in zip(matches, (index, iou, state), strict=True):
        close(found, twin)


def as_flags(tensor: Tensor) -> Tensor:
    """Flags of any bits as those of 0 and 1; other tensors as they are."""
    tensor = plain(tensor)
    return tensor.view(torch.uint8) != 0 if tensor.dtype == torch.bool else tensor


OPERATIONS = (
    Operation(
        "box_iou",
        libra_ops.box_iou,
        draw_overlaps,
        check_overlaps,
        compare_overlaps,
        leaves=("boxes1", "boxes2"),
    ),
    Operation("match_boxes", libra_ops.match_boxes, draw_matches, check_matches, compare_matches),
)
