"""The published Libra R-CNN's assignment and sampling of one image, written in NumPy from its description.

The published code (mmdetection's MaxIoUAssigner, IoUBalancedNegSampler and InstanceBalancedPosSampler) stores the IoU
of every candidate with every target, takes maxima both ways, then draws on the host with sets of indices. This is that
algorithm with its quirks, in idiomatic NumPy: the baseline of `match_and_sample`.

N candidates, G targets. Boxes are xyxy in continuous pixels. An assignment is 0 for a negative, -1 for an ignored
candidate, and k + 1 for target k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_UNION = np.float32(1e-6)


def box_iou(candidates: NDArray, targets: NDArray) -> NDArray:
    """[N, 4], [G, 4] float32 -> [G, N]; by coordinates, which NumPy does several times as fast as pairs of them."""
    width = np.minimum(targets[:, None, 2], candidates[:, 2]) - np.maximum(targets[:, None, 0], candidates[:, 0])
    height = np.minimum(targets[:, None, 3], candidates[:, 3]) - np.maximum(targets[:, None, 1], candidates[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)  # [G, N]
    union = _area(targets)[:, None] + _area(candidates) - intersection
    return intersection / np.maximum(union, SMALLEST_UNION)


def _area(boxes: NDArray) -> NDArray:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def assign(
    iou: NDArray, positive_iou: float, negative_iou: float, min_positive_iou: float | None = None
) -> tuple[NDArray, NDArray]:
    """IoU [G, N] -> assignment [N] int64, highest IoU [N].

    With `min_positive_iou`, every target whose best IoU reaches it claims, in order, all candidates that tie with it.
    """
    best = iou.max(0)
    assignment = np.full(iou.shape[1], -1)
    assignment[best < negative_iou] = 0
    positive = best >= positive_iou
    assignment[positive] = iou.argmax(0)[positive] + 1
    if min_positive_iou is not None:
        for target, top in enumerate(iou.max(1)):
            if top >= min_positive_iou:
                assignment[iou[target] == top] = target + 1
    return assignment, best


def sample_positives(assignment: NDArray, count: int, rng: np.random.Generator) -> NDArray:
    """Instance-balanced: round(count / targets) + 1 of every target, then topped up or trimmed at random.

    The top-up leaves out what was drawn; the published one can draw it again (a bug: duplicates among the samples).
    """
    positives = np.flatnonzero(assignment > 0)
    if len(positives) <= count:
        return positives
    found = np.unique(assignment[positives])
    each = int(round(count / len(found)) + 1)
    drawn = []
    for target in found:
        members = np.flatnonzero(assignment == target)
        drawn.append(rng.choice(members, each, replace=False) if len(members) > each else members)
    sampled = np.concatenate(drawn)
    if len(sampled) < count:
        rest = np.array(list(set(positives.tolist()) - set(sampled.tolist())))
        more = count - len(sampled)
        sampled = np.concatenate([sampled, rng.choice(rest, more, replace=False) if len(rest) > more else rest])
    elif len(sampled) > count:
        sampled = rng.choice(sampled, count, replace=False)
    return sampled


def sample_negatives(
    assignment: NDArray,
    best: NDArray,
    count: int,
    rng: np.random.Generator,
    num_bins: int = 3,
    first_call: bool = False,
) -> NDArray:
    """IoU-balanced: int(count / num_bins) from each of equal bins over [0, highest IoU of all candidates).

    A bin that is short gives all it has; what is missing is drawn from the other negatives. In its first call a sampler
    of the published code treats IoU 0 as any other; from then on it draws such negatives only when the others run out.
    """
    negatives = np.flatnonzero(assignment == 0)
    if len(negatives) <= count:
        return negatives
    negative_set = set(negatives.tolist())
    without_overlap = set() if first_call else set(np.flatnonzero(best == 0).tolist())
    last_resort = negative_set & without_overlap
    balanced = negative_set - without_overlap
    if len(balanced) > count:
        sampled = _sample_bins(best, balanced, count, num_bins, rng)
    else:
        sampled = np.array(list(balanced), dtype=np.int64)
    if len(sampled) < count:
        more = count - len(sampled)
        rest = np.array(list(last_resort), dtype=np.int64)
        sampled = np.concatenate([sampled, rng.choice(rest, more, replace=False) if len(rest) > more else rest])
    return sampled


def _sample_bins(best: NDArray, members: set[int], count: int, num_bins: int, rng: np.random.Generator) -> NDArray:
    width = best.max() / num_bins
    quota = count // num_bins
    drawn = []
    for k in range(num_bins):
        in_bin = set(np.flatnonzero((best >= k * width) & (best < (k + 1) * width)).tolist()) & members
        chosen = np.array(list(in_bin), dtype=np.int64)
        drawn.append(rng.choice(chosen, quota, replace=False) if len(chosen) > quota else chosen)
    sampled = np.concatenate(drawn)
    if len(sampled) < count:
        rest = np.array(list(members - set(sampled.tolist())), dtype=np.int64)
        more = count - len(sampled)
        sampled = np.concatenate([sampled, rng.choice(rest, more, replace=False) if len(rest) > more else rest])
    return sampled


def match_and_sample(
    candidates: NDArray,
    targets: NDArray,
    rng: np.random.Generator,
    num_samples: int = 512,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
    negative_iou: float = 0.5,
) -> tuple[NDArray, NDArray, NDArray]:
    """One image, as the R-CNN head of the published code does it: assignment [N], positives, negatives drawn."""
    assignment, best = assign(box_iou(candidates, targets), positive_iou, negative_iou)
    positives = sample_positives(assignment, int(num_samples * positive_fraction), rng)
    negatives = sample_negatives(assignment, best, num_samples - len(positives), rng)
    return assignment, positives, negatives
