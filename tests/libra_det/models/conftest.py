"""A small detector, batches of coloured rectangles for it, and what is needed to compare with the goldens."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from libra_det.config import ModelConfig
from libra_det.structures import Batch, Targets

SMALL = ModelConfig(
    backbone="resnet18",
    norm="batch_norm",
    frozen_stages=-1,
    fpn_channels=16,
    fc_channels=32,
    anchor_scale=4.0,
    rpn_samples=64,
    proposals_per_level=100,
    proposals_per_level_test=50,
    proposals_train=60,
    proposals_test=50,
    roi_samples=32,
    roi_sampling_ratio=1,
    detections_per_image=20,
)
COLOURS = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_config() -> Callable[..., ModelConfig]:
    """A config that runs in milliseconds, with fields replaced: small_config(pyramid="none")."""
    return lambda **changes: dataclasses.replace(SMALL, **changes)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Images of one size with `objects` coloured rectangles each, of three classes; the last target slot is padding."""

    def make(batch: int = 2, height: int = 96, width: int = 128, objects: int = 3, slots: int | None = None) -> Batch:
        generator = torch.Generator().manual_seed(1)
        slots = objects + 1 if slots is None else slots
        images = torch.randint(90, 110, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        boxes, labels = torch.zeros(batch, slots, 4), torch.zeros(batch, slots, dtype=torch.int64)
        for image in range(batch):
            for slot in range(objects):
                w, h = (torch.rand(2, generator=generator) * 24 + 16).int().tolist()
                x = int(torch.randint(0, width - w, (1,), generator=generator))
                y = int(torch.randint(0, height - h, (1,), generator=generator))
                label = slot % 3
                images[image, :, y : y + h, x : x + w] = COLOURS[label][:, None, None]
                boxes[image, slot] = torch.tensor([x, y, x + w, y + h])
                labels[image, slot] = label
        valid = (torch.arange(slots) < objects).expand(batch, slots).clone()
        sizes = torch.tensor([[height, width]], dtype=torch.float32).repeat(batch, 1)
        targets = Targets(boxes, labels, valid, torch.zeros_like(valid))
        return Batch(images, sizes, sizes.clone(), targets, list(range(batch)), [f"{i}.png" for i in range(batch)])

    return make


@pytest.fixture(scope="session")
def golden(libra_goldens: Path) -> Callable[[str], Any]:
    """Content of a golden file by its name without ending; read once, so not to be changed in place."""
    return functools.cache(lambda name: torch.load(libra_goldens / f"{name}.pt", weights_only=True))


@pytest.fixture(scope="session")
def detdata(libra_goldens: Path) -> ModuleType:
    """The module that rebuilds the goldens' weights and random tensors."""
    spec = importlib.util.spec_from_file_location("detdata", libra_goldens / "detdata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
