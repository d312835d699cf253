"""nms_padded: greedy non-maximum suppression of all images at once, within groups.

How much work it is depends on what overlaps what, so the boxes are in heaps, as a detector's are: a proposal network's
eight or so about each place it believes in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from benchmarks.case import EAGER, OURS, Case, Mismatch, Plan, Side, mostly_equal, shown
from benchmarks.inputs import HEIGHT, WIDTH
from libra_ops import nms_padded, reference

TITLE = "nms_padded"
AXIS = "boxes of all images"
TEXT = (
    "Boxes lie in heaps of about eight. RPN: five groups (levels), IoU 0.7, all boxes take part. Detection: each of "
    "1,000 proposals with each of 80 classes, of which 1,500 in all score more than 0.05; IoU 0.5. RetinaNet: 5,000 "
    "candidates of 80 classes, 1,500 of them above 0.05. torchvision is `batched_nms`, image by image, of what takes "
    "part; two-step is what libra_det did before: the boxes that take part chosen by `nonzero`, torchvision's `nms` "
    "for all of them moved apart or group by group, then the best by `topk`."
)
_TOGETHER_CPU, _TOGETHER_CUDA = 1_000, 25_000  # most boxes that the two-step way moves apart


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[
            ("RPN", 16, 8_800, 5, 1_000),
            ("RPN", 4, 1_500, 5, 500),
            ("detection", 1, 80_000, 80, 100),
            ("detection", 16, 80_000, 80, 100),
            ("RetinaNet", 1, 5_000, 80, 100),
        ],
        quick=[("RPN", 4, 1_500, 5, 500), ("detection", 1, 80_000, 80, 100)],
        tiny=[("RPN", 2, 60, 3, 20), ("detection", 1, 400, 4, 10)],
    )
    return [_case(plan, *size) for size in sizes]


def bytes_moved(batch: int, n: int, limit: int) -> int:
    """Box, score and group of each slot; index and flag of each place in the result."""
    return batch * (28 * n + 9 * limit)


def make(kind: str, batch: int, n: int, groups: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """boxes [B, N, 4], scores [B, N], groups [B, N]."""
    heaps = n // 8 + 1
    sides = 16 * 16 ** torch.rand(batch, heaps, 2, generator=generator)
    centres = torch.rand(batch, heaps, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    own = torch.randint(heaps, (batch, n), generator=generator)
    image = torch.arange(batch)[:, None]
    side = sides[image, own] * (1 + 0.1 * torch.randn(batch, n, 2, generator=generator)).clamp(min=0.5)
    centre = centres[image, own] + 0.1 * side * torch.randn(batch, n, 2, generator=generator)
    boxes = torch.cat([centre - side / 2, centre + side / 2], -1)
    scores = torch.rand(batch, n, generator=generator)
    if kind != "RPN":
        low = torch.rand(batch, n, generator=generator) >= 1_500 / n
        scores = torch.where(low, scores * 0.05, scores)
    return boxes, scores, torch.randint(groups, (batch, n), generator=generator)


def agrees(ours: tuple, theirs: tuple) -> None:
    """Equal but for ties of scores, whose order torchvision and `topk` leave open."""
    mostly_equal(ours[1], theirs[1], "valid", 0.01)
    both = ours[1] & theirs[1]
    mostly_equal(ours[0][both], theirs[0][both], "index", 0.01)


def two_step(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, limit: int, threshold: float | None):
    valid = torch.ones_like(scores, dtype=torch.bool) if threshold is None else scores > threshold
    chosen = valid.flatten().nonzero().squeeze(1)  # [M] positions in B * N
    batch = len(groups)
    group = (groups * batch + torch.arange(batch, device=groups.device)[:, None]).flatten()[chosen]
    own, score = boxes.reshape(-1, 4)[chosen].double(), scores.flatten()[chosen].double()
    if len(own) <= (_TOGETHER_CUDA if own.is_cuda else _TOGETHER_CPU):
        room = (own.max() - own.min()).ceil() + 1
        survivors = nms(own + (group * room)[:, None], score, iou)
    else:
        order = group.argsort()
        parts = order.split(group[order].unique_consecutive(return_counts=True)[1].tolist())
        survivors = torch.cat([part[nms(own[part], score[part], iou)] for part in parts])
    kept = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    kept[chosen[survivors]] = True
    best = scores.masked_fill(~kept.view_as(valid), -torch.inf).topk(min(limit, scores.shape[1]), dim=1)
    return best.indices, best.values > -torch.inf


def _case(plan: Plan, kind: str, batch: int, n: int, groups: int, limit: int) -> Case:
    iou, threshold = (0.7, None) if kind == "RPN" else (0.5, 0.05)
    rules = {"iou_threshold": iou, "max_output": limit, "score_threshold": threshold}
    matrix = 30 * n * n  # of one image: corners, overlaps and areas of all pairs
    sides = {
        OURS: Side(lambda *arguments: nms_padded(*arguments, **rules)),
        "torchvision": Side(
            lambda *arguments: _image_by_image(*arguments, iou, limit, threshold), agrees=_agrees_with_lists
        ),
        "two-step": Side(lambda *arguments: two_step(*arguments, iou, limit, threshold), agrees=agrees),
        EAGER: Side(
            lambda *arguments: reference.nms_padded(*arguments, **rules),
            agrees=agrees,
            needs=matrix,
            not_run="" if n <= 1_500 and not plan.cuda else "left out: seconds a call",
        ),
    }
    return Case(
        "nms_padded",
        f"{kind}, {shown(batch, n)} -> {limit:,}",
        batch * n,
        lambda generator: make(kind, batch, n, groups, generator),
        sides,
        bytes_moved(batch, n, limit),
        training=kind == "RPN",
        goal=(kind, batch) in (("RPN", 16), ("detection", 1)),
    )


def _image_by_image(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, limit: int, threshold: float | None):
    found = []
    for box, score, group in zip(boxes, scores, groups, strict=True):
        if threshold is None:
            found.append(batched_nms(box, score, group, iou)[:limit])
        else:
            part = (score > threshold).nonzero().squeeze(1)
            found.append(part[batched_nms(box[part], score[part], group[part], iou)[:limit]])
    return found


def _agrees_with_lists(ours: tuple, theirs: list[Tensor]) -> None:
    for index, valid, other in zip(*ours, theirs, strict=True):
        if abs(int(valid.sum()) - len(other)) > 0.01 * len(other):
            raise Mismatch(f"boxes kept: {int(valid.sum())} here, {len(other)} there")
        count = min(int(valid.sum()), len(other))
        mostly_equal(index[:count], other[:count], "index", 0.05)  # one box more moves all behind it
