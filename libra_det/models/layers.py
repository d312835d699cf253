"""A convolution under the name `conv`, as published checkpoints store it: `<place>.conv.weight` and `.bias`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def named_conv(
    in_channels: int, out_channels: int, kernel_size: int, activate: bool = False, stride: int = 1
) -> nn.Sequential:
    """Convolution [B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)] for an odd `kernel_size`, with
    Xavier-uniform weights, zero bias and, if asked, a ReLU behind it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    layers: list[tuple[str, nn.Module]] = [("conv", conv)]
    if activate:
        layers.append(("activate", nn.ReLU(inplace=True)))
    return nn.Sequential(OrderedDict(layers))
