"""What is exported: from a padded batch of images to a fixed number of detections, at any size.

B images of a batch, H x W pixels of the padded images, K detections of an image.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from libra_det.config import Config
from libra_det.models import DetectionModel, retinanet, rpn
from libra_det.models.anchors import PADDING_STRIDE
from libra_det.structures import Detections

INPUTS = ("images", "sizes", "original_sizes")
OUTPUTS = Detections._fields


class ExportableDetector(nn.Module):
    """`DetectionModel.detect` with tensors in and out.

    Args of the call:
        images: [B, 3, H, W] uint8 RGB, each image in the upper left corner; H and W as `smallest_side` and
            `side_divisor` say.
        sizes: [B, 2] float32, height and width of the resized images, without the padding.
        original_sizes: [B, 2] float32, height and width of the images as stored, in whose pixels boxes are given.

    Returns:
        `Detections`' fields, [B, K, ...] with K = `detections_per_image` always.
    """

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        features = self.model.features(self.model.normalise(images, sizes))
        found = self.model.detect_from_features(features, sizes, original_sizes)
        slots = self.model.config.detections_per_image
        return tuple(_filled(values, slots) for values in found)


def side_divisor(config: Config) -> int:
    """H and W of the images are multiples of this: of `size_divisor`, and of what the backbone divides them by, so that
    no rounding on the way depends on the size."""
    return math.lcm(config.data.size_divisor, PADDING_STRIDE)


def smallest_side(config: Config) -> int:
    """H and W are at least this: the coarsest map has two cells in each direction.

    Maps of a single row are traced apart by PyTorch, and one graph cannot serve both.
    """
    strides = rpn.STRIDES if config.model.detector == "faster_rcnn" else retinanet.STRIDES
    divisor = side_divisor(config)
    return (strides[-1] // divisor + 1) * divisor


def dynamic_shapes(config: Config) -> dict[str, dict[int, Any]]:
    """Which dimensions of the inputs may change from call to call: the batch, and height and width of the images."""
    divisor = side_divisor(config)
    batch = Dim("batch", min=1)
    height, width = (divisor * Dim(name, min=smallest_side(config) // divisor) for name in ("rows", "columns"))
    return {"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}, "original_sizes": {0: batch}}


def example_inputs(config: Config, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two images that are as small as may be, wider than high."""
    height = smallest_side(config)
    width = height + side_divisor(config)
    sizes = torch.tensor([[height, width]] * 2, dtype=torch.float32, device=device)
    return torch.zeros(2, 3, height, width, dtype=torch.uint8, device=device), sizes, sizes.clone()


def _filled(values: Tensor, slots: int) -> Tensor:
    """[B, k, ...] with k <= K -> [B, K, ...]: small images may have less candidates than slots."""
    return torch.cat((values, values.new_zeros(values.shape[0], slots, *values.shape[2:])), 1)[:, :slots]
