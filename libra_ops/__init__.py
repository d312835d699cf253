"""Operations of balanced detection training on the CPU and on CUDA: matching, sampling, losses.

Every operation is batched over images, has fixed shapes, and never waits for the GPU. Boxes are xyxy in continuous
pixels. `libra_ops.reference` holds a plain-PyTorch twin of each.
"""

from libra_ops._extension import build_info
from libra_ops.balanced_l1_loss import balanced_l1_loss
from libra_ops.box_iou import box_iou
from libra_ops.match_boxes import Matches, match_boxes
from libra_ops.sample_iou_balanced import Samples, sample_iou_balanced

__all__ = [
    "Matches",
    "Samples",
    "balanced_l1_loss",
    "box_iou",
    "build_info",
    "match_boxes",
    "sample_iou_balanced",
]
