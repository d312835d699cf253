"""Configurations survive the run folder, and mistakes in them are named."""

import dataclasses
import json
import math
import typing

import pytest

from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig
from libra_det.recipes import recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_json(name):
    config = recipe(name)
    assert config.recipe == name
    assert Config.from_json(config.to_json()) == config


def test_fields_that_an_older_run_lacks_keep_their_default():
    config = Config.from_json('{"recipe": "old", "model": {"backbone": "resnet34"}}')
    assert config.model == ModelConfig(backbone="resnet34")


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match=r"config\.model: unknown field 'backbon'.*backbone"):
        Config.from_json('{"recipe": "x", "model": {"backbon": "resnet18"}}')


def test_an_impossible_choice_is_named_with_the_possible_ones():
    values = json.loads(recipe("shapes").to_json())
    values["model"]["pyramid"] = "egyptian"
    with pytest.raises(ValueError, match=r"config\.model\.pyramid.*non_local.*'egyptian'"):
        Config.from_json(json.dumps(values))


def build(part, **values):
    return Config.from_json(json.dumps({"recipe": "x", part: values}))


@pytest.mark.parametrize(
    ("part", "field", "value", "expected"),
    [
        ("train", "epochs", "2", r"int in \[1, 100000\], got '2'"),
        ("train", "epochs", 0, r"int in \[1, 100000\], got 0"),
        ("train", "epochs", 1.5, "int in"),
        ("train", "epochs", True, "int in"),
        ("train", "learning_rate", 0, r"float in \(0, 1e38\], got 0"),
        ("train", "learning_rate", float("nan"), "got nan"),
        ("train", "learning_rate", float("inf"), "got inf"),
        ("train", "gradient_clip", 0, r"float \| None in \(0, 1e38\]"),
        ("train", "step_epochs", [8, "11"], r"tuple\[int, ...\]"),
        ("train", "step_epochs", 8, r"tuple\[int, ...\]"),
        ("train", "seed", -1, "got -1"),
        ("train", "ema_decay", 1.0, r"\[0, 1\)"),
        ("train", "momentum", 1.0, r"\[0, 1\)"),
        ("train", "weight_decay", -1e-4, r"\[0, 1e6\]"),
        ("train", "amp", "yes", "bool, got 'yes'"),
        ("data", "data", None, "str, got None"),
        ("data", "batch_size", 0, r"\[1, 65536\]"),
        ("data", "size_divisor", 0, r"\[1, 1024\]"),
        ("data", "short_side", 0, r"\[1, 16384\]"),
        ("data", "short_side", 1334, "at most long_side 1333"),
        ("data", "horizontal_flip", 1.1, r"\[0, 1\]"),
        ("data", "scale_jitter", [0, 1], r"\(0, 8\]"),
        ("data", "scale_jitter", [1.5, 0.5], "the smaller factor first"),
        ("data", "scale_jitter", [1], r"tuple\[float, float\]"),
        ("model", "anchor_scale", 0, r"\[1e-3, 1e4\]"),
        ("model", "anchor_ratios", [], "at least one"),
        ("model", "pixel_mean", [1, 2, float("nan")], "got"),
        ("model", "proposals_train", 0, r"\[1, 100000\]"),
        ("model", "rpn_positive_iou", 1.5, r"\[0, 1\]"),
        ("model", "rpn_negative_iou", 0.8, "at most rpn_positive_iou 0.7"),
        ("model", "roi_negative_iou", 0.6, "at most roi_positive_iou 0.5"),
        ("model", "roi_positive_fraction", -0.1, r"\[0, 1\]"),
        ("model", "sampler_num_bins", 65, r"\[1, 64\]"),
        ("model", "frozen_stages", 5, r"\[-1, 4\]"),
        ("model", "refine_level", 5, r"\[0, 4\]"),
        ("model", "detector", "yolo", "one of faster_rcnn, fast_rcnn, retinanet; got 'yolo'"),
        ("model", "anchor_scales_per_octave", 0, r"\[1, 32\]"),
        ("model", "retina_negative_iou", 0.6, "at most retina_positive_iou 0.5"),
        ("model", "focal_alpha", 1.5, r"\[0, 1\]"),
        ("data", "max_proposals", 0, r"\[1, 1000000\]"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_expected(part, field, value, expected):
    with pytest.raises((TypeError, ValueError), match=rf"^config\.{part}\.{field}: expected .*{expected}"):
        build(part, **{field: value})


HUGE = (10**9, 10**18, 10**400, 1e300, math.inf, math.nan, [1.0] * 10**5, [10**9] * 3)


@pytest.mark.parametrize("part", [ModelConfig, DataConfig, TrainConfig])
def test_no_number_of_a_file_can_ask_for_any_amount_of_memory(part):
    """Every field with numbers has an upper bound, and the message that says so is short."""
    for field, hint in typing.get_type_hints(part).items():
        if field == "seed" or not any(kind in str(hint) for kind in ("int", "float")):
            continue
        for value in HUGE:
            if isinstance(value, int) and "int" not in str(hint) and value < 1e38:
                continue  # a factor of a loss takes no memory
            value = tuple(value) if isinstance(value, list) else value
            with pytest.raises((TypeError, ValueError), match=f"^{field}: expected") as error:
                part(**{field: value})
            assert len(str(error.value)) < 500


def test_whole_numbers_do_for_declared_floats_and_limits_are_possible():
    assert build("train", learning_rate=1, gradient_clip=None, warmup_factor=1, momentum=0).train.learning_rate == 1
    assert build("model", frozen_stages=-1, refine_level=4, score_threshold=0).model.refine_level == 4
    assert build("data", scale_jitter=[1, 1], short_side=7, long_side=7).data.scale_jitter == (1, 1)


def test_a_value_given_in_python_is_checked_too():
    with pytest.raises(ValueError, match=r"^batch_size: expected int in \[1, 65536\], got 0$"):
        DataConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"^learning_rate: "):
        dataclasses.replace(recipe("bccd").train, learning_rate=-1.0)


def test_json_of_another_form_is_named():
    with pytest.raises(TypeError, match="config: expected an object with fields, got 3"):
        Config.from_json("3")
    with pytest.raises(TypeError, match=r"config\.model: expected an object with fields, got \[\]"):
        Config.from_json('{"recipe": "x", "model": []}')


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"shapes.*bccd.*'nope'"):
        recipe("nope")
