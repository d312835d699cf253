"""The detectors that are compared: ours, and torchvision's built of the same parts, with the same weights.

Backbone, pyramid, heads, anchors, proposals, samples, image sizes and the norm (stored statistics; scale and shift
trained) are the same. By design two things are not: torchvision's box layer has four more rows, for the background,
and the balanced pyramid is ours alone.
B images of a batch, G target slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from libra_det.config import ModelConfig
from libra_det.models import DetectionModel, build_model
from libra_det.models.backbone import FrozenStatisticsBatchNorm
from libra_det.recipes import recipe

RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Setting:
    """What both sides share.

    height, width: of the images, which are padded to multiples of 32. hidden: of the two fully connected layers.
    proposals: before NMS for each level, and after it for each image.
    """

    detector: str
    backbone: str
    channels: int
    height: int
    width: int
    batch: int
    classes: int
    proposals: int = 1000
    samples: int = 512
    hidden: int = 1024
    frozen_stages: int = 1

    @property
    def words(self) -> str:
        name = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet"}[self.detector]
        backbone = self.backbone.replace("resnet", "R-")
        return f"{name} {backbone}, {self.batch} x {self.height} x {self.width}"


SMALL = Setting("faster_rcnn", "resnet18", 64, 240, 320, 4, 3, proposals=500, samples=128)
COCO = Setting("faster_rcnn", "resnet50", 256, 800, 1344, 16, 80)
COCO_RETINA = replace(COCO, detector="retinanet")
TINY = Setting("faster_rcnn", "resnet18", 8, 64, 64, 2, 3, proposals=20, samples=16, hidden=16)
TINY_RETINA = replace(TINY, detector="retinanet")


def model_config(setting: Setting, **changes: object) -> ModelConfig:
    """Ours: all of Libra at these sizes, with the sampling ratio that torchvision has."""
    name = {"faster_rcnn": "libra_faster_rcnn_r50", "retinanet": "libra_retinanet_r50"}[setting.detector]
    model = replace(
        recipe(name).model,
        backbone=setting.backbone,
        backbone_weights=None,
        frozen_stages=setting.frozen_stages,
        fpn_channels=setting.channels,
        proposals_per_level=setting.proposals,
        proposals_train=setting.proposals,
        proposals_per_level_test=setting.proposals,
        proposals_test=setting.proposals,
        roi_samples=setting.samples,
        roi_sampling_ratio=2,
        fc_channels=setting.hidden,
    )
    return replace(model, **changes)


def our_detector(setting: Setting, images: Tensor, **changes: object) -> DetectionModel:
    """Ours with weights of a fixed seed, in training mode. images: uint8 [B, 3, H, W], which the stored statistics of
    the norms are taken from: so that random weights give features of a usual size."""
    torch.manual_seed(0)
    model = build_model(model_config(setting, **changes), setting.classes)
    with torch.no_grad():
        sizes = images.new_tensor([images.shape[2:]] * len(images), dtype=torch.float32)
        _take_statistics(model.backbone, model.normalise(images, sizes))
        if setting.detector == "faster_rcnn":  # most regions are background, as they are for a trained detector
            model.roi_head.bbox_head.fc_cls.bias[-1] = 2.0
    return model.train()


def _take_statistics(backbone: nn.Module, images: Tensor) -> None:
    def store(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    hooks = [
        module.register_forward_pre_hook(store)
        for module in backbone.modules()
        if isinstance(module, FrozenStatisticsBatchNorm)
    ]
    backbone(images)
    for hook in hooks:
        hook.remove()


def torchvision_detector(
    setting: Setting, ours: DetectionModel | None, norm: type[nn.Module] = FrozenStatisticsBatchNorm
) -> nn.Module:
    """torchvision's with the weights of ours, in training mode; None: with random ones.

    Its transform neither resizes (the images have their size) nor waits for anything; it pads and normalises.
    """
    resnet = torchvision.models.get_model(setting.backbone, weights=None, norm_layer=norm)
    stages = [[resnet.conv1, resnet.bn1], [resnet.layer1], [resnet.layer2], [resnet.layer3], [resnet.layer4]]
    for module in [module for stage in stages[: setting.frozen_stages + 1] for module in stage]:
        module.requires_grad_(False)
    retina = setting.detector == "retinanet"
    used, widest = (2, 3, 4) if retina else (1, 2, 3, 4), resnet.fc.in_features
    backbone = BackboneWithFPN(
        resnet,
        {f"layer{stage}": str(place) for place, stage in enumerate(used)},
        [widest // 2 ** (4 - stage) for stage in used],
        setting.channels,
        LastLevelP6P7(widest, setting.channels) if retina else LastLevelMaxPool(),
    )
    model = _retinanet(setting, backbone) if retina else _faster_rcnn(setting, backbone)
    model.transform.resize = lambda image, target: (image, target)
    if ours is not None:
        _share_weights(ours, model)
    return model.train()


def _faster_rcnn(setting: Setting, backbone: nn.Module) -> FasterRCNN:
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)), (RATIOS,) * 5)
    limits = {f"rpn_{when}_nms_top_n_{use}": setting.proposals for when in ("pre", "post") for use in ("train", "test")}
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        **limits,
        box_head=TwoMLPHead(setting.channels * 49, setting.hidden),
        box_predictor=FastRCNNPredictor(setting.hidden, setting.classes + 1),
        box_batch_size_per_image=setting.samples,
    )


def _retinanet(setting: Setting, backbone: nn.Module) -> RetinaNet:
    sizes = tuple(tuple(4 * stride * 2 ** (step / 3) for step in range(3)) for stride in (8, 16, 32, 64, 128))
    return RetinaNet(
        backbone, setting.classes, anchor_generator=AnchorGenerator(sizes, (RATIOS,) * 5), detections_per_img=100
    )


def _share_weights(ours: DetectionModel, theirs: nn.Module) -> None:
    """The weights of ours, under torchvision's names. The heads of a RetinaNet keep their own."""
    backbone, pyramid = ours.backbone.state_dict(), ours.neck[0]
    body = theirs.backbone.body.state_dict()
    theirs.backbone.body.load_state_dict({name: backbone[name] for name in body if name in backbone}, strict=False)
    for place, (lateral, output) in enumerate(zip(pyramid.lateral_convs, pyramid.fpn_convs, strict=False)):
        theirs.backbone.fpn.inner_blocks[place][0].load_state_dict(lateral.conv.state_dict())
        theirs.backbone.fpn.layer_blocks[place][0].load_state_dict(output.conv.state_dict())
    if not isinstance(theirs, FasterRCNN):
        return
    mine, head = ours.rpn_head, theirs.rpn.head
    for source, target in ((mine.rpn_conv, head.conv[0][0]), (mine.rpn_cls, head.cls_logits)):
        target.load_state_dict(source.state_dict())
    head.bbox_pred.load_state_dict(mine.rpn_reg.state_dict())
    mine, head, predictor = ours.roi_head.bbox_head, theirs.roi_heads.box_head, theirs.roi_heads.box_predictor
    head.fc6.load_state_dict(mine.shared_fcs[0].state_dict())
    head.fc7.load_state_dict(mine.shared_fcs[1].state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):  # the background is the last class here, the first there
            getattr(predictor.cls_score, name).copy_(getattr(mine.fc_cls, name).roll(1, 0))
            getattr(predictor.bbox_pred, name)[4:] = getattr(mine.fc_reg, name)


def count(model: nn.Module, trained: bool = False) -> int:
    """Numbers in a model's parameters."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad or not trained)


def only_theirs(setting: Setting) -> int:
    """Parameters of torchvision's that ours has no use for: the boxes of the background."""
    return 0 if setting.detector == "retinanet" else 4 * (setting.hidden + 1)


def only_ours(model: DetectionModel) -> int:
    """Parameters of the balanced pyramid."""
    return sum(map(count, model.neck[1:]))
