"""One plain-PyTorch twin per operation: the oracle of the tests and the eager side of the benchmarks.

Written to be compared with the papers by eye, not to be fast: they store every candidates x targets matrix and run
anywhere. Arguments, results and their shapes are those of the public functions; nothing is checked.
B images, N candidates, G targets, C crowd regions, S samples, K IoU bins. Boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6  # smallest union, as in the published implementation (px^2)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]; a box without extent, or inverted, has area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def box_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """IoU, and with it IoF, GIoU (Rezatofighi et al. 2019, eq. 3), DIoU and CIoU (Zheng et al. 2020, eq. 7 and 10)."""
    if boxes1.dtype == torch.float32 and any((boxes.abs() > 1e18).any() for boxes in (boxes1, boxes2)):
        return box_iou(boxes1.double(), boxes2.double(), kind).float()  # squares of such lengths overflow float32
    a, b = boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)  # [..., N, 1, 4], [..., 1, M, 4]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap.prod(-1)  # [..., N, M]
    if kind == "iof":
        return intersection / area(a).clamp(min=_EPS)
    union = area(a) + area(b) - intersection
    iou = intersection / union.clamp(min=_EPS)
    if kind == "iou":
        return iou
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    if kind == "giou":
        return iou - (hull.prod(-1) - union) / hull.prod(-1).clamp(min=_EPS)
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    diou = iou - centres.square().sum(-1) / hull.square().sum(-1).clamp(min=_EPS)
    if kind == "diou":
        return diou
    size_a, size_b = (a[..., 2:] - a[..., :2]).clamp(min=0), (b[..., 2:] - b[..., :2]).clamp(min=0)
    angle = [torch.atan(s[..., 0] / s[..., 1].clamp(min=_EPS)) for s in (size_a, size_b)]
    v = (4 / math.pi**2) * (angle[0] - angle[1]).square()
    return diou - v * v / (1 - iou + v).clamp(min=_EPS)


def match_boxes(boxes, targets, valid, positive_iou, negative_iou, min_positive_iou=None, crowd=None):
    """Max-IoU assignment as published (mmdetection's MaxIoUAssigner), less its zero-area claim -> index, iou, state."""
    boxes = boxes.expand(targets.shape[0], -1, -1)
    real = valid & (area(targets) > 0) & targets.isfinite().all(-1)  # [B, G]: targets that can be found
    finite = boxes.isfinite().all(-1)  # [B, N]
    ignored = ~finite
    if crowd is not None and crowd.shape[1]:
        ignored = ignored | (box_iou(boxes, crowd, "iof").nan_to_num(0).amax(-1) > 0.5)
    iou = box_iou(boxes, targets).masked_fill(~(real[:, None] & finite[..., None]), 0)  # [B, N, G]
    if targets.shape[1] == 0:
        iou = boxes.new_zeros(*boxes.shape[:2], 1)
        real = real.new_zeros(len(real), 1)
    best, index = iou.max(-1)  # [B, N]; the first of equal targets
    state = torch.full_like(index, -1)
    state[best < negative_iou] = 0
    state[best >= positive_iou] = 1
    if min_positive_iou is not None:
        candidates = iou.masked_fill(ignored[..., None], 0)
        top = candidates.amax(1, keepdim=True) if iou.shape[1] else candidates.sum(1, keepdim=True)  # [B, 1, G]
        claims = (candidates == top) & (top > 0) & (top >= min_positive_iou) & real[:, None]
        last = claims.shape[-1] - 1 - claims.flip(-1).int().argmax(-1)  # the last target that claims the box
        index = torch.where(claims.any(-1), last, index)
        state[claims.any(-1)] = 1
    state[~real.any(-1)] = 0
    state[ignored] = -1
    return index, best.float(), state.to(torch.int8)


def philox(seed: int, image: int, candidates: Tensor) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): counter (candidate, image, 0, 0), key seed -> four words [N], 0..2^32-1."""
    mask = 0xFFFFFFFF
    k0, k1 = seed & mask, (seed >> 32) & mask
    c = [candidates.long(), torch.full_like(candidates.long(), image), *(torch.zeros_like(candidates.long()),) * 2]

    def multiply(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:  # 32 x 32 bits -> high, low, without passing int64
        low, high = factor * (x & 0xFFFF), factor * (x >> 16)
        return ((low >> 16) + high) >> 16, (low + ((high & 0xFFFF) << 16)) & mask

    for _ in range(10):
        (h0, l0), (h1, l1) = multiply(0xD2511F53, c[0]), multiply(0xCD9E8D57, c[2])
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c


def _rank(group: Tensor, key: Tensor) -> Tensor:
    """[N], [N] -> [N]: each element's position among those of its group, by key and then by index."""
    order = key.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - torch.searchsorted(sorted_group, sorted_group)
    return rank


