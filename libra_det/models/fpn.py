"""Feature pyramid network (Lin et al. 2017): every level sees the coarse levels' meaning at its own resolution.

A 1x1 convolution brings the backbone's maps to one width, each coarser one is added to the next finer, and a 3x3
convolution smooths the sums. Coarser levels than the backbone's are made from what is there: Faster R-CNN sub-samples
the last output, RetinaNet has convolutions of stride 2 that begin at the backbone's last map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from libra_det.models.layers import named_conv
from libra_det.models.resize import nearest


class FeaturePyramid(nn.Module):
    """Backbone maps -> maps of equal width, each half the size of the one before.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        out_channels: channels of every output.
        start_level: the first of these maps that is used; 1 leaves the finest out.
        extra_convs: coarser levels made by a 3x3 convolution of stride 2 each: the first of the backbone's last map
            ("on input"), the next of its result, without an activation between. 0: one level, which sub-samples the
            last output.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, start_level: int = 0, extra_convs: int = 0
    ) -> None:
        super().__init__()
        used = in_channels[start_level:]
        self.start_level = start_level
        self.lateral_convs = nn.ModuleList(named_conv(channels, out_channels, 1) for channels in used)
        self.fpn_convs = nn.ModuleList(named_conv(out_channels, out_channels, 3) for _ in used)
        for extra in range(extra_convs):
            channels = used[-1] if extra == 0 else out_channels
            self.fpn_convs.append(named_conv(channels, out_channels, 3, stride=2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, C_l, H_l, W_l], finest first -> maps [B, C, H_l, W_l] of the levels used, and the coarser ones."""
        maps = maps[self.start_level :]
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + nearest(merged[level], finer.shape[2:])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=False)]
        extra_convs = self.fpn_convs[len(merged) :]
        if len(extra_convs) == 0:
            outputs.append(outputs[-1][:, :, ::2, ::2])
        coarsest = maps[-1]
        for conv in extra_convs:
            coarsest = conv(coarsest)
            outputs.append(coarsest)
        return outputs
