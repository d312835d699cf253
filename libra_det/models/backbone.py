"""Backbones: any ResNet or ResNeXt of torchvision, without its classifier, returning the maps of its four stages.

Parameter names are torchvision's own (`conv1.weight`, `layer1.0.bn1.bias`, ...), which published detectors share under
the prefix `backbone.`; loading either needs no renaming.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from libra_det.weights.backbone import load_backbone_weights


class FrozenStatisticsBatchNorm(nn.BatchNorm2d):
    """BatchNorm that always normalises by its stored statistics and never changes them; scale and shift can be trained.

    [B, C, H, W] -> [B, C, H, W]. For fine-tuning on batches too small to estimate statistics from.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def folded_into(self, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that computes `self(conv(x))`, differentiable like these two."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return conv.weight * scale[:, None, None, None], self.bias - self.running_mean * scale


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups (Wu and He 2018), fewer where a group would hold less than two channels."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels)


_SMALL_WEIGHT = 2**18  # numbers: those of the first two stages

NORMS = {
    "batch_norm": nn.BatchNorm2d,
    "frozen_batch_norm": FrozenStatisticsBatchNorm,
    "group_norm": group_norm,
}


def normalised_convolution(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(conv(x))`, in one pass over the map where the statistics are frozen and folding costs less than a pass.

    On a GPU maps are large against weights. On a CPU they may be small, and the folded weights of every step have to
    be differentiated: there only the layers that are not trained, or in testing, and only their small weights.
    """
    if not isinstance(norm, FrozenStatisticsBatchNorm):
        return norm(conv(x))
    trained = torch.is_grad_enabled() and (conv.weight.requires_grad or norm.weight.requires_grad)
    if not x.is_cuda and (trained or conv.weight.numel() > _SMALL_WEIGHT):
        return norm(conv(x))
    weight, bias = norm.folded_into(conv)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """torchvision's BasicBlock or Bottleneck, each convolution together with its normalisation."""
    shortcut = x if block.downsample is None else normalised_convolution(*block.downsample, x)
    x = block.relu(normalised_convolution(block.conv1, block.bn1, x))
    x = normalised_convolution(block.conv2, block.bn2, x)
    if hasattr(block, "conv3"):
        x = normalised_convolution(block.conv3, block.bn3, block.relu(x))
    x += shortcut
    return block.relu(x)


def backbone_names() -> list[str]:
    """Names that `Backbone` accepts: the constructors of torchvision's ResNets and ResNeXts."""
    return torchvision.models.list_models(module=torchvision.models, include=["resnet*", "resnext*", "wide_resnet*"])


class Backbone(nn.Module):
    """Stem and four stages of a torchvision ResNet.

    Args:
        name: constructor of torchvision.models, one of `backbone_names()`.
        norm: "batch_norm", "frozen_batch_norm" or "group_norm"; see `ModelConfig.norm`.
        frozen_stages: leading stages whose parameters (and statistics) never change: -1 none, 0 the stem,
            1 the stem and layer1, ..., 4 everything.
        weights: a .pth or .safetensors file with torchvision's names, or the name of torchvision weights such as
            "DEFAULT", which are downloaded; None keeps torchvision's random initialisation.

    Attributes:
        channels: channels of the four maps, finest first.

    Raises:
        ValueError: on an unknown name, norm or stage, and for weights that do not fit.
    """

    def __init__(
        self, name: str, norm: str = "batch_norm", frozen_stages: int = -1, weights: str | None = None
    ) -> None:
        super().__init__()
        if name not in backbone_names():
            raise ValueError(f"backbone: expected one of {', '.join(backbone_names())}; got {name!r}")
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}; got {norm!r}")
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages: expected -1 (none) to 4 (all stages), got {frozen_stages}")
        resnet = torchvision.models.get_model(name, weights=None, norm_layer=NORMS[norm])
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        widest = resnet.fc.in_features
        self.channels = (widest // 8, widest // 4, widest // 2, widest)
        if weights is not None:
            load_backbone_weights(self, name, weights)
        stages = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        self._frozen = [module for stage in stages[: frozen_stages + 1] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, except that BatchNorm of frozen stages keeps its statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> maps [B, C_l, ceil(H / s), ceil(W / s)] with strides s = 4, 8, 16, 32.

        Raises:
            ValueError: in training, if batch_norm has a single value to take statistics from in the last map.
        """
        trains_statistics = self.layer4.training and type(self.bn1) is nn.BatchNorm2d
        if trains_statistics and len(images) == 1 and max(images.shape[2:]) <= 32:
            raise ValueError(
                f"norm: batch_norm cannot train on one image of {images.shape[2]} x {images.shape[3]} pixels, whose "
                "last map has a single cell; use --norm group_norm, larger images (--short-side) or more (--batch-size)"
            )
        x = self.maxpool(self.relu(normalised_convolution(self.conv1, self.bn1, images)))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = run_block(block, x)
            maps.append(x)
        return maps


def check_not_random(norm: str, frozen_stages: int, weights: str | None) -> None:
    """Before training begins: parts of the backbone that will not change have to come from somewhere.

    Raises:
        ValueError: without weights, frozen stages or statistics would stay random.
    """
    if weights is None and (norm == "frozen_batch_norm" or frozen_stages >= 0):
        raise ValueError(
            f"backbone_weights: expected weights with norm {norm} and frozen_stages {frozen_stages}, which would keep "
            "a random backbone as it is; give --backbone-weights DEFAULT (or a file), or train all of it from random "
            "initialisation: --norm group_norm --frozen-stages -1"
        )
