"""topk_per_level: the best scores of every level of every image. Bytes bind: each score is read once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.case import EAGER, OURS, Case, Mismatch, Plan, Side, shown
from libra_ops import topk_per_level

TITLE = "topk_per_level"
AXIS = "scores"
TEXT = (
    "The k best scores of each level of each image, as detectors take them before non-maximum suppression. The eager "
    "side is a loop over the levels with torch.topk, which leaves the order of equal scores open; torch.compile calls "
    "the same. Bytes: 4 for each score, 12 for each result."
)
LEVELS = (201_600, 50_400, 12_600, 3150, 819)  # anchors of an image of 800 x 1344 pixels, three in a cell
SMALL = (14_400, 3600, 900, 240, 60)  # of one of 240 x 320


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[(16, LEVELS, 2000), (1, LEVELS, 1000), (4, SMALL, 500)],
        quick=[(4, SMALL, 500)],
        tiny=[(2, (50, 10), 5)],
    )
    return [_case(*size) for size in sizes]


def each_level(scores: Tensor, levels: tuple[int, ...], k: int) -> tuple[Tensor, Tensor]:
    """What a detector does today."""
    values, index, first = [], [], 0
    for level in scores.split(levels, 1):
        best = level.topk(min(k, level.shape[1]), dim=1)
        values.append(best.values)
        index.append(best.indices + first)
        first += level.shape[1]
    return torch.cat(values, 1), torch.cat(index, 1)


def _case(images: int, levels: tuple[int, ...], k: int) -> Case:
    scores, slots = images * sum(levels), images * sum(min(k, n) for n in levels)

    def make(generator: torch.Generator) -> tuple:
        return (torch.randn(images, sum(levels), generator=generator) - 4,)

    def agrees(ours: tuple, theirs: tuple) -> None:
        if not torch.equal(ours[0], theirs[0]):
            raise Mismatch("topk_per_level: the values differ")

    sides = {
        OURS: Side(partial(topk_per_level, level_sizes=levels, k=k)),
        EAGER: Side(partial(each_level, levels=levels, k=k), agrees=agrees),
    }
    name = f"{images} x {shown(sum(levels), k)}"
    return Case("topk_per_level", name, scores, make, sides, 4 * scores + 12 * slots, training=True)
