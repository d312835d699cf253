"""Recipes against the published values."""

import dataclasses

import pytest

from libra_det.config import DataConfig, ModelConfig
from libra_det.recipes import recipe, recipe_names

LIBRA = {
    "libra_faster_rcnn_r50": ("faster_rcnn", "resnet50"),
    "libra_faster_rcnn_r101": ("faster_rcnn", "resnet101"),
    "libra_faster_rcnn_x101_64x4d": ("faster_rcnn", "resnext101_64x4d"),
    "libra_fast_rcnn_r50": ("fast_rcnn", "resnet50"),
    "libra_retinanet_r50": ("retinanet", "resnet50"),
}
PLAIN = ("faster_rcnn_r50", "fast_rcnn_r50", "retinanet_r50")
PUBLISHED = [f"{name}{schedule}" for name in (*LIBRA, *PLAIN) for schedule in ("", "_2x")]


def test_nothing_else_is_published():
    assert sorted(recipe_names()) == sorted([*PUBLISHED, "shapes", "bccd"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_all_published_models_share(name):
    config = recipe(name)
    model, data, train = config.model, config.data, config.train
    assert config.recipe == name
    assert (model.norm, model.frozen_stages) == ("frozen_batch_norm", 1)
    assert model.pixel_mean == (123.675, 116.28, 103.53) and model.pixel_std == (58.395, 57.12, 57.375)
    assert (data.short_side, data.long_side, data.size_divisor, data.antialias) == (800, 1333, 32, False)
    assert (data.horizontal_flip, data.vertical_flip, data.scale_jitter, data.color_jitter) == (0.5, 0, (1, 1), 0)
    assert (data.train_split, data.eval_split) == ("train2017", "val2017")
    assert data.batch_size == 16 and train.learning_rate == (0.01 if "retinanet" in name else 0.02)
    assert (train.momentum, train.weight_decay, train.gradient_clip) == (0.9, 1e-4, None)
    assert (train.schedule, train.warmup_steps, train.warmup_factor) == ("step", 500, 0.001)
    schedule = (24, (16, 22)) if name.endswith("_2x") else (12, (8, 11))
    assert (train.epochs, train.step_epochs) == schedule
    assert (model.score_threshold, model.nms_iou, model.detections_per_image) == (0.05, 0.5, 100)
    assert not train.ema_decay and not train.amp


@pytest.mark.parametrize("name", LIBRA)
def test_libra_models(name):
    model = recipe(name).model
    assert (model.detector, model.backbone) == LIBRA[name]
    retina = name == "libra_retinanet_r50"
    assert (model.pyramid, model.fpn_channels, model.refine_level) == ("non_local", 256, 1 if retina else 2)
    loss = (model.box_loss, model.balanced_l1_alpha, model.balanced_l1_gamma, model.box_loss_beta)
    assert loss == ("balanced_l1", 0.5, 1.5, 0.11 if retina else 1.0)
    assert (model.class_loss_weight, model.box_loss_weight) == (1.0, 1.0)
    assert (model.sampler_bins, model.balanced_l1_formula) == ("published", "published")


@pytest.mark.parametrize("name", [name for name in LIBRA if "retinanet" not in name])
def test_two_stage_models(name):
    model = recipe(name).model
    assert (model.anchor_scale, model.anchor_ratios, model.anchor_scales_per_octave) == (8.0, (0.5, 1.0, 2.0), 1)
    assert (model.rpn_positive_iou, model.rpn_negative_iou, model.rpn_min_positive_iou) == (0.7, 0.3, 0.3)
    rpn = (model.rpn_samples, model.rpn_positive_fraction, model.rpn_max_negatives_per_positive, model.rpn_box_loss)
    assert rpn == (256, 0.5, 5.0, "l1")
    assert (model.proposals_per_level, model.proposals_train, model.proposal_nms_iou) == (2000, 1000, 0.7)
    assert (model.proposals_per_level_test, model.proposals_test) == (1000, 1000)
    assert (model.roi_positive_iou, model.roi_negative_iou) == (0.5, 0.5)
    assert (model.roi_samples, model.roi_positive_fraction) == (512, 0.25)
    assert (model.sampler, model.sampler_num_bins, model.positive_sampler) == ("iou_balanced", 3, "instance_balanced")
    assert (model.roi_size, model.roi_sampling_ratio, model.roi_finest_scale) == (7, 0, 56.0)
    assert (model.fc_channels, model.class_specific_boxes) == (1024, True)
    assert model.roi_delta_stds == (0.1, 0.1, 0.2, 0.2)


def test_retinanet():
    model = recipe("libra_retinanet_r50").model
    assert (model.anchor_scale, model.anchor_ratios, model.anchor_scales_per_octave) == (4.0, (0.5, 1.0, 2.0), 3)
    assert (model.retina_positive_iou, model.retina_negative_iou, model.retina_min_positive_iou) == (0.5, 0.4, 0.0)
    assert (model.focal_gamma, model.focal_alpha, model.retina_convs) == (2.0, 0.25, 4)
    assert model.retina_candidates_per_level == 1000


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_differ_in_the_libra_components_alone(name):
    libra, plain = recipe(f"libra_{name}"), recipe(name)
    assert dataclasses.replace(plain, recipe=libra.recipe, model=libra.model) == libra
    old, new = vars(libra.model), vars(plain.model)
    assert {field: new[field] for field in new if new[field] != old[field]} == {
        "pyramid": "none",
        "sampler": "random",
        "positive_sampler": "random",
        "box_loss": "l1",
        "rpn_max_negatives_per_positive": None,
    }


@pytest.mark.parametrize("name", [*LIBRA, *PLAIN])
def test_the_double_schedule_changes_nothing_else(name):
    once, twice = recipe(name), recipe(f"{name}_2x")
    assert dataclasses.replace(twice, recipe=name, train=once.train) == once


def test_new_training_takes_the_paper_s_form():
    for model in (ModelConfig(), recipe("shapes").model, recipe("bccd").model):
        assert (model.sampler_bins, model.balanced_l1_formula) == ("paper", "paper")
    for data in (DataConfig(), recipe("shapes").data, recipe("bccd").data):
        assert data.antialias
