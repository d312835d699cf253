"""multiscale_roi_align, forward and backward, against torchvision's pooler and the ways PyTorch offers.

The table of the gather (one row per feature cell of all levels, summed by an embedding bag) and the loop over levels
are what libra_det did before it had this operation; they stay here, as they were, to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from benchmarks.case import COMPILED, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled
from libra_ops import multiscale_roi_align

TITLE = "multiscale_roi_align"
AXIS = "elements of the result"
STRIDES = (4, 8, 16, 32)
CELLS = 7
FINEST = 56.0
GATHER, LEVELS, TORCHVISION = "gather (eager)", "level by level (eager)", "torchvision's MultiScaleRoIAlign"
TEXT = (
    "The features of boxes, 7 x 7 cells from maps of strides 4 to 32, and the maps' gradients. Sides of boxes are 16 "
    "pixels to nine tenths of the image's shorter side, their logarithms uniform. Bytes: the maps are read and their "
    "gradients written, the result is written and its gradient read, once each. `ratio 0`: about one point for each "
    "feature cell, as published models sample; `ratio 2`: two for each output cell and axis. torchvision's pooler and "
    "`level by level` ask the device for the boxes of each level. `gather` and torch.compile of it exist for fixed "
    "ratios only."
)


def cases(plan: Plan) -> list[Case]:
    small, large = (4, 64, 240, 320, 128), (1, 256, 800, 1344, 512)
    sizes = plan.choose(
        full=[(*small, 2), (*small, 0), (*large, 0), (*large, 2)],
        quick=[(*small, 2), (*small, 0), (*large, 0)],
        tiny=[(2, 3, 64, 96, 5, 2), (2, 3, 64, 96, 5, 0)],
        cuda=[(16, 256, 800, 1344, 512, 0), (16, 256, 800, 1344, 512, 2)],
    )
    orders = plan.choose(full=[False, True], quick=[False], tiny=[False, True])
    return [_case(plan, *size, channels_last) for size in sizes for channels_last in orders]


def bytes_moved(batch: int, channels: int, height: int, width: int, slots: int) -> int:
    cells = sum((height // stride) * (width // stride) for stride in STRIDES)
    return 8 * batch * channels * (cells + slots * CELLS**2)


def random_boxes(generator: torch.Generator, batch: int, slots: int, height: int, width: int) -> Tensor:
    sides = 16 * (0.9 * min(height, width) / 16) ** torch.rand(batch, slots, 2, generator=generator)
    corner = torch.rand(batch, slots, 2, generator=generator) * (torch.tensor([width, height]) - sides).clamp(min=0)
    return torch.cat((corner, corner + sides), -1)


def _case(
    plan: Plan, batch: int, channels: int, height: int, width: int, slots: int, ratio: int, channels_last: bool
) -> Case:
    order = torch.channels_last if channels_last else torch.contiguous_format

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        """The boxes, the incoming gradient, and the maps."""
        maps = [torch.randn(batch, channels, height // s, width // s, generator=generator) for s in STRIDES]
        boxes = random_boxes(generator, batch, slots, height, width)
        incoming = torch.randn(batch, slots, channels, CELLS, CELLS, generator=generator)
        return boxes, incoming, *(x.contiguous(memory_format=order) for x in maps)

    def agrees(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            close(one, other, f"gradient {number}" if number else "result", rtol=1e-3, atol=1e-3)

    pooler = torchvision.ops.MultiScaleRoIAlign(
        [str(level) for level in range(len(STRIDES))], CELLS, ratio, canonical_scale=4 * FINEST, canonical_level=4
    )

    def by_torchvision(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        named = {str(level): x for level, x in enumerate(maps)}
        return pooler(named, list(boxes), [(height, width)] * batch).unflatten(0, (batch, slots))

    def by_levels(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return level_by_level(maps, boxes, ratio)

    def by_gather(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return gather(maps, boxes, ratio)

    # torchvision's pooler has no half-cell correction: its result is another, at the same cost
    sides = {
        OURS: Side(
            _both(lambda maps, boxes: multiscale_roi_align(maps, boxes, strides=STRIDES, sampling_ratio=ratio)),
            prepare=_leaves,
        ),
        TORCHVISION: Side(_both(by_torchvision), prepare=_leaves, note="without the half-cell correction"),
        LEVELS: Side(_both(by_levels), prepare=_leaves, agrees=agrees),
    }
    if ratio:
        sides[GATHER] = Side(_both(by_gather), prepare=_leaves, agrees=agrees)
        sides[COMPILED] = Side(_both(compiled(by_gather)), prepare=_leaves, agrees=agrees, compiled=True)
    name = f"{batch} x {channels} x {shown(height, width)}, {slots} boxes, ratio {ratio}"
    return Case(
        "multiscale_roi_align",
        name + (", channels last" if channels_last else ""),
        batch * slots * channels * CELLS**2,
        make,
        sides,
        bytes_moved(batch, channels, height, width, slots),
        training=not channels_last,
        goal=plan.sizes == "quick",
        extra={"plot": not channels_last and ratio == 0},
    )


def _leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    boxes, incoming, *maps = tensors
    return boxes, incoming, *(x.detach().requires_grad_() for x in maps)


def _both(function: Callable[[Sequence[Tensor], Tensor], Tensor]) -> Callable:
    def run(boxes: Tensor, incoming: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        pooled = function(maps, boxes)
        return pooled.detach(), *torch.autograd.grad(pooled, maps, incoming, materialize_grads=True)

    return run


def levels_of(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] int64."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return (sides.prod(-1).sqrt() / FINEST + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).long()


def level_by_level(maps: Sequence[Tensor], boxes: Tensor, ratio: int) -> Tensor:
    """The boxes of each level in turn, by torchvision's kernel."""
    batch, slots = boxes.shape[:2]
    levels = levels_of(boxes).flatten()  # [R]
    image = torch.arange(batch, device=boxes.device).repeat_interleave(slots)
    rois = torch.cat((image[:, None].to(boxes.dtype), boxes.reshape(-1, 4)), 1)  # [R, 5]
    order, pooled = [], []
    for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        order.append(chosen)
        pooled.append(torchvision.ops.roi_align(x, rois[chosen], CELLS, 1 / stride, ratio, aligned=True))
    position = torch.empty_like(levels)
    position[torch.cat(order)] = torch.arange(len(levels), device=levels.device)
    return torch.cat(pooled)[position].unflatten(0, (batch, slots))


