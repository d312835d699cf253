"""Anchors: the boxes of fixed size and shape that a dense head scores and moves.

Float boxes centred on the grid point x * stride, y * stride: no half-cell offset, no rounding, as in the published
models. They are the same for every image of a batch, [N, 4], ordered by level, row, column, ratio and scale.
B images, L levels, N anchors of all levels, A anchors of a cell, K scores of an anchor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from libra_det.config import ModelConfig

# Images count as padded up to a multiple of the backbone's coarsest stride; cells beyond that see only zeros.
PADDING_STRIDE = 32


class AnchorPredictions(NamedTuple):
    """What a dense head says about each anchor, levels one after the other."""

    logits: Tensor  # [B, N, K] float32; of being an object, [B, N], in the region proposal network
    deltas: Tensor  # [B, N, 4] float32
    anchors: Tensor  # [N, 4] float32 xyxy, shared by all images
    cells: Tensor  # [N, 2] float32 (x, y), the grid points the anchors are centred on
    level_sizes: tuple[int, ...]  # [L] anchors per level; they sum to N


def base_anchors(stride: int, scale: float, ratios: Sequence[float], scales_per_octave: int = 1) -> Tensor:
    """Anchors at the origin, [A, 4] float32 xyxy in pixels, with height / width `ratios`.

    Each ratio has areas (s * stride)^2 with s = `scale` * 2^(i / scales_per_octave), i = 0 .. scales_per_octave - 1.
    """
    scales = [scale * 2 ** (step / scales_per_octave) for step in range(scales_per_octave)]
    halves = [(ratio, s * stride / 2) for ratio in ratios for s in scales]
    corners = [(half / math.sqrt(ratio), half * math.sqrt(ratio)) for ratio, half in halves]
    return torch.tensor([[-x, -y, x, y] for x, y in corners], dtype=torch.float32)


def base_anchors_of_levels(strides: Sequence[int], config: ModelConfig) -> Tensor:
    """The anchors at the origin that `config` asks for, [L, A, 4]."""
    shape = (config.anchor_scale, config.anchor_ratios, config.anchor_scales_per_octave)
    return torch.stack([base_anchors(stride, *shape) for stride in strides])


def grid_cells(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Grid points of one level, [height * width, 2] float32 (x, y) in pixels, row by row."""
    y = torch.arange(height, device=device, dtype=torch.float32) * stride
    x = torch.arange(width, device=device, dtype=torch.float32) * stride
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).reshape(-1, 2)


def place_anchors(base: Tensor, cells: Tensor) -> Tensor:
    """Base anchors [A, 4] at every cell [M, 2] -> [M * A, 4], the anchors of one cell in a row."""
    return (cells.repeat(1, 2)[:, None] + base).reshape(-1, 4)  # [M, 1, 4] + [A, 4] -> [M, A, 4]


def join_levels(
    class_maps: Sequence[Tensor], box_maps: Sequence[Tensor], strides: Sequence[int], base: Tensor
) -> AnchorPredictions:
    """The outputs of a dense head, level by level, in the order of their anchors.

    Args:
        class_maps, box_maps: [B, A * K, H_l, W_l] and [B, A * 4, H_l, W_l].
        strides: pixels per cell of each level.
        base: [L, A, 4] float32, each level's anchors at the origin.
    """
    logits, deltas, anchors, cells = [], [], [], []
    num_anchors = base.shape[1]
    for classes, boxes, stride, level_base in zip(class_maps, box_maps, strides, base, strict=True):
        batch, channels, height, width = classes.shape
        count = height * width * num_anchors
        # [B, A * K, H, W] -> [B, H * W * A, K] and [B, A * 4, H, W] -> [B, H * W * A, 4]
        logits.append(classes.permute(0, 2, 3, 1).reshape(batch, count, channels // num_anchors))
        deltas.append(boxes.permute(0, 2, 3, 1).reshape(batch, count, 4))
        grid = grid_cells(height, width, stride, classes.device)
        anchors.append(place_anchors(level_base, grid))
        cells.append(grid.repeat_interleave(num_anchors, dim=0))
    return AnchorPredictions(
        torch.cat(logits, 1).float(),
        torch.cat(deltas, 1).float(),
        torch.cat(anchors),
        torch.cat(cells),
        tuple(level.shape[1] for level in logits),
    )


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
