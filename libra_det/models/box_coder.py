"""Boxes as the network predicts them: offsets of the centre and log-scales of the sides, relative to a reference box.

(dx, dy) is the shift of the centre in reference widths and heights, (dw, dh) the logarithm of the change of the sides
(Girshick et al. 2014, appendix C), each divided by its standard deviation. Boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Sides change at most by this factor in one step; keeps exp() finite whatever an untrained network says.
MAX_LOG_SCALE = math.log(1000 / 16)
_SMALLEST_SIDE = 1e-6  # px; only padded slots are smaller, and a logarithm must stay finite for them


def encode_boxes(references: Tensor, targets: Tensor, stds: Tensor | None = None) -> Tensor:
    """Deltas that move `references` onto `targets`.

    Args:
        references, targets: [..., 4] float32 xyxy. Slots without area give finite, meaningless deltas.
        stds: [4] float32, standard deviations of (dx, dy, dw, dh); None for ones.

    Returns:
        [..., 4] float32 (dx, dy, dw, dh).
    """
    reference_size = (references[..., 2:] - references[..., :2]).clamp(min=_SMALLEST_SIDE)
    target_size = (targets[..., 2:] - targets[..., :2]).clamp(min=_SMALLEST_SIDE)
    shift = ((targets[..., :2] + targets[..., 2:]) - (references[..., :2] + references[..., 2:])) / 2 / reference_size
    deltas = torch.cat((shift, (target_size / reference_size).log()), -1)
    return deltas if stds is None else deltas / stds


def decode_boxes(references: Tensor, deltas: Tensor, stds: Tensor | None = None) -> Tensor:
    """Boxes [..., 4] that `deltas` [..., 4] move `references` [..., 4] to; the two broadcast."""
    if stds is not None:
        deltas = deltas * stds
    size = references[..., 2:] - references[..., :2]
    centre = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
    return torch.cat((centre - half, centre + half), -1)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, ..., 4] clipped to images of `sizes` [B, 2] (height, width) in pixels."""
    limits = sizes.flip(-1).repeat(1, 2)  # [B, 4]: width, height, width, height
    limits = limits.reshape(sizes.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)