def gather(maps: Sequence[Tensor], boxes: Tensor, ratio: int) -> Tensor:
    """One table with a row per feature cell of all maps; an embedding bag sums the rows that an output cell reads."""
    batch, slots = boxes.shape[:2]
    channels = maps[0].shape[1]
    table = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, channels) for x in maps])
    sizes = [x.shape[2:] for x in maps]
    before = [sum(batch * math.prod(size) for size in sizes[:level]) for level in range(len(sizes))]
    levels = levels_of(boxes).flatten()  # [R]
    image = torch.arange(batch, device=boxes.device).repeat_interleave(slots)

    def of_level(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        chosen = torch.full_like(levels, values[0], dtype=dtype)
        for level, value in enumerate(values[1:], 1):
            chosen = chosen.masked_fill(levels == level, value)
        return chosen

    height, width = (of_level([size[side] for size in sizes], torch.int64) for side in (0, 1))
    scaled = boxes.reshape(-1, 4) * of_level([1 / stride for stride in STRIDES], torch.float32)[:, None] - 0.5
    columns, column_weights = _taps(scaled[:, 0], scaled[:, 2], width, ratio)  # [R, P, T]
    rows, row_weights = _taps(scaled[:, 1], scaled[:, 3], height, ratio)
    rows = (of_level(before, torch.int64) + image * height * width)[:, None, None] + rows * width[:, None, None]
    # [R, P, 1, T, 1] and [R, 1, P, 1, T] -> [R * P * P, T * T]
    index = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).reshape(-1, 4 * ratio**2)
    weights = (row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]).reshape(-1, 4 * ratio**2)
    pooled = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")  # [R * P * P, C]
    return pooled.view(batch, slots, CELLS, CELLS, channels).permute(0, 1, 4, 2, 3)


def _taps(low: Tensor, high: Tensor, size: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Ends of boxes and lengths of maps on an axis, [R] -> cells that output cells read, weights: [R, P, T]."""
    steps = (torch.arange(CELLS * points, device=low.device) + 0.5) / (CELLS * points)
    position = low[:, None] + steps * (high - low)[:, None]  # [R, P * points]
    last = (size - 1)[:, None]
    inside = (position >= -1) & (position <= size[:, None])
    position = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    first = torch.minimum(position.long(), last)
    fraction = position - first
    index = torch.stack((first, torch.minimum(first + 1, last)), -1)  # [R, P * points, 2]
    weights = torch.stack((1 - fraction, fraction), -1) * (inside / points)[..., None]
    return index.reshape(-1, CELLS, points * 2), weights.reshape(-1, CELLS, points * 2)
