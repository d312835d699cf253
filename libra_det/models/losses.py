"""Loss sums over masked slots, in float32. Where the mask is False neither loss nor gradient passes, NaN or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import libra_ops
from libra_det.config import ModelConfig

OVERLAP_LOSSES = ("iou", "giou", "diou", "ciou")
BOX_LOSSES = ("l1", "smooth_l1", "balanced_l1", *OVERLAP_LOSSES)


def regression_loss_sum(
    deltas: Tensor,
    references: Tensor,
    targets: Tensor,
    mask: Tensor,
    kind: str,
    config: ModelConfig,
    stds: Sequence[float] | None = None,
) -> Tensor:
    """Sum of a box regression loss over the slots of `mask`.

    Args:
        deltas: [B, S, 4] as predicted (`libra_ops.decode_boxes`).
        references: the boxes that they move, xyxy pixels; [B, S, 4], or [S, 4] that all images share.
        targets: [B, S, 4] xyxy pixels.
        mask: [B, S] bool.
        kind: "iou", "giou", "diou" or "ciou", 1 - the overlap of the decoded box with its target; or a loss of the four
            deltas, of `box_loss_sum`.
        stds: [4], what the deltas were divided by; None for ones.

    Returns:
        Scalar float32.
    """
    if kind in OVERLAP_LOSSES:
        return libra_ops.box_regression_loss(
            deltas.float(), targets, kind, mask, reduction="sum", references=references, delta_stds=stds
        )
    return box_loss_sum(deltas, libra_ops.encode_boxes(references, targets, delta_stds=stds), mask, kind, config)


def box_loss_sum(predicted: Tensor, wanted: Tensor, mask: Tensor, kind: str, config: ModelConfig) -> Tensor:
    """Sum of a box regression loss over the slots of `mask` and the four deltas.

    Args:
        predicted, wanted: [..., 4] deltas.
        mask: [...] bool.
        kind: "l1", "smooth_l1" or "balanced_l1" (its constants come from `config`).

    Returns:
        Scalar float32.
    """
    predicted, wanted = predicted.float(), wanted.float()
    if kind == "balanced_l1":
        return libra_ops.balanced_l1_loss(
            predicted,
            wanted,
            mask[..., None].float(),
            alpha=config.balanced_l1_alpha,
            gamma=config.balanced_l1_gamma,
            beta=config.box_loss_beta,
            formula=config.balanced_l1_formula,
            reduction="sum",
        )
    error = torch.where(mask[..., None], predicted - wanted, 0.0)
    if kind == "l1":
        return error.abs().sum()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=config.box_loss_beta)
    raise ValueError(f"box loss: expected one of {', '.join(BOX_LOSSES)}; got {kind!r}")


def binary_loss_sum(logits: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    """Sum of the binary cross-entropy of `logits` [...] against `positive` [...] bool over the slots of `mask`."""
    logits = torch.where(mask, logits.float(), 0.0)
    loss = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    return torch.where(mask, loss, 0.0).sum()


def focal_loss_sum(logits: Tensor, labels: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the sigmoid focal loss (Lin et al. 2017, equation 5) over the slots of `mask` and all classes.

    Each class is a question of its own: yes for the slot's label, no for the others. With p the probability of the
    right answer, the loss is -w (1 - p)^gamma log(p), w = alpha where the answer is yes and 1 - alpha where it is no.

    Args:
        logits: [..., C].
        labels: [...] int64 in 0..C; C, the background, is no for every class.
        mask: [...] bool.
        alpha: weight of the slot's own class, 0 to 1.
        gamma: how much less a confident right answer counts, >= 0; 0 is the cross-entropy.

    Returns:
        Scalar float32.
    """
    return libra_ops.sigmoid_focal_loss(logits, labels, mask, alpha=alpha, gamma=gamma, reduction="sum")


def class_loss_sum(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cross-entropy of `logits` [..., C + 1] against `labels` [...] int64 over the slots of `mask`."""
    labels = labels.masked_fill(~mask, -100)  # [...] -> [M] below; -100 is left out
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
