"""Boxes as a detector meets them: the anchors of a region proposal network, ground truths, proposals.

All boxes are xyxy in continuous pixels of an 800 x 1344 image, float32, drawn on the CPU from a generator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEIGHT, WIDTH = 800, 1344
STRIDES = (4, 8, 16, 32, 64)
ANCHORS = 268_569  # of that image: 3 for every place of five levels


def anchors(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """[N, 4]: anchors of scale 8 and aspect ratios 1/2, 1, 2 on the levels of strides 4 to 64."""
    levels = []
    for stride in STRIDES:
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
        centres = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4).float()  # [places, 1, 4]
        ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        half = (
            torch.stack([8 * stride / ratios, 8 * stride * ratios], -1) / 2
        )  # [3, 2]: half the width, half the height
        levels.append((centres + torch.cat([-half, half], -1)).reshape(-1, 4))
    return torch.cat(levels)


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    """[*shape, 4]: sides of 16 to 512 pixels, their logarithms uniform; anywhere inside the image."""
    sides = 16 * 32 ** torch.rand(*shape, 2, generator=generator)
    corner = torch.rand(*shape, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - sides).clamp(min=0)
    return torch.cat([corner, corner + sides], -1)


def proposals(generator: torch.Generator, targets: Tensor, count: int) -> Tensor:
    """[B, count, 4]: the targets [B, G, 4] themselves, as training adds them; then half near one, half anywhere."""
    batch, given = targets.shape[:2]
    near, far = (count - given + 1) // 2, (count - given) // 2
    around = torch.randint(given, (batch, near), generator=generator)
    centre = targets.gather(1, around.unsqueeze(-1).expand(-1, -1, 4))  # [B, near, 4]
    extent = (centre[..., 2:] - centre[..., :2]).repeat(1, 1, 2)
    moved = centre + torch.randn(batch, near, 4, generator=generator) * 0.15 * extent
    moved = torch.cat(
        [torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])], -1
    )
    return torch.cat([targets, moved, random_boxes(generator, batch, far)], 1)
