"""Recipes: a run is a function that returns one complete, frozen `Config`.

To add one, write a function here; its name is what `libra train --recipe NAME` takes.

The models for COCO have the published values: of the paper (Pang et al., "Libra R-CNN", CVPR 2019), of mmdetection
(configs/libra_rcnn and the files those build on), whose checkpoints they load, and of the original repository
(OceanPang/Libra_R-CNN) where it is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig


def shapes() -> Config:
    """The embedded data set of drawn shapes: trains from random initialisation in minutes on two CPU cores."""
    return Config(
        recipe="shapes",
        model=_small_model(rpn_samples=128, roi_samples=64, proposals_per_level=300, proposals_train=200),
        data=DataConfig(data="shapes", short_side=160, long_side=160, batch_size=4, workers=0, cache_mb=256),
        train=_small_schedule(epochs=7),
    )


def bccd() -> Config:
    """Blood cells (BCCD): dense, imbalanced 11:1, at three scales; from random initialisation on two CPU cores.

    amp: a processor with AVX512-BF16 or AMX takes three fifths of float32's time; on others use --no-amp.
    """
    return Config(
        recipe="bccd",
        model=_small_model(box_loss_weight=2.0, class_specific_boxes=False, score_threshold=0.01),
        data=DataConfig(
            data="bccd",
            eval_split="test",
            short_side=288,
            long_side=384,
            batch_size=4,
            vertical_flip=0.5,
            scale_jitter=(0.8, 1.2),
            workers=0,
            cache_mb=256,
        ),
        train=_small_schedule(epochs=20, amp=True),
    )


def libra_faster_rcnn_r50() -> Config:
    """Libra Faster R-CNN, ResNet-50, 1x: AP 38.3 on COCO val2017 as published by mmdetection."""
    return _published("libra_faster_rcnn_r50", _libra_model())


def libra_faster_rcnn_r101() -> Config:
    """Libra Faster R-CNN, ResNet-101, 1x: published AP 40.1."""
    return _published("libra_faster_rcnn_r101", _libra_model(backbone="resnet101"))


def libra_faster_rcnn_x101_64x4d() -> Config:
    """Libra Faster R-CNN, ResNeXt-101 64x4d, 1x: published AP 42.7.

    Training there began with other ImageNet weights of this architecture (open-mmlab://resnext101_64x4d) than
    torchvision's, which are taken here.
    """
    return _published("libra_faster_rcnn_x101_64x4d", _libra_model(backbone="resnext101_64x4d"))


def libra_fast_rcnn_r50() -> Config:
    """Libra Fast R-CNN, ResNet-50, 1x: AP 38.5 as published by the authors.

    `libra proposals` writes the regions of both splits, which --proposals and --eval-proposals name.
    """
    return _published("libra_fast_rcnn_r50", _libra_model(detector="fast_rcnn"))


def libra_retinanet_r50() -> Config:
    """Libra RetinaNet, ResNet-50, 1x: published AP 37.6."""
    model = _libra_model(
        detector="retinanet",
        refine_level=1,  # libra-retinanet_r50-fpn_1x_coco.py: its levels begin at stride 8
        box_loss_beta=0.11,  # the same file
        anchor_scale=4.0,  # _base_/models/retinanet_r50_fpn.py: octave_base_scale
        anchor_scales_per_octave=3,  # the same file
    )
    return _published("libra_retinanet_r50", model, learning_rate=0.01)  # retinanet_r50_fpn_1x_coco.py


def faster_rcnn_r50() -> Config:
    """Plain Faster R-CNN, ResNet-50, 1x: `libra_faster_rcnn_r50` with every Libra component switched off."""
    return _plain("faster_rcnn_r50", libra_faster_rcnn_r50())


def fast_rcnn_r50() -> Config:
    """Plain Fast R-CNN, ResNet-50, 1x: `libra_fast_rcnn_r50` with every Libra component switched off."""
    return _plain("fast_rcnn_r50", libra_fast_rcnn_r50())


def retinanet_r50() -> Config:
    """Plain RetinaNet, ResNet-50, 1x: `libra_retinanet_r50` with every Libra component switched off."""
    return _plain("retinanet_r50", libra_retinanet_r50())


def libra_faster_rcnn_r50_2x() -> Config:
    """`libra_faster_rcnn_r50`, 24 epochs."""
    return _twice(libra_faster_rcnn_r50())


def libra_faster_rcnn_r101_2x() -> Config:
    """`libra_faster_rcnn_r101`, 24 epochs: AP 41.1 on test-dev in the paper."""
    return _twice(libra_faster_rcnn_r101())


def libra_faster_rcnn_x101_64x4d_2x() -> Config:
    """`libra_faster_rcnn_x101_64x4d`, 24 epochs."""
    return _twice(libra_faster_rcnn_x101_64x4d())


def faster_rcnn_r50_2x() -> Config:
    """`faster_rcnn_r50`, 24 epochs."""
    return _twice(faster_rcnn_r50())


def libra_fast_rcnn_r50_2x() -> Config:
    """`libra_fast_rcnn_r50`, 24 epochs."""
    return _twice(libra_fast_rcnn_r50())


def fast_rcnn_r50_2x() -> Config:
    """`fast_rcnn_r50`, 24 epochs."""
    return _twice(fast_rcnn_r50())


def libra_retinanet_r50_2x() -> Config:
    """`libra_retinanet_r50`, 24 epochs."""
    return _twice(libra_retinanet_r50())


def retinanet_r50_2x() -> Config:
    """`retinanet_r50`, 24 epochs."""
    return _twice(retinanet_r50())


def _libra_model(**changes: Any) -> ModelConfig:
    """Libra Faster R-CNN as published. A file's name beside a value is that of mmdetection's configs folder."""
    model = ModelConfig(
        # _base_/models/faster-rcnn_r50_fpn.py. Its style "pytorch", where the 3x3 convolution has the stride of a
        # bottleneck, is how torchvision builds them.
        backbone="resnet50",
        backbone_weights="IMAGENET1K_V1",  # torchvision://resnet50; DEFAULT would be torchvision's newer recipe
        norm="frozen_batch_norm",  # norm_eval, requires_grad: statistics are kept, scale and shift are trained
        frozen_stages=1,
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        fpn_channels=256,
        # libra_rcnn/libra-faster-rcnn_r50-fpn_1x_coco.py; the paper's section 3.2
        pyramid="non_local",
        refine_level=2,
        # _base_/models/faster-rcnn_r50_fpn.py
        anchor_scale=8.0,
        anchor_ratios=(0.5, 1.0, 2.0),
        rpn_positive_iou=0.7,
        rpn_negative_iou=0.3,
        rpn_min_positive_iou=0.3,
        rpn_samples=256,
        rpn_positive_fraction=0.5,
        rpn_max_negatives_per_positive=5.0,  # libra-faster-rcnn_r50-fpn_1x_coco.py: neg_pos_ub
        rpn_box_loss="l1",  # the original repository: smooth L1 with beta 1/9
        proposals_per_level=2000,
        proposals_train=1000,
        proposals_per_level_test=1000,
        proposals_test=1000,
        proposal_nms_iou=0.7,
        roi_positive_iou=0.5,
        roi_negative_iou=0.5,
        roi_samples=512,
        roi_positive_fraction=0.25,
        roi_size=7,
        roi_sampling_ratio=0,  # the original repository: 2
        roi_finest_scale=56.0,
        fc_channels=1024,
        class_specific_boxes=True,
        roi_delta_stds=(0.1, 0.1, 0.2, 0.2),
        # libra-faster-rcnn_r50-fpn_1x_coco.py; the paper's sections 3.1 and 3.3
        positive_sampler="instance_balanced",
        sampler="iou_balanced",
        sampler_num_bins=3,
        sampler_bins="published",
        box_loss="balanced_l1",
        balanced_l1_alpha=0.5,
        balanced_l1_gamma=1.5,
        box_loss_beta=1.0,
        balanced_l1_formula="published",
        # _base_/models/retinanet_r50_fpn.py
        retina_convs=4,
        retina_positive_iou=0.5,
        retina_negative_iou=0.4,
        retina_min_positive_iou=0.0,
        retina_candidates_per_level=1000,
        focal_alpha=0.25,
        focal_gamma=2.0,
        # _base_/models/faster-rcnn_r50_fpn.py and retinanet_r50_fpn.py
        score_threshold=0.05,
        nms_iou=0.5,
        detections_per_image=100,
    )
    return replace(model, **changes)


def _published(name: str, model: ModelConfig, learning_rate: float = 0.02) -> Config:
    """A published model on COCO with the 1x schedule.

    Batch size and learning rate belong together: published are 16 images (8 GPUs with 2 each) at 0.02, RetinaNet's at
    0.01. Where fewer fit, both are to be divided by the same number: --batch-size 4 --learning-rate 0.005.
    """
    return Config(
        recipe=name,
        model=model,
        data=DataConfig(  # _base_/datasets/coco_detection.py
            data="coco",
            train_split="train2017",
            eval_split="val2017",
            short_side=800,
            long_side=1333,
            size_divisor=32,
            size_buckets=6,  # there two groups, wide and tall, and each batch padded to its largest image
            antialias=False,  # mmcv resizes with OpenCV's bilinear interpolation
            horizontal_flip=0.5,
            max_proposals=2000,  # fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py
            batch_size=16,
            workers=8,
        ),
        train=TrainConfig(  # _base_/schedules/schedule_1x.py
            epochs=12,
            step_epochs=(8, 11),
            schedule="step",
            warmup_steps=500,
            warmup_factor=0.001,  # the original repository: 1/3
            learning_rate=learning_rate,
            momentum=0.9,
            weight_decay=1e-4,
            # As mmdetection, whose checkpoints these models are compared with; the original repository clips at 35.
            gradient_clip=None,
        ),
    )


def _plain(name: str, libra: Config) -> Config:
    """Every Libra component switched off; without them mmdetection's models have an L1 loss on the boxes."""
    model = replace(
        libra.model,
        pyramid="none",
        sampler="random",
        positive_sampler="random",
        box_loss="l1",
        rpn_max_negatives_per_positive=None,  # the limit came with Libra R-CNN
    )
    return replace(libra, recipe=name, model=model)


def _twice(once: Config) -> Config:
    """The 2x schedule."""
    schedule = replace(once.train, epochs=24, step_epochs=(16, 22))  # _base_/schedules/schedule_2x.py
    return replace(once, recipe=f"{once.recipe}_2x", train=schedule)


def _small_model(**changes: Any) -> ModelConfig:
    """Libra Faster R-CNN on ResNet-18 with a 64-channel pyramid, trained from random initialisation."""
    model = ModelConfig(
        backbone="resnet18",
        norm="batch_norm",
        frozen_stages=-1,
        fpn_channels=64,
        anchor_scale=4.0,  # small images: objects of 16 pixels and up
        fc_channels=256,
        proposals_per_level=500,
        proposals_per_level_test=500,
        proposals_train=300,
        proposals_test=300,
        roi_samples=128,
        roi_sampling_ratio=2,  # fixed shapes, and several times as fast on a CPU as adaptive sampling
    )
    return replace(model, **changes)


def _small_schedule(**changes: Any) -> TrainConfig:
    """One-cycle SGD with an exponential moving average of the weights."""
    schedule = TrainConfig(
        learning_rate=0.02,
        schedule="one_cycle",
        gradient_clip=10.0,
        ema_decay=0.998,
        channels_last=True,
    )
    return replace(schedule, **changes)


_RECIPES = (
    shapes,
    bccd,
    libra_faster_rcnn_r50,
    libra_faster_rcnn_r101,
    libra_faster_rcnn_x101_64x4d,
    libra_fast_rcnn_r50,
    libra_retinanet_r50,
    faster_rcnn_r50,
    fast_rcnn_r50,
    retinanet_r50,
    libra_faster_rcnn_r50_2x,
    libra_faster_rcnn_r101_2x,
    libra_faster_rcnn_x101_64x4d_2x,
    libra_fast_rcnn_r50_2x,
    libra_retinanet_r50_2x,
    faster_rcnn_r50_2x,
    fast_rcnn_r50_2x,
    retinanet_r50_2x,
)


def recipe_names() -> list[str]:
    return [function.__name__ for function in _RECIPES]


def recipe(name: str) -> Config:
    """The configuration of the recipe `name`; an unknown name is a ValueError that lists the known ones."""
    for function in _RECIPES:
        if function.__name__ == name:
            return function()
    raise ValueError(f"recipe: expected one of {', '.join(recipe_names())}, got {name!r}")
