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

_EPS = 1e-6  # smallest union (px^2), and smallest side (px), as in the published implementation
MAX_LOG_SCALE = math.log(1000 / 16)  # a side grows at most by this factor


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


def topk_per_level(scores: Tensor, level_sizes, k: int, threshold: float | None = None) -> tuple[Tensor, Tensor]:
    """[B, N] -> values, index [B, T]: of each level the k best, by falling score, then by rising index; NaN last."""
    values, index, first = [], [], 0
    for level in scores.split(list(level_sizes), dim=1):
        rest = level.isnan() if threshold is None else ~(level > threshold)  # NaN is not above it either
        order = level.masked_fill(rest, -torch.inf).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, rest.gather(1, order).byte().argsort(dim=1, stable=True))[:, :k]
        found = level.gather(1, order)
        if threshold is not None:
            empty = rest.gather(1, order)
            found, order = found.masked_fill(empty, -torch.inf), order.masked_fill(empty, 0)
        values.append(found)
        index.append(order + first)
        first += level.shape[1]
    return torch.cat(values, 1), torch.cat(index, 1)


def encode_boxes(references, targets, index=None, target_index=None, delta_stds=(1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """R-CNN (Girshick et al. 2014), appendix C, eq. 6-9: [N, 4] or [B, N, 4] and [B, G, 4] -> deltas [B, S, 4]."""
    references = references.expand(targets.shape[0], -1, -1)
    if index is not None:
        references = torch.take_along_dim(references, index[..., None], 1)
    if target_index is not None:
        targets = torch.take_along_dim(targets, target_index[..., None], 1)
    reference_size = (references[..., 2:] - references[..., :2]).clamp(min=_EPS)
    target_size = (targets[..., 2:] - targets[..., :2]).clamp(min=_EPS)
    shift = ((targets[..., :2] + targets[..., 2:]) - (references[..., :2] + references[..., 2:])) / 2 / reference_size
    return torch.cat((shift, (target_size / reference_size).log()), -1) / targets.new_tensor(delta_stds)


def decode_boxes(references, deltas, index=None, delta_stds=(1.0, 1.0, 1.0, 1.0), sizes=None) -> Tensor:
    """The same, eq. 1-4: [N, 4] or [B, N, 4] and [B, N, 4] or [B, N, C, 4] -> boxes [B, S, 4] or [B, S, C, 4]."""
    references = references.expand(deltas.shape[0], -1, -1)
    if index is not None:
        # gather, and shape[0] above: take_along_dim and len() would fix the batch of an exported file
        references = references.gather(1, index[..., None].expand(-1, -1, 4))
        deltas = deltas.gather(1, index.unflatten(1, (-1, *[1] * (deltas.dim() - 2))).expand(-1, -1, *deltas.shape[2:]))
    if deltas.dim() == 4:
        references = references[:, :, None]
    deltas = deltas * torch.as_tensor(delta_stds, dtype=deltas.dtype, device=deltas.device)
    size = references[..., 2:] - references[..., :2]
    centre = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
    boxes = torch.cat((centre - half, centre + half), -1)
    if sizes is None:
        return boxes
    limits = sizes.flip(-1).repeat(1, 2).reshape(-1, *[1] * (boxes.dim() - 2), 4)  # width, height, twice
    return torch.minimum(boxes.clamp(min=0), limits.to(boxes))


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


def nms_padded(boxes, scores, groups=None, *, iou_threshold, max_output, score_threshold=None, valid=None):
    """Greedy non-maximum suppression within groups, as torchvision's `nms` does it for each -> index, valid."""
    boxes, scores = boxes.float(), scores.float()
    part = boxes.isfinite().all(-1) & ~scores.isnan()  # [B, N]: what takes part
    if score_threshold is not None:
        part &= scores > score_threshold
    if valid is not None:
        part &= valid
    groups = torch.zeros_like(part, dtype=torch.int64) if groups is None else groups
    result = torch.zeros(2, len(boxes), min(max_output, boxes.shape[1]), dtype=torch.int64)
    for image in range(len(boxes)):
        order = scores[image].argsort(descending=True, stable=True)
        order = order[part[image, order]]  # [M]
        own, group = boxes[image, order], groups[image, order]
        overlap = torch.minimum(own[:, None, 2:], own[:, 2:]) - torch.maximum(own[:, None, :2], own[:, :2])
        intersection = overlap.clamp(min=0).prod(-1)  # [M, M]
        area = (own[:, 2:] - own[:, :2]).prod(-1)
        iou = intersection / (area[:, None] + area - intersection)
        suppresses = (iou.double() > iou_threshold) & (group[:, None] == group)
        kept = torch.ones_like(order, dtype=torch.bool)
        for i in range(len(order)):
            if kept[i]:
                kept[i + 1 :] &= ~suppresses[i, i + 1 :]
        best = order[kept][: result.shape[2]]
        result[0, image, : len(best)] = best
        result[1, image, : len(best)] = 1
    return result[0], result[1].bool()


def sigmoid_focal_loss(logits, labels, mask=None, alpha=0.25, gamma=2.0, reduction="none"):
    """Lin et al. 2017, eq. 5: -w (1 - p)^gamma ln(p), p the probability of the right answer, class by class."""
    own = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)  # [..., C]
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if mask is not None:
        logits = torch.where(mask[..., None], logits, 0.0)  # a masked slot counts nothing, whatever it holds
    margin = torch.where(own, logits, -logits)  # the logit of the right answer
    log_p = torch.nn.functional.logsigmoid(margin)
    # ln(1 - p) = ln(p) - margin: finite, with a finite gradient, where 1 - p itself would round to 0
    weight = torch.where(own, margin.new_tensor(alpha), 1 - alpha)
    loss = -weight * log_p * (gamma * (log_p - margin)).exp()
    if mask is not None:
        loss = torch.where(mask[..., None], loss, 0.0)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def integrate_pyramid(features: list[Tensor], level: int) -> Tensor:
    """Libra R-CNN, eq. 4: the mean of the levels, finer ones max-pooled, coarser ones repeated to the size of one."""
    size = features[level].shape[2:]
    finer, coarser = features[:level], features[level:]
    resized = [F.adaptive_max_pool2d(x, size) for x in finer] + [F.interpolate(x, size=size) for x in coarser]
    return sum(resized) / len(features)


def scatter_pyramid(features: list[Tensor], refined: Tensor, level: int) -> list[Tensor]:
    """Libra R-CNN, section 3.2: the refined map at every level, repeated for finer ones, max-pooled for coarser."""
    sizes = [x.shape[2:] for x in features]
    back = [F.interpolate(refined, size=size) for size in sizes[:level]]
    back += [F.adaptive_max_pool2d(refined, size) for size in sizes[level:]]
    return [x + y for x, y in zip(features, back, strict=True)]


def _axis_weights(low, high, size, cells, sampling_ratio):
    """Weights of `size` feature cells in each output cell along an axis, [P, size]; low, high: feature cells."""
    length = (high - low) / cells
    points = sampling_ratio or max(math.ceil(length), 0)
    if points == 0:
        return torch.zeros(cells, size, dtype=low.dtype, device=low.device)
    position = low + (torch.arange(cells * points, dtype=low.dtype, device=low.device) + 0.5) * length / points
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    weights = (1 - (position[:, None] - torch.arange(size, device=low.device)).abs()).clamp(min=0) * inside[:, None]
    return weights.reshape(cells, points, size).mean(1)


def multiscale_roi_align(features, boxes, valid=None, *, strides, output_size=7, sampling_ratio, finest_scale=56.0):
    """RoIAlign (He et al. 2017, fig. 3), aligned, as a product with weights of rows and of columns, from the level of
    Lin et al. 2017, eq. 1."""
    boxes = boxes.to(features[0].dtype).masked_fill(~boxes.isfinite().all(-1, keepdim=True), 0.0)
    levels = (area(boxes).sqrt() / finest_scale + 1e-6).log2().floor().clamp(0, len(features) - 1)
    pooled = features[0].new_zeros(*boxes.shape[:2], features[0].shape[1], output_size, output_size)
    for image, slot in pooled.new_ones(pooled.shape[:2]).nonzero().tolist():
        if valid is not None and not valid[image, slot]:
            continue
        level = int(levels[image, slot])
        x1, y1, x2, y2 = boxes[image, slot] / strides[level] - 0.5
        height, width = features[level].shape[2:]
        rows = _axis_weights(y1, y2, height, output_size, sampling_ratio)
        columns = _axis_weights(x1, x2, width, output_size, sampling_ratio)
        pooled[image, slot] = torch.einsum("py,qx,cyx->cpq", rows, columns, features[level][image])
    return pooled


def box_regression_loss(pred, target, kind="iou", weight=None, reduction="none", references=None, delta_stds=None):
    """1 - overlap of pairs: GIoU (Rezatofighi et al. 2019), DIoU and CIoU (Zheng et al. 2020), of decoded deltas."""
    if references is not None:
        stds = (1.0, 1.0, 1.0, 1.0) if delta_stds is None else delta_stds
        rows = [x.reshape(1, -1, 4) for x in (references.expand_as(pred), pred)]  # as boxes of one image
        pred = decode_boxes(*rows, delta_stds=stds).reshape(pred.shape)
    if weight is not None:  # a masked pair counts nothing, whatever it holds
        pred, target = (torch.where(weight[..., None] == 0, torch.zeros_like(x), x) for x in (pred, target))
    loss = 1 - box_iou(pred[..., None, :], target[..., None, :], kind)[..., 0, 0]
    if weight is not None:
        loss = loss * weight
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]
