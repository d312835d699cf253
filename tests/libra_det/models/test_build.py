"""Every published architecture, by its recipe: names, shapes and numbers of parameters."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from libra_det.config import ModelConfig
from libra_det.models import FasterRCNN, FastRCNN, RetinaNet, build_model
from libra_det.recipes import recipe


@pytest.mark.parametrize(
    ("key", "name", "tensors", "parameters"),
    [
        ("faster_r50", "libra_faster_rcnn_r50", 356, 42_016_224),
        ("faster_r101", "libra_faster_rcnn_r101", 662, 61_008_352),
        ("faster_x101", "libra_faster_rcnn_x101_64x4d", 662, 99_914_464),
        ("retina_r50", "libra_retinanet_r50", 362, 38_231_860),
        ("fast_r50", "libra_fast_rcnn_r50", 350, 41_422_289),
    ],
)
def test_names_and_shapes_are_the_published_ones(libra_goldens, key, name, tensors, parameters) -> None:
    wanted = json.loads((libra_goldens / "state_dict_keys.json").read_text())[key]
    config = dataclasses.replace(recipe(name).model, backbone_weights=None)
    with torch.device("meta"):  # shapes only: no memory, no initialisation
        model = build_model(config, 80)
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == wanted
    assert len(state) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["faster_rcnn_r50", "fast_rcnn_r50", "retinanet_r50"])
def test_plain_models_lack_the_balanced_pyramid_alone(name) -> None:
    names = {}
    for each in (name, f"libra_{name}"):
        with torch.device("meta"):
            names[each] = set(
                build_model(dataclasses.replace(recipe(each).model, backbone_weights=None), 80).state_dict()
            )
    added = names[f"libra_{name}"] - names[name]
    assert len(added) == 8 and all(key.startswith("neck.1.refine.") for key in added)
    assert names[name] < names[f"libra_{name}"]


@pytest.mark.parametrize(
    ("detector", "cls"), [("faster_rcnn", FasterRCNN), ("fast_rcnn", FastRCNN), ("retinanet", RetinaNet)]
)
def test_the_config_names_the_detector(small_config, detector, cls) -> None:
    assert type(build_model(small_config(detector=detector), 3)) is cls


def test_an_unknown_detector_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="detector: expected one of faster_rcnn, fast_rcnn, retinanet; got 'yolo'"):
        ModelConfig(detector="yolo")
