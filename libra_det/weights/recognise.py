"""Which recipe a detector's tensors belong to, by comparing their names and shapes with every recipe's model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from libra_det.config import Config, ModelConfig
from libra_det.models import build_model
from libra_det.recipes import recipe, recipe_names
from libra_det.weights.fit import Fit, compare
from libra_det.weights.spelling import outputs


def is_backbone(state: dict[str, Tensor]) -> bool:
    """True for a torchvision ResNet, with or without its classifier."""
    return "conv1.weight" in state and any(key.startswith("layer1.0.") for key in state)


def num_classes_of(state: dict[str, Tensor]) -> int | None:
    """C, by the shapes of the class layers; None where there are none."""
    classes = outputs(state, "roi_head.bbox_head.fc_cls.weight")
    if classes is not None:
        return classes - 1  # the last one is the background
    classes, boxes = outputs(state, "bbox_head.retina_cls.weight"), outputs(state, "bbox_head.retina_reg.weight")
    if classes is not None and boxes is not None and boxes >= 4:
        return classes // (boxes // 4)  # both have outputs for each anchor of a cell
    return None


def model_fit(config: ModelConfig, num_classes: int, state: dict[str, Tensor]) -> Fit:
    """How the tensors fit the model of a configuration, which is built without memory for its weights."""
    with torch.device("meta"):
        model = build_model(replace(config, backbone_weights=None), num_classes)
    return compare(state, model.state_dict())


def adapted(config: Config, state: dict[str, Tensor]) -> Config:
    """The configuration with box deltas shared by all classes where the tensors have them so, and else as it was."""
    classes, deltas = (outputs(state, f"roi_head.bbox_head.{layer}.weight") for layer in ("fc_cls", "fc_reg"))
    if classes is None or deltas is None or classes == 2:  # with one class both are the same
        return config
    return replace(config, model=replace(config.model, class_specific_boxes=deltas != 4))


def recognised(state: dict[str, Tensor], num_classes: int) -> tuple[Config, Fit]:
    """The recipe whose model the tensors fit exactly, or else with the fewest exceptions, and how they fit.

    Recipes that differ in training alone have the same tensors: of those it is the first one in `recipes.py`.
    """
    best: tuple[Config, Fit] | None = None
    for config in (adapted(recipe(name), state) for name in recipe_names()):
        fit = model_fit(config.model, num_classes, state)
        if fit.exact:
            return config, fit
        if best is None or fit.misfits < best[1].misfits:
            best = config, fit
    assert best is not None  # there are recipes
    return best
