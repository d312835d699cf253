"""Libra Fast R-CNN (Girshick 2015): the region-of-interest head alone, on proposals that were computed before."""

from __future__ import annotations

from torch import Tensor

from libra_det.config import ModelConfig
from libra_det.models.detection_model import DetectionModel, at_least_one_slot
from libra_det.models.roi_head import RoIHead
from libra_det.structures import Detections, Proposals, Targets

HOW_TO_GET_PROPOSALS = (
    "Fast R-CNN looks at regions computed before: `libra proposals RUN --split SPLIT --output FILE` writes them with a "
    "Faster R-CNN, and --proposals and --eval-proposals name the files for training and evaluation"
)


class FastRCNN(DetectionModel):
    """Second stage of Faster R-CNN; its losses are "roi_class" and "roi_box".

    The head's parameters are under `roi_head.bbox_head.`. Batches need `proposals`.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.roi_head = RoIHead(config, num_classes)

    def losses_from_features(
        self,
        features: list[Tensor],
        sizes: Tensor,
        targets: Targets,
        proposals: Proposals | None = None,
        seeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        seed = None if seeds is None else seeds[1:]
        return self.roi_head.losses(features, _given(proposals), at_least_one_slot(targets), seed)

    def detect_from_features(
        self, features: list[Tensor], sizes: Tensor, original_sizes: Tensor, proposals: Proposals | None = None
    ) -> Detections:
        return self.roi_head.detect(features, _given(proposals), sizes, original_sizes)


def _given(proposals: Proposals | None) -> Proposals:
    if proposals is None:
        raise ValueError(f"batch.proposals: expected Proposals, got None; {HOW_TO_GET_PROPOSALS}")
    return proposals
