"""Recipes: a run is a function that returns one complete, frozen `Config`.

To add one, write a function here; its name is what `libra train --recipe NAME` takes.
"""

from __future__ import annotations

from dataclasses import replace

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
    """Libra Faster R-CNN R-50-FPN, 1x schedule, as published for COCO (Pang et al. 2019; mmdetection's settings)."""
    return Config(
        recipe="libra_faster_rcnn_r50",
        model=ModelConfig(backbone_weights="DEFAULT"),
        data=DataConfig(data="coco", train_split="train2017", eval_split="val2017"),
        train=TrainConfig(),
    )


def faster_rcnn_r50() -> Config:
    """The plain counterpart of `libra_faster_rcnn_r50`: every Libra component switched off."""
    libra = libra_faster_rcnn_r50()
    plain = replace(libra.model, pyramid="none", sampler="random", positive_sampler="random", box_loss="l1")
    return replace(libra, recipe="faster_rcnn_r50", model=plain)


def _small_model(**changes) -> ModelConfig:
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


def _small_schedule(**changes) -> TrainConfig:
    """One-cycle SGD with an exponential moving average of the weights."""
    schedule = TrainConfig(
        learning_rate=0.02,
        schedule="one_cycle",
        gradient_clip=10.0,
        ema_decay=0.998,
        channels_last=True,
    )
    return replace(schedule, **changes)


_RECIPES = (shapes, bccd, libra_faster_rcnn_r50, faster_rcnn_r50)


def recipe_names() -> list[str]:
    return [function.__name__ for function in _RECIPES]


def recipe(name: str) -> Config:
    """The configuration of the recipe `name`; an unknown name is a ValueError that lists the known ones."""
    for function in _RECIPES:
        if function.__name__ == name:
            return function()
    raise ValueError(f"recipe: expected one of {', '.join(recipe_names())}, got {name!r}")
