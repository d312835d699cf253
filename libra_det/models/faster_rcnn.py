"""Libra Faster R-CNN: backbone, pyramid, balanced pyramid, proposals, regions; in training and in testing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libra_det.config import ModelConfig
from libra_det.models.backbone import Backbone
from libra_det.models.balanced_pyramid import BalancedPyramid
from libra_det.models.fpn import FeaturePyramid
from libra_det.models.roi_head import RoIHead
from libra_det.models.rpn import RPNHead
from libra_det.structures import Batch, Detections, Targets


class FasterRCNN(nn.Module):
    """Two-stage detector whose every tensor has a fixed shape; see `ModelConfig` for the parts that can be exchanged.

    In training mode `model(batch)` is the dict of `losses`, in evaluation mode the `Detections` of `detect`. Parameters
    have the names of the published checkpoints: `backbone.`, `neck.0.` (pyramid), `neck.1.` (balanced pyramid),
    `rpn_head.`, `roi_head.bbox_head.`.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}; check the data's categories")
        self.config = config
        self.num_classes = num_classes
        self.backbone = Backbone(config.backbone, config.norm, config.frozen_stages, config.backbone_weights)
        self.neck = nn.Sequential(FeaturePyramid(self.backbone.channels, config.fpn_channels))
        if config.pyramid != "none":
            self.neck.append(BalancedPyramid(config.fpn_channels, config.pyramid, config.refine_level))
        self.rpn_head = RPNHead(config)
        self.roi_head = RoIHead(config, num_classes)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor] | Detections:
        """Losses in training mode, detections in evaluation mode."""
        return self.losses(batch)[0] if self.training else self.detect(batch)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Training losses of a batch.

        Returns:
            The weighted losses "rpn_class", "rpn_box", "roi_class" and "roi_box", scalar float32, whose sum is to be
            minimised; and the pyramid's maps [B, C, H_l, W_l] that all of them are computed from.

        Raises:
            ValueError: if the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("batch.targets: expected Targets for training, got None; use detect() without them")
        features = self.features(self.normalise(batch.images, batch.sizes))
        return self.losses_from_features(features, batch.sizes, batch.targets), features

    def detect(self, batch: Batch) -> Detections:
        """Detections in pixels of the original images, at most `detections_per_image` each; without gradients."""
        with torch.no_grad():
            features = self.features(self.normalise(batch.images, batch.sizes))
            return self.detect_from_features(features, batch.sizes, batch.original_sizes)

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32, less the mean, over the deviation; zero outside each image's size."""
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1]  # [B, H]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # [B, W]
        inside = (rows[:, :, None] & columns[:, None])[:, None]  # [B, 1, H, W]
        return torch.where(inside, (images.float() - self.pixel_mean) / self.pixel_std, 0.0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> five maps [B, fpn_channels, H_l, W_l] at strides 4, 8, 16, 32 and 64."""
        return self.neck(self.backbone(images))

    def losses_from_features(self, features: list[Tensor], sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of `losses`, from the maps; `sizes` [B, 2] are the images' (height, width) without padding."""
        targets = _at_least_one_slot(targets)
        predictions = self.rpn_head(features)
        losses = self.rpn_head.losses(predictions, sizes, targets)
        config = self.config
        proposals = self.rpn_head.propose(
            predictions, sizes, per_level=config.proposals_per_level, limit=config.proposals_train
        )
        return losses | self.roi_head.losses(features, proposals, targets)

    def detect_from_features(self, features: list[Tensor], sizes: Tensor, original_sizes: Tensor) -> Detections:
        """The detections of `detect`, from the maps; both sizes are [B, 2] (height, width), resized and as stored."""
        config = self.config
        proposals = self.rpn_head.propose(
            self.rpn_head(features), sizes, per_level=config.proposals_per_level_test, limit=config.proposals_test
        )
        return self.roi_head.detect(features, proposals, sizes, original_sizes)


def build_model(config: ModelConfig, num_classes: int) -> FasterRCNN:
    """The detector that `config` describes, for `num_classes` classes (the background not counted), in training mode.

    Raises:
        ValueError: for a backbone, norm, level or weights that do not exist or do not fit, naming the choices.
    """
    return FasterRCNN(config, num_classes)


def _at_least_one_slot(targets: Targets) -> Targets:
    """Targets with G >= 1: a batch without any object gets one slot that is not valid, for gathers to read from."""
    if targets.boxes.shape[1] > 0:
        return targets
    batch = len(targets.boxes)
    return Targets(
        targets.boxes.new_zeros(batch, 1, 4),
        targets.labels.new_zeros(batch, 1),
        targets.valid.new_zeros(batch, 1),
        targets.crowd.new_zeros(batch, 1),
    )
