"""Configurations survive the run folder, and mistakes in them are named."""

import json

import pytest

from libra_det.config import Config, ModelConfig
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


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"shapes.*bccd.*'nope'"):
        recipe("nope")
