"""Feature pyramid network (Lin et al. 2017): every level sees the coarse levels' meaning at its own resolution.

A 1x1 convolution brings the backbone's maps to one width, each coarser one is added to the next finer, a 3x3
convolution smooths the sums, and a fifth level sub-samples the fourth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from libra_det.models.layers import named_conv


class FeaturePyramid(nn.Module):
    """Four backbone maps -> five maps of equal width at strides 4, 8, 16, 32 and 64."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(named_conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(named_conv(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, C_l, H_l, W_l], finest first -> maps [B, C, H_l, W_l] and one more of half the last one's size."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(merged[level], size=finer.shape[2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs
