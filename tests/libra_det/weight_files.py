"""What the tests of weights read: files as mmdetection writes them, of small models with random weights."""

import functools
from collections import OrderedDict
from pathlib import Path

import torch

from libra_det.config import Config, ModelConfig
from libra_det.models import build_model

CPU = torch.device("cpu")


@functools.cache
def _tiny_state(config: ModelConfig, num_classes: int) -> dict:
    torch.manual_seed(1)
    return build_model(config, num_classes).state_dict()


def tiny_state(config: Config, num_classes: int = 2) -> dict:
    """Random weights of the model, by name."""
    return {key: value.clone() for key, value in _tiny_state(config.model, num_classes).items()}


def published(folder: Path, state: dict, name: str = "W.pth", meta: dict | None = None, **options) -> Path:
    """The state as mmdetection's files hold it."""
    torch.save({"meta": meta or {}, "state_dict": OrderedDict(state)}, folder / name, **options)
    return folder / name


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
