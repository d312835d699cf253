"""Random changes of a training image and its boxes, each decided by a generator that is passed in.

H x W pixels, G objects. Boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from libra_det.config import DataConfig


def jitter_factor(config: DataConfig, random: np.random.Generator) -> float:
    """Factor of the training size, uniform in `scale_jitter`."""
    return float(random.uniform(*config.scale_jitter))


def augment(image: Tensor, boxes: Tensor, config: DataConfig, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flips and colour changes, as far as `config` asks for them.

    Args:
        image: uint8 [3, H, W], already resized.
        boxes: float32 [G, 4], in pixels of `image`.
        random: as many numbers are drawn whatever the outcome, so that samples stay comparable between configs.

    Returns:
        image and boxes as they came; a horizontal flip maps x to W - x, a vertical one y to H - y.
    """
    horizontal, vertical = random.random(2) < (config.horizontal_flip, config.vertical_flip)
    strengths = 1.0 + config.color_jitter * random.uniform(-1.0, 1.0, 3)
    order = random.permutation(3)
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[1:]))
    if horizontal:
        image, boxes = transforms.horizontal_flip(image), transforms.horizontal_flip(boxes)
    if vertical:
        image, boxes = transforms.vertical_flip(image), transforms.vertical_flip(boxes)
    if config.color_jitter > 0:
        changes = (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation)
        for position in order:
            image = changes[position](image, max(0.0, float(strengths[position])))
    return image, boxes.as_subclass(torch.Tensor)


def resize_boxes(boxes: Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """boxes: float32 [G, 4] of an image of `old_size` (width, height) -> the same in pixels of `new_size`."""
    scale = torch.tensor([new / old for old, new in zip(old_size, new_size, strict=True)], dtype=torch.float32)
    return boxes * scale.repeat(2)