def negative_groups(iou: Tensor, num_bins: int, interval: tuple[float, float], bins: str) -> Tensor:
    """[N] -> [N]: the IoU bin 0..K-1; K where no bin holds it; K + 1 where it is drawn only when all others ran out."""
    low, high = interval if bins == "paper" else (0.0, max(iou[~iou.isnan()].tolist(), default=-math.inf))
    edges = [torch.tensor(low + k * (high - low) / num_bins).float() for k in range(num_bins + 1)]
    group = sum((iou >= edge).long() for edge in edges[1:-1]) + torch.zeros_like(iou, dtype=torch.long)
    if num_bins > 1:
        group[~((iou >= edges[0]) & (iou < edges[-1]))] = num_bins  # a NaN too
    if bins == "published":
        group[iou <= 0] = num_bins + 1
    return group


def sample_iou_balanced(index, iou, state, seed, num_samples, max_positives, num_bins=3, interval=(0.0, 0.5),
                        max_negatives_per_positive=None, positives="instance_balanced", bins="paper"):  # fmt: skip
    """Libra R-CNN, section 3.1: N/K negatives from each of K IoU bins, p = N/K * 1/M_k -> index, valid, positive."""
    result = torch.zeros(3, len(index), num_samples, dtype=torch.int64)
    for image in range(len(index)):
        words = philox(int(seed), image, torch.arange(index.shape[1]))
        # Positives: in every round each target that has one left gives one; who gives in the last round is random.
        candidates = (state[image] == 1).nonzero()[:, 0]
        target = index[image, candidates] if positives == "instance_balanced" else candidates * 0
        turn = _rank(target, words[2][candidates])
        if positives == "instance_balanced":
            turn = _rank(turn * 0, turn * 2**32 + words[3][candidates])
        chosen = candidates[turn < max_positives]
        # Negatives: the quota of every bin, then refill from the rest.
        count = num_samples - len(chosen)
        if max_negatives_per_positive is not None:
            count = min(count, int(max_negatives_per_positive * max(1, len(chosen)) + 1e-6))
        candidates = (state[image] == 0).nonzero()[:, 0]
        group = negative_groups(iou[image], num_bins, interval, bins)[candidates]
        taken = (group < num_bins) & (_rank(group, words[0][candidates]) < count // num_bins)
        refill = ~taken * 2**34 + (group > num_bins) * 2**33 + words[1][candidates]
        chosen_negatives = candidates[_rank(refill * 0, refill) < count]
        samples = torch.cat([chosen, chosen_negatives])
        result[0, image, : len(samples)] = samples
        result[1, image, : len(samples)] = 1
        result[2, image, : len(chosen)] = 1
    return result[0], result[1].bool(), result[2].bool()


def balanced_l1_loss(pred, target, weight=None, alpha=0.5, gamma=1.5, beta=1.0, formula="paper", reduction="none"):
    """Libra R-CNN, eq. 6-8: gradient alpha ln(b|x|/beta + 1) up to beta, gamma beyond; alpha ln(b + 1) = gamma."""
    b = math.expm1(gamma / alpha)
    x = (pred - target).abs()
    if weight is not None:
        x = torch.where(weight == 0, torch.zeros_like(x), x)  # a masked element counts nothing, whatever it holds
    inner = x.clamp(max=beta)  # keeps the branch that is not taken finite
    logarithm = (b * inner / beta).log1p()
    if formula == "paper":
        curve = alpha * ((inner + beta / b) * logarithm - inner)
        line = gamma * x + gamma * beta / b - alpha * beta
    else:  # as published: beta divides inside the logarithm only, and the two pieces meet at beta = 1 alone
        curve = alpha * ((inner + 1 / b) * logarithm - inner)
        line = gamma * x + gamma / b - alpha * beta
    loss = torch.where(x < beta, curve, line)
    if weight is not None:
        loss = loss * weight
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def integrate_pyramid(features: list[Tensor], level: int) -> Tensor:
    """Libra R-CNN, eq. 4: the mean of the levels, finer ones max-pooled, coarser ones repeated to one size."""
    size = features[level].shape[2:]
    finer, coarser = features[:level], features[level:]
    resized = [F.adaptive_max_pool2d(x, size) for x in finer] + [F.interpolate(x, size=size) for x in coarser]
    return sum(resized) / len(features)


def scatter_pyramid(features: list[Tensor], refined: Tensor, level: int) -> list[Tensor]:
    """Libra R-CNN, section 3.2: the refined map back to every level, repeated for finer ones, else max-pooled."""
    sizes = [x.shape[2:] for x in features]
    back = [F.interpolate(refined, size=size) for size in sizes[:level]]
    back += [F.adaptive_max_pool2d(refined, size) for size in sizes[level:]]
    return [x + y for x, y in zip(features, back, strict=True)]
