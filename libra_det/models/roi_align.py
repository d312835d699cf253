"""Features of boxes: RoIAlign (He et al. 2017) from the pyramid level that fits each box (Lin et al. 2017, equation 1).

Every output cell is a weighted sum of a few feature cells: `sampling_ratio`^2 points per cell, four neighbours per
point. With a fixed ratio that is one gather of known shape: the levels are stacked into a table with one row per
feature cell, and an embedding bag sums the rows; on CPUs this is several times faster than torchvision's kernel. With
an adaptive ratio the number of points depends on the box, and torchvision's kernel does the work, level by level.

B images, L levels, R boxes of all images, C channels, P cells along a side of the output, T taps of a cell and axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor


def roi_levels(boxes: Tensor, finest_scale: float, num_levels: int) -> Tensor:
    """Pyramid level of each box, [..., 4] -> [...] int64: floor(log2(sqrt(area) / finest_scale)), within the levels."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    scale = sizes.prod(-1).sqrt()
    return (scale / finest_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
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
        strides: pixels per feature cell of each map.
        output_size: cells along a side of the output, P.
        sampling_ratio: points per cell and axis; 0 takes about one per feature cell, as published models do.
        finest_scale: boxes of sqrt(area) below twice this many pixels use the finest map.

    Returns:
        [B * S, C, P, P].
    """
    boxes = boxes.masked_fill(~boxes.isfinite().all(-1, keepdim=True), 0.0)
    levels = roi_levels(boxes, finest_scale, len(features)).flatten()  # [R], R = B * S
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(boxes[..., 0]).flatten()  # [R]
    if torch.compiler.is_exporting():
        pool = _pool_on_every_level
    else:
        pool = _pool_by_gather if sampling_ratio > 0 else _pool_by_level
    return pool(features, boxes.reshape(-1, 4), image, levels, strides, output_size, sampling_ratio)


def _pool_by_gather(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """All boxes [R, 4] at once, with shapes that depend on nothing but the number of boxes."""
    channels = features[0].shape[1]
    # [B, C, H, W] -> [B * H * W, C] per level, one level after the other
    table = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, channels) for x in features]).float()
    sizes = [x.shape[2:] for x in features]
    rows_before = [0]
    for height, width in sizes[:-1]:
        rows_before.append(rows_before[-1] + features[0].shape[0] * height * width)

    def of_level(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """The value of each box's level: [L] -> [R]."""
        chosen = torch.full_like(levels, values[0], dtype=dtype)
        for level, value in enumerate(values[1:], 1):
            chosen = chosen.masked_fill(levels == level, value)
        return chosen

    height = of_level([h for h, _ in sizes], torch.int64)
    width = of_level([w for _, w in sizes], torch.int64)
    scaled = boxes * of_level([1 / stride for stride in strides], torch.float32)[:, None] - 0.5  # to feature cells
    columns, column_weights = _axis_taps(scaled[:, 0], scaled[:, 2], width, output_size, sampling_ratio)  # [R, P, T]
    rows, row_weights = _axis_taps(scaled[:, 1], scaled[:, 3], height, output_size, sampling_ratio)
    start = of_level(rows_before, torch.int64) + image * height * width  # first row in the table of the box's map
    rows = start[:, None, None] + rows * width[:, None, None]
    # [R, P, 1, T, 1] and [R, 1, P, 1, T] -> [R, P, P, T, T] -> [R * P * P, T * T]
    taps = sampling_ratio * 2
    index = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).reshape(-1, taps * taps)
    weights = (row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]).reshape(-1, taps * taps)
    pooled = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")  # [R * P * P, C]
    return pooled.reshape(-1, output_size, output_size, channels).permute(0, 3, 1, 2)


def _axis_taps(low: Tensor, high: Tensor, size: Tensor, cells: int, points: int) -> tuple[Tensor, Tensor]:
    """Which feature cells an output cell reads along one axis, and with what weight.

    Args:
        low, high: [R] float32, ends of the boxes in feature cells; size: [R] int64, length of the map.
        cells: output cells, P; points: sampling points per output cell, each between two feature cells: T = 2 * points.

    Returns:
        index [R, P, T] int64 within the map, and weight [R, P, T] float32, zero for points over a cell outside it.
    """
    steps = (torch.arange(cells * points, device=low.device) + 0.5) / (cells * points)
    position = low[:, None] + steps * (high - low)[:, None]  # [R, P * points]
    last = (size - 1)[:, None]
    inside = (position >= -1) & (position <= size[:, None])
    position = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    # bounded again as integers: what a box that is not finite turns into must still be a place in the map
    first = torch.minimum(position.long().clamp(min=0), last)
    second = torch.minimum(first + 1, last)
    fraction = position - first
    weights = torch.stack((1 - fraction, fraction), -1) * (inside / points)[..., None]
    index = torch.stack((first, second), -1)  # [R, P * points, 2] -> [R, P, points * 2] below
    return index.reshape(-1, cells, points * 2), weights.reshape(-1, cells, points * 2)


def _pool_by_level(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """The boxes of each level in turn; the one place of pooling whose shapes depend on the data."""
    rois = torch.cat((image[:, None].to(boxes.dtype), boxes), 1)  # [R, 5]: image, x1, y1, x2, y2
    order, pooled = [], []
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        order.append(chosen)
        pooled.append(
            torchvision.ops.roi_align(
                feature, rois[chosen], output_size, 1.0 / stride, sampling_ratio=sampling_ratio, aligned=True
            )
        )
    position = torch.empty_like(levels)
    position[torch.cat(order)] = torch.arange(len(levels), device=levels.device)
    return torch.cat(pooled)[position]  # back from the levels' order to the boxes'


def _pool_on_every_level(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """The same with shapes that do not depend on the data, of an operation that ONNX has too: for export.

    Each level pools all boxes, those of other levels as points, which with an adaptive ratio costs next to nothing.
    """
    pooled = features[0].new_zeros(())
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        here = (levels == level)[:, None]  # [R, 1]
        rois = torch.cat((image[:, None].to(boxes.dtype), boxes.masked_fill(~here, 0.0)), 1)  # [R, 5], as above
        found = torchvision.ops.roi_align(
            feature, rois, output_size, 1.0 / stride, sampling_ratio=sampling_ratio, aligned=True
        )
        pooled = torch.where(here[..., None, None], found, pooled)  # [R, C, P, P]
    return pooled
