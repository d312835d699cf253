from typing import NamedTuple
import torch
from torch import Tensor
from . import reference as _r
from ._extension import build_info as build_info
from .balanced_l1_loss import balanced_l1_loss as balanced_l1_loss


class Matches(NamedTuple):
    index: Tensor
    iou: Tensor
    state: Tensor


class Samples(NamedTuple):
    index: Tensor
    valid: Tensor
    positive: Tensor


def box_iou(boxes1, boxes2, kind="iou"):
    return _r.box_iou(boxes1, boxes2, kind)


@torch.no_grad()
def match_boxes(boxes, targets, valid, *, positive_iou, negative_iou, min_positive_iou=None, crowd=None):
    if crowd is not None and crowd.dtype == torch.bool:
        valid = valid & ~crowd
        crowd = torch.where(crowd[..., None], targets, 0)
    if boxes.dim() == 2:
        boxes = boxes[None]
    return Matches(*_r.match_boxes(boxes.float(), targets.float(), valid, positive_iou, negative_iou, min_positive_iou, crowd))


@torch.no_grad()
def sample_iou_balanced(matches, *, num_samples, positive_fraction, num_bins=3, interval=(0.0, 0.5), max_negatives_per_positive=None,
                        positives="instance_balanced", bins="paper", generator=None):
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
    return Samples(*_r.sample_iou_balanced(*matches, seed, num_samples, int(num_samples * positive_fraction + 1e-6), num_bins, interval,
                                           max_negatives_per_positive, positives, bins))
