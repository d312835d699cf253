"""Balanced feature pyramid (Pang et al. 2019, section 3.2): every level gets an equal share of every other level.

The levels are resized to one of them and averaged, the mean map is refined, and the refined map is resized back and
added to each level. Against an FPN, whose levels mostly hear their neighbours, no resolution is diluted on its way.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import libra_ops
from libra_det.models.exporting import exporting
from libra_det.models.layers import named_conv
from libra_det.models.resize import adaptive_max_pool, nearest

REFINEMENTS = ("mean", "conv", "non_local")


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block (Wang et al. 2018): x + conv_out(softmax(theta(x) phi(x)^T) g(x)).

    [B, C, H, W] -> [B, C, H, W]. The affinity has no 1 / sqrt(C), as published. Scaled dot-product attention computes
    it in tiles, so memory stays linear in H * W. `conv_out` starts at zero: at first the block is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = named_conv(channels, channels, 1)
        self.theta = named_conv(channels, channels, 1)
        self.phi = named_conv(channels, channels, 1)
        self.conv_out = named_conv(channels, channels, 1)
        for conv in (self.g, self.theta, self.phi):
            nn.init.normal_(conv.conv.weight, std=0.01)
        nn.init.zeros_(self.conv_out.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        # [B, C, H, W] -> [B, 1, H * W, C]: one head, one token per pixel
        query, key, value = (conv(x).flatten(2).mT[:, None].contiguous() for conv in (self.theta, self.phi, self.g))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.conv_out(mixed[:, 0].mT.reshape(x.shape))


class BalancedPyramid(nn.Module):
    """Integrate, refine and scatter the pyramid's levels.

    Args:
        channels: channels of every level.
        refine: "mean" adds the plain mean map, "conv" refines it with a 3x3 convolution and ReLU, "non_local" with
            a non-local block.
        refine_level: level, 0 the finest, at whose size the levels are averaged; finer ones are max-pooled to it,
            coarser ones repeated.
    """

    def __init__(self, channels: int, refine: str = "non_local", refine_level: int = 2) -> None:
        super().__init__()
        if refine not in REFINEMENTS:
            raise ValueError(f"pyramid: expected none or one of {', '.join(REFINEMENTS)}; got {refine!r}")
        if not 0 <= refine_level <= 4:
            raise ValueError(f"refine_level: expected a pyramid level, 0 (finest) to 4, got {refine_level}")
        self.refine_level = refine_level
        self.refine: nn.Module | None = None
        if refine == "conv":
            self.refine = named_conv(channels, channels, 3, activate=True)
        elif refine == "non_local":
            self.refine = NonLocal(channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps [B, C, H_l, W_l], finest first -> maps of the same shapes."""
        mean = self.integrate(features)
        refined = mean if self.refine is None else self.refine(mean).to(mean.dtype)
        return self.scatter(features, refined)

    def integrate(self, features: list[Tensor]) -> Tensor:
        """The levels' mean at the size of one."""
        if not exporting():
            return libra_ops.integrate_pyramid(features, level=self.refine_level)
        size = features[self.refine_level].shape[2:]
        finer, rest = features[: self.refine_level], features[self.refine_level :]
        return sum([*(adaptive_max_pool(x, size) for x in finer), *(nearest(x, size) for x in rest)]) / len(features)

    def scatter(self, features: list[Tensor], refined: Tensor) -> list[Tensor]:
        """Every level with the refined map added."""
        if not exporting():
            return libra_ops.scatter_pyramid(features, refined, level=self.refine_level)
        return [
            x + (nearest if level < self.refine_level else adaptive_max_pool)(refined, x.shape[2:])
            for level, x in enumerate(features)
        ]
