"""Anchors: the boxes of fixed size and shape that the region proposal network scores and moves.

Float boxes centred on the grid point x * stride, y * stride: no half-cell offset, no rounding, as in the published
models. They are the same for every image of a batch, [N, 4], ordered by level, row, column and ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Images count as padded up to a multiple of the backbone's coarsest stride; cells beyond that see only zeros.
PADDING_STRIDE = 32


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors at the origin, [A, 4] float32 xyxy in pixels, of area (scale * stride)^2 and height / width `ratios`."""
    half = scale * stride / 2
    corners = [(half / math.sqrt(ratio), half * math.sqrt(ratio)) for ratio in ratios]
    return torch.tensor([[-x, -y, x, y] for x, y in corners], dtype=torch.float32)


def grid_cells(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Grid points of one level, [height * width, 2] float32 (x, y) in pixels, row by row."""
    y = torch.arange(height, device=device, dtype=torch.float32) * stride
    x = torch.arange(width, device=device, dtype=torch.float32) * stride
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).reshape(-1, 2)


def place_anchors(base: Tensor, cells: Tensor) -> Tensor:
    """Base anchors [A, 4] at every cell [M, 2] -> [M * A, 4], the anchors of one cell in a row."""
    return (cells.repeat(1, 2)[:, None] + base).reshape(-1, 4)  # [M, 1, 4] + [A, 4] -> [M, A, 4]


def inside_padding(cells: Tensor, sizes: Tensor) -> Tensor:
    """Which grid points belong to an image, its own padding included.

    In a batch of unlike sizes a small image is followed by zeros up to the largest one's size. Anchors there would be
    endless easy negatives; as in the published implementation they take no part in training.

    Args:
        cells: [N, 2] float32 (x, y) in pixels.
        sizes: [B, 2] float32 (height, width) of the images without padding.

    Returns:
        [B, N] bool: the point lies within the image's size rounded up to a multiple of `PADDING_STRIDE`.
    """
    padded = (sizes / PADDING_STRIDE).ceil() * PADDING_STRIDE
    return (cells < padded.flip(-1)[:, None]).all(-1)  # [N, 2] < [B, 1, 2] -> [B, N, 2] -> [B, N]
