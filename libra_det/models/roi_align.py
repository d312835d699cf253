"""Features of boxes: libra_ops.multiscale_roi_align, and the same in operations that exported models may hold.

B images, L levels, S boxes of an image, R of all images, C channels, P cells along a side of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

import libra_ops
from libra_det.models.exporting import exporting


def roi_levels(boxes: Tensor, finest_scale: float, num_levels: int) -> Tensor:
    """Pyramid level of each box, [..., 4] -> [...] int64: floor(log2(sqrt(area) / finest_scale)), within the levels."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    scale = sizes.prod(-1).sqrt()
    return (scale / finest_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    valid: Tensor | None = None,
    *,
    strides: Sequence[int],
    output_size: int = 7,
    sampling_ratio: int = 0,
    finest_scale: float = 56.0,
) -> Tensor:
    """Pool every box from its level, with RoIAlign's half-cell correction (`aligned=True`).

    Args:
        features: maps [B, C, H_l, W_l], finest first.
        boxes: [B, S, 4] float32 xyxy in pixels of the padded images. One that is not finite, as an annotation may be,
            is pooled as a point at the origin: what comes of it is ignored, but may not turn gradients into NaN.
        valid: [B, S] bool, False for slots whose result is ignored: they are not pooled, and pass no gradient on.
        strides: pixels per feature cell of each map.
        output_size: cells along a side of the output, P.
        sampling_ratio: points per cell and axis; 0 takes about one per feature cell, as published models do.
        finest_scale: boxes of sqrt(area) below twice this many pixels use the finest map.

    Returns:
        [B * S, C, P, P].
    """
    if exporting():
        return _pool_on_every_level(features, boxes, strides, output_size, sampling_ratio, finest_scale)
    return libra_ops.multiscale_roi_align(
        features,
        boxes,
        valid,
        strides=strides,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        finest_scale=finest_scale,
    ).flatten(0, 1)  # [B, S, C, P, P] -> [B * S, C, P, P]


def _pool_on_every_level(
    features: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    finest_scale: float,
) -> Tensor:
    """With shapes that do not depend on the data, and of an operation that ONNX has too.

    Each level pools all boxes, those of other levels as points, which with an adaptive ratio costs next to nothing.
    """
    boxes = boxes.masked_fill(~boxes.isfinite().all(-1, keepdim=True), 0.0)
    levels = roi_levels(boxes, finest_scale, len(features)).flatten()  # [R], R = B * S
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(boxes[..., 0]).flatten()  # [R]
    boxes = boxes.reshape(-1, 4)
    pooled = features[0].new_zeros(())
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        here = (levels == level)[:, None]  # [R, 1]
        or_point = boxes.masked_fill(~here, 0.0)
        rois = torch.cat((image[:, None].to(boxes.dtype), or_point), 1)  # [R, 5]: image, x1, y1, x2, y2
        found = torchvision.ops.roi_align(
            feature, rois, output_size, 1.0 / stride, sampling_ratio=sampling_ratio, aligned=True
        )
        pooled = torch.where(here[..., None, None], found, pooled)  # [R, C, P, P]
    return pooled
