"""Detectors, data and runs so small that a command takes some milliseconds: what hostile files are made from."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, ResNet

from libra_det import cli, recipes
from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig
from libra_det.models import build_model

CATEGORIES = [{"id": 3, "name": "red box"}, {"id": 7, "name": "green box"}]
_COLORS = {3: (220, 30, 30), 7: (30, 200, 40)}
_WIDTHS = (4, 8, 16, 32)


class TinyResNet(ResNet):
    """A ResNet of one narrow block a stage."""

    def __init__(self, norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d) -> None:
        nn.Module.__init__(self)
        self._norm_layer, self.groups, self.base_width, self.dilation = norm_layer, 1, 64, 1
        self.inplanes = _WIDTHS[0]
        self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = norm_layer(self.inplanes), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
        for number, width in enumerate(_WIDTHS, start=1):
            setattr(self, f"layer{number}", self._make_layer(BasicBlock, width, 1, stride=1 if number == 1 else 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(_WIDTHS[-1], 10)


def resnet_tiny(weights: None = None, progress: bool = True, **options: Any) -> TinyResNet:
    return TinyResNet(**options)


def configs(data: Path) -> dict[str, Config]:
    """The recipes that there are from now on, by name."""
    model = ModelConfig(
        backbone="resnet_tiny",
        norm="batch_norm",
        frozen_stages=-1,
        fpn_channels=8,
        fc_channels=8,
        roi_size=2,
        rpn_samples=8,
        roi_samples=8,
        proposals_per_level=10,
        proposals_per_level_test=10,
        proposals_train=10,
        proposals_test=10,
        score_threshold=0.0,
        detections_per_image=3,
    )
    source = DataConfig(data=str(data), short_side=32, long_side=48, batch_size=2, workers=0)
    train = TrainConfig(epochs=1, learning_rate=0.001, warmup_steps=0, log_every=1, ema_decay=0.9, threads=1)
    changes = {
        "tiny_faster": {},
        "tiny_fast": {"detector": "fast_rcnn"},
        "tiny_retina": {"detector": "retinanet", "anchor_scales_per_octave": 3, "refine_level": 1},
        "tiny_plain": {"pyramid": "none"},
    }
    return {name: Config(name, replace(model, **change), source, train) for name, change in changes.items()}


def install(data: Path) -> dict[str, Config]:
    """Makes the tiny recipes the only ones, and their backbone known to torchvision."""
    resnet_tiny.__module__ = "torchvision.models.resnet"
    if "resnet_tiny" not in torchvision.models.list_models():
        register_model("resnet_tiny")(resnet_tiny)
    found = configs(data)

    def function_of(name: str) -> Callable[[], Config]:
        def make() -> Config:
            return found[name]

        make.__name__ = name
        return make

    recipes._RECIPES = tuple(map(function_of, found))
    cli.DEFAULT_RECIPE = "tiny_faster"
    return found


def state_of(config: Config, num_classes: int = 2) -> OrderedDict[str, Tensor]:
    torch.manual_seed(1)
    return OrderedDict(build_model(config.model, num_classes).state_dict())


def draw_picture(number: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """64 x 48 pixels with one or two rectangles, and their annotations."""
    picture, annotations = Image.new("RGB", (64, 48), (120, 120, 120)), []
    for place, category in enumerate(list(_COLORS)[: 1 + number % 2]):
        x, y, width, height = 4 + 7 * number % 20 + 20 * place, 5 + 3 * number % 10, 18, 20
        ImageDraw.Draw(picture).rectangle([x, y, x + width - 1, y + height - 1], fill=_COLORS[category])
        annotations.append({"category_id": category, "bbox": [x, y, width, height], "area": width * height})
    return picture, annotations


def write_coco(folder: Path, split: str, images: int) -> dict[str, Any]:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(images):
        picture, annotations = draw_picture(number)
        name = f"{split}_{number}.png"
        picture.save(folder / name)
        content["images"].append({"id": number + 1, "file_name": name, "width": 64, "height": 48})
        for annotation in annotations:
            place = {"id": len(content["annotations"]) + 1, "image_id": number + 1, "iscrowd": 0}
            content["annotations"].append({**place, **annotation})
    (folder / f"{split}.json").write_text(json.dumps(content))
    return content


def write_voc(folder: Path, split: str, images: int) -> None:
    names = {category["id"]: category["name"] for category in CATEGORIES}
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        picture, annotations = draw_picture(number)
        picture.save(folder / "JPEGImages" / f"{split}_{number}.jpg")
        objects = ""
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            objects += (
                f"<object><name>{names[annotation['category_id']]}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
                "</bndbox></object>"
            )
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{split}_{number}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{split}_{number}.xml").write_text(xml)
    stems = "\n".join(f"{split}_{number}" for number in range(images))
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(stems + "\n")


def meta_config(model: ModelConfig) -> str:
    """The Python text of a published file's meta, as mmdetection keeps it, which changes nothing."""
    neck = "dict(type='FPN')"
    if model.pyramid != "none":
        neck += f", dict(type='BFP', refine_level={model.refine_level}, refine_type='non_local')"
    if model.detector == "retinanet":
        anchors = "octave_base_scale=8, scales_per_octave=3, strides=[8, 16, 32, 64, 128]"
        head = f"bbox_head=dict(anchor_generator=dict({anchors}))"
        test = "test_cfg=dict(nms_pre=10, score_thr=0.0, max_per_img=3)"
    else:
        head = "rpn_head=dict(anchor_generator=dict(scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]))"
        test = "test_cfg=dict(rpn=dict(nms_pre=10, max_per_img=10), rcnn=dict(score_thr=0.0, max_per_img=3))"
    kind = "RetinaNet" if model.detector == "retinanet" else "FasterRCNN"
    return f"""
model = dict(
    type='{kind}',
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    neck=[{neck}],
    {head},
    {test})
test_pipeline = [dict(type='Resize', img_scale=(48, 32), keep_ratio=True), dict(type='Pad', size_divisor=32)]
"""


def published(config: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a published file."""
    names = tuple(category["name"] for category in CATEGORIES)
    return {"meta": {"CLASSES": names, "config": meta_config(config.model)}, "state_dict": OrderedDict(state)}
