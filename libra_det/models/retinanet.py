"""Libra RetinaNet (Lin et al. 2017, Pang et al. 2019): one dense head says class and box of every anchor at once.

There is nothing to sample, so of Libra R-CNN it has the balanced pyramid and balanced L1; that most anchors are easy
negatives is the business of the focal loss.
B images, N anchors of all levels, C classes, T candidates for detections, G target slots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import libra_ops
from libra_det.config import ModelConfig
from libra_det.models.anchors import AnchorPredictions, base_anchors_of_levels, inside_padding, join_levels
from libra_det.models.candidates import best_per_level, decode_boxes
from libra_det.models.detection_model import DetectionModel, at_least_one_slot
from libra_det.models.layers import named_conv
from libra_det.models.losses import focal_loss_sum, regression_loss_sum
from libra_det.models.postprocess import finish
from libra_det.structures import Detections, Proposals, Targets

STRIDES = (8, 16, 32, 64, 128)
_PRIOR = 0.01  # probability of every class before training, so that the many negatives do not drown the first steps


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions, one for the classes and one for the boxes, the same for every level."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        base = base_anchors_of_levels(STRIDES, config)
        self.register_buffer("base_anchors", base, persistent=False)  # [L, A, 4]
        channels, num_anchors = config.fpn_channels, base.shape[1]
        self.cls_convs = nn.ModuleList(named_conv(channels, channels, 3, True) for _ in range(config.retina_convs))
        self.reg_convs = nn.ModuleList(named_conv(channels, channels, 3, True) for _ in range(config.retina_convs))
        self.retina_cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                # 0.01 at the published 256 channels, and the same gain at others: narrow towers would hardly learn
                nn.init.normal_(conv.weight, std=0.16 / math.sqrt(channels))
                nn.init.zeros_(conv.bias)
        nn.init.constant_(self.retina_cls.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, features: list[Tensor]) -> AnchorPredictions:
        """Maps [B, C, H_l, W_l] at `STRIDES` -> predictions for all anchors, with logits [B, N, C]."""
        class_maps, box_maps = [], []
        for feature in features:
            classes = boxes = feature
            for class_conv, box_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                classes, boxes = class_conv(classes), box_conv(boxes)
            class_maps.append(self.retina_cls(classes))
            box_maps.append(self.retina_reg(boxes))
        return join_levels(class_maps, box_maps, STRIDES, self.base_anchors)

    def match(self, predictions: AnchorPredictions, sizes: Tensor, targets: Targets) -> libra_ops.Matches:
        """What each anchor is matched to, [B, N]; anchors in the batch's padding are ignored (state -1)."""
        config = self.config
        matches = libra_ops.match_boxes(
            predictions.anchors,
            targets.boxes,
            targets.valid,
            positive_iou=config.retina_positive_iou,
            negative_iou=config.retina_negative_iou,
            min_positive_iou=config.retina_min_positive_iou,
            crowd=targets.crowd,
        )
        inside = inside_padding(predictions.cells, sizes)
        return matches._replace(state=matches.state.masked_fill(~inside, -1))

    def losses(self, predictions: AnchorPredictions, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses "class" and "box", scalar float32.

        The focal loss is summed over the positive and negative anchors of the batch, the box loss over the positive
        ones; both are divided by the number of positives, where an image without any counts as if it had one. Targets
        have at least one slot (G >= 1).
        """
        config = self.config
        with torch.no_grad():
            matches = self.match(predictions, sizes, targets)
            positive = matches.state == 1  # [B, N]
            labels = torch.take_along_dim(targets.labels, matches.index, 1)
            labels = torch.where(positive, labels, self.num_classes)
            target_boxes = torch.take_along_dim(targets.boxes, matches.index[..., None], 1)  # [B, N, 4]
            count = positive.sum(1).clamp(min=1).sum() + torch.finfo(torch.float32).eps
        class_loss = focal_loss_sum(
            predictions.logits, labels, matches.state >= 0, config.focal_alpha, config.focal_gamma
        )
        box_loss = regression_loss_sum(
            predictions.deltas, predictions.anchors, target_boxes, positive, config.box_loss, config
        )
        return {
            "class": config.class_loss_weight * class_loss / count,
            "box": config.box_loss_weight * box_loss / count,
        }

    @torch.no_grad()
    def detect(self, predictions: AnchorPredictions, sizes: Tensor, original_sizes: Tensor) -> Detections:
        """Detections in pixels of the original images.

        Each class of each anchor is a candidate; of every level the `retina_candidates_per_level` best go on to
        `postprocess.finish`, as in mmdetection 3. (Version 2.0 took the best anchors, with all their classes.)

        Args:
            sizes, original_sizes: [B, 2] float32 (height, width) of the images, resized and as stored.
        """
        classes = self.num_classes
        logits, place = best_per_level(  # [B, T], of every anchor's every class
            predictions.logits.flatten(1),  # [B, N, C] -> [B, N * C]
            [size * classes for size in predictions.level_sizes],
            self.config.retina_candidates_per_level,
            score_threshold=self.config.score_threshold,
        )
        boxes = decode_boxes(predictions.anchors, predictions.deltas, index=place // classes)  # [B, T, 4]
        scores = logits.sigmoid()
        return finish(boxes, scores, place % classes, scores.isfinite(), sizes, original_sizes, self.config)


class RetinaNet(DetectionModel):
    """One-stage detector; its losses are "class" and "box". The head's parameters are under `bbox_head.`.

    The pyramid begins at stride 8 and has two more convolutions, the first of which reads the backbone's last map.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes, start_level=1, extra_convs=2)
        self.bbox_head = RetinaHead(config, num_classes)

    def losses_from_features(
        self,
        features: list[Tensor],
        sizes: Tensor,
        targets: Targets,
        proposals: Proposals | None = None,
        seeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return self.bbox_head.losses(self.bbox_head(features), sizes, at_least_one_slot(targets))

    def detect_from_features(
        self, features: list[Tensor], sizes: Tensor, original_sizes: Tensor, proposals: Proposals | None = None
    ) -> Detections:
        return self.bbox_head.detect(self.bbox_head(features), sizes, original_sizes)
