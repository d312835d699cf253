"""What all detectors share: backbone, pyramid, balanced pyramid, and the way from images to losses or detections."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from libra_det.config import ModelConfig
from libra_det.models.backbone import Backbone
from libra_det.models.balanced_pyramid import BalancedPyramid
from libra_det.models.fpn import FeaturePyramid
from libra_det.structures import Batch, Detections, Proposals, Targets


class DetectionModel(nn.Module, ABC):
    """A detector whose every training tensor has a fixed shape; `FasterRCNN`, `FastRCNN` or `RetinaNet`.

    In training mode `model(batch)` is the dict of `losses`, in evaluation mode the `Detections` of `detect`. Parameters
    have the names of the published checkpoints: `backbone.`, `neck.0.` (pyramid), `neck.1.` (balanced pyramid), and
    those of the heads.

    Args:
        config: see `ModelConfig` for the parts that can be exchanged.
        num_classes: C, the background not counted.
        start_level, extra_convs: of the `FeaturePyramid`.
    """

    def __init__(self, config: ModelConfig, num_classes: int, start_level: int = 0, extra_convs: int = 0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}; check the data's categories")
        self.config = config
        self.num_classes = num_classes
        self.backbone = Backbone(config.backbone, config.norm, config.frozen_stages, config.backbone_weights)
        pyramid = FeaturePyramid(self.backbone.channels, config.fpn_channels, start_level, extra_convs)
        self.neck = nn.Sequential(pyramid)
        if config.pyramid != "none":
            self.neck.append(BalancedPyramid(config.fpn_channels, config.pyramid, config.refine_level))
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor] | Detections:
        """Losses in training mode, detections in evaluation mode."""
        return self.losses(batch)[0] if self.training else self.detect(batch)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Training losses of a batch.

        Returns:
            The weighted losses by name, scalar float32, whose sum is to be minimised; and the pyramid's maps
            [B, C, H_l, W_l] that all of them are computed from.

        Raises:
            ValueError: if the batch has no targets, or Fast R-CNN no proposals.
        """
        if batch.targets is None:
            raise ValueError("batch.targets: expected Targets for training, got None; use detect() without them")
        features = self.features(self.normalise(batch.images, batch.sizes))
        return self.losses_from_features(features, batch.sizes, batch.targets, batch.proposals), features

    def detect(self, batch: Batch) -> Detections:
        """Detections in pixels of the original images, at most `detections_per_image` each; without gradients.

        Raises:
            ValueError: if Fast R-CNN has no proposals.
        """
        with torch.no_grad():
            features = self.features(self.normalise(batch.images, batch.sizes))
            return self.detect_from_features(features, batch.sizes, batch.original_sizes, batch.proposals)

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32, less the mean, over the deviation; zero outside each image's size."""
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1]  # [B, H]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # [B, W]
        inside = (rows[:, :, None] & columns[:, None])[:, None]  # [B, 1, H, W]
        return torch.where(inside, (images.float() - self.pixel_mean) / self.pixel_std, 0.0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> five maps [B, fpn_channels, H_l, W_l], each half as large as the last.

        Their strides are 4 to 64; in RetinaNet 8 to 128.
        """
        return self.neck(self.backbone(images))

    @abstractmethod
    def losses_from_features(
        self,
        features: list[Tensor],
        sizes: Tensor,
        targets: Targets,
        proposals: Proposals | None = None,
        seeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of `losses`, from the maps.

        Args:
            features: the maps of `features`.
            sizes: [B, 2] float32 (height, width) of the images without padding.
            targets: with any number of slots, also none.
            proposals: computed before; only Fast R-CNN uses them.
            seeds: [2] int64 on the device, of what the first and the second stage draw; None: drawn here.
        """

    @abstractmethod
    def detect_from_features(
        self, features: list[Tensor], sizes: Tensor, original_sizes: Tensor, proposals: Proposals | None = None
    ) -> Detections:
        """The detections of `detect`, from the maps; both sizes are [B, 2] (height, width), resized and as stored."""


def at_least_one_slot(targets: Targets) -> Targets:
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
