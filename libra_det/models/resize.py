"""Maps brought to another size, any to any: the nearest value, and the largest of a window.

Both are PyTorch's own operations, except in a model that is exported, where those cannot serve: adaptive max pooling
takes no sizes that are not known before, and ONNX's Resize picks other neighbours at some sizes (24 -> 74 for one).
There rows and columns are gathered instead, to the same values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from libra_det.models.exporting import exporting


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Value of the nearest cell: [B, C, H, W] -> [B, C, h, w]."""
    if not torch.onnx.is_in_onnx_export():
        return F.interpolate(x, size=tuple(size), mode="nearest")
    return gather_nearest(gather_nearest(x, 2, size[0]), 3, size[1])


def adaptive_max_pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Largest value of each of h x w windows that cover the map evenly: [B, C, H, W] -> [B, C, h, w]."""
    if not exporting():
        return F.adaptive_max_pool2d(x, tuple(size))
    return max_of_windows(max_of_windows(x, 2, size[0]), 3, size[1])


def gather_nearest(x: Tensor, dim: int, count: int) -> Tensor:
    """`count` values along `dim`, the i-th of N that at floor(i N / count), in the float32 arithmetic of PyTorch."""
    step = torch.arange(count, device=x.device).float()
    scale = step.new_full((), x.shape[dim]) / step.new_full((), count)
    return x.index_select(dim, (step * scale).floor().long().clamp(max=x.shape[dim] - 1))


def max_of_windows(x: Tensor, dim: int, count: int) -> Tensor:
    """`count` values along `dim`, the i-th of N the largest from floor(i N / count) to ceil((i + 1) N / count)."""
    length = x.shape[dim]
    step = torch.arange(count, device=x.device)
    first = step * length // count
    last = ((step + 1) * length + count - 1) // count - 1
    longest = (length + count - 1) // count + 1  # a window may begin and end within a value
    inside = first[:, None] + torch.arange(longest, device=x.device)
    index = torch.minimum(inside, last[:, None])  # [count, longest], the last value again where a window is shorter
    return x.index_select(dim, index.flatten()).unflatten(dim, (count, longest)).amax(dim + 1)
