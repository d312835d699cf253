"""Libra Faster R-CNN: the region proposal network finds regions, the region-of-interest head judges them."""

from __future__ import annotations

import torch
from torch import Tensor

from libra_det.config import ModelConfig
from libra_det.models.detection_model import DetectionModel, at_least_one_slot
from libra_det.models.roi_head import RoIHead
from libra_det.models.rpn import RPNHead
from libra_det.structures import Batch, Detections, Proposals, Targets


class FasterRCNN(DetectionModel):
    """Two-stage detector; its losses are "rpn_class", "rpn_box", "roi_class" and "roi_box".

    The heads' parameters are under `rpn_head.` and `roi_head.bbox_head.`.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.rpn_head = RPNHead(config)
        self.roi_head = RoIHead(config, num_classes)

    @torch.no_grad()
    def propose(self, batch: Batch, limit: int) -> Proposals:
        """The `limit` best proposals of each image, in pixels of the resized images, found as in testing."""
        features = self.features(self.normalise(batch.images, batch.sizes))
        return self._propose_for_testing(features, batch.sizes, limit)

    def losses_from_features(
        self,
        features: list[Tensor],
        sizes: Tensor,
        targets: Targets,
        proposals: Proposals | None = None,
        seeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        targets = at_least_one_slot(targets)
        predictions = self.rpn_head(features)
        first, second = (None, None) if seeds is None else seeds.split(1)
        losses = self.rpn_head.losses(predictions, sizes, targets, first)
        config = self.config
        found = self.rpn_head.propose(
            predictions, sizes, per_level=config.proposals_per_level, limit=config.proposals_train
        )
        return losses | self.roi_head.losses(features, found, targets, second)

    def detect_from_features(
        self, features: list[Tensor], sizes: Tensor, original_sizes: Tensor, proposals: Proposals | None = None
    ) -> Detections:
        found = self._propose_for_testing(features, sizes, self.config.proposals_test)
        return self.roi_head.detect(features, found, sizes, original_sizes)

    def _propose_for_testing(self, features: list[Tensor], sizes: Tensor, limit: int) -> Proposals:
        per_level = self.config.proposals_per_level_test
        return self.rpn_head.propose(self.rpn_head(features), sizes, per_level=per_level, limit=limit)
