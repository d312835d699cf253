"""The best candidates of a dense head, and boxes from deltas: `libra_ops`, or plain PyTorch while a model is exported.

Exported files have to do without this package, so `torch.export` is shown what other programs know too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import libra_ops
from libra_det.models.exporting import exporting
from libra_ops import reference

_MARGIN = 1e-5  # by which a bound on logits is lower than rounding could make it matter


def best_per_level(
    logits: Tensor, level_sizes: Sequence[int], per_level: int, *, score_threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """The best of each level of each image.

    Args:
        logits: [B, N] float32.
        level_sizes: [L] how many of N each level has.
        per_level: how many of each level, or all of a level that has no more.
        score_threshold: candidates whose probability is clearly below it may be left out: their slots have the logit
            -inf.

    Returns:
        values, index: [B, T] float32 and int64 in 0..N-1, T being the sum of min(`per_level`, level size).
    """
    if exporting():
        return _best_per_level_for_export(logits, level_sizes, per_level)
    return libra_ops.topk_per_level(logits, level_sizes, per_level, threshold=_logit_below(score_threshold))


def levels_of_slots(index: Tensor, level_sizes: Sequence[int], per_level: int) -> Tensor:
    """[B, T] as `best_per_level` gives it -> [B, T] int64, the level of each slot, 0..L-1."""
    smaller = torch.sym_min if exporting() else min  # torch.compile has plain numbers here, and no sym_min of them
    levels = [index.new_full((smaller(per_level, size),), level) for level, size in enumerate(level_sizes)]
    return torch.cat(levels).expand_as(index)


def decode_boxes(
    references: Tensor,
    deltas: Tensor,
    *,
    index: Tensor | None = None,
    delta_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    sizes: Tensor | None = None,
) -> Tensor:
    """`libra_ops.decode_boxes`: boxes [B, S, 4] or [B, S, C, 4]."""
    decode = reference.decode_boxes if exporting() else libra_ops.decode_boxes
    return decode(references, deltas, index=index, delta_stds=delta_stds, sizes=sizes)


def _best_per_level_for_export(logits: Tensor, level_sizes: Sequence[int], per_level: int) -> tuple[Tensor, Tensor]:
    values, index, first = [], [], 0
    for level in logits.split(level_sizes, dim=1):
        best = level.topk(torch.sym_min(per_level, level.shape[1]), dim=1)  # [B, k]
        values.append(best.values)
        index.append(best.indices + first)
        first += level.shape[1]
    return torch.cat(values, 1), torch.cat(index, 1)


def _logit_below(probability: float | None) -> float | None:
    """A logit whose probability is a little below, so that rounding leaves the decision to who compares that."""
    if probability is None or probability <= 0:
        return None
    p = min(probability, 1.0) * (1 - _MARGIN)
    return math.log(p / (1 - p))
