"""A data set and a configuration so small that a training run takes a second."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig

COLORS = {3: (220, 30, 30), 7: (30, 200, 40)}  # by category id
NAMES = {3: "red box", 7: "green box"}


def draw_split(folder: Path, split: str, images: int, seed: int) -> None:
    """Pictures of 64x48 with one or two coloured rectangles, and their COCO JSON with sparse category ids."""
    random = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": [{"id": id, "name": NAMES[id]} for id in NAMES]}
    for number in range(images):
        picture = Image.new("RGB", (64, 48), (120, 120, 120))
        name = f"{split}_{number}.png"
        for category_id in list(COLORS)[: 1 + number % 2]:
            x, y = int(random.integers(0, 30)), int(random.integers(0, 20))
            width, height = int(random.integers(12, 30)), int(random.integers(12, 24))
            ImageDraw.Draw(picture).rectangle([x, y, x + width - 1, y + height - 1], fill=COLORS[category_id])
            annotation = {"id": len(content["annotations"]) + 1, "image_id": number + 1, "category_id": category_id}
            content["annotations"].append({**annotation, "bbox": [x, y, width, height], "iscrowd": 0})
        picture.save(folder / name)
        content["images"].append({"id": number + 1, "file_name": name, "width": 64, "height": 48})
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A COCO folder with 8 training and 3 evaluation images."""
    folder = tmp_path / "data"
    folder.mkdir()
    draw_split(folder, "train", 8, seed=1)
    draw_split(folder, "val", 3, seed=2)
    return folder


@pytest.fixture
def tiny_config(tiny_data: Path) -> Callable[..., Config]:
    """tiny_config(epochs=3, ...) -> a complete configuration: 4 steps an epoch, fields of TrainConfig replaced."""

    def make(**changes) -> Config:
        model = ModelConfig(
            backbone="resnet18",
            norm="batch_norm",
            frozen_stages=-1,
            fpn_channels=8,
            fc_channels=16,
            rpn_samples=16,
            roi_samples=16,
            proposals_per_level=20,
            proposals_train=20,
            proposals_test=20,
            score_threshold=0.0,
            detections_per_image=5,
        )
        data = DataConfig(data=str(tiny_data), short_side=48, long_side=64, batch_size=2, workers=0)
        train = TrainConfig(epochs=2, learning_rate=0.005, schedule="one_cycle", log_every=1, ema_decay=0.9, threads=1)
        return Config("tiny", model, data, replace(train, **changes))

    return make


@pytest.fixture
def tiny_recipes(tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> dict[str, Config]:
    """The only recipes, by name: tiny ones of each detector, and a plain one. `libra train` takes the first."""
    from libra_det import recipes

    libra = tiny_config()
    changes = {
        "tiny_faster": {},
        "tiny_fast": {"detector": "fast_rcnn"},
        "tiny_retina": {"detector": "retinanet", "anchor_scales_per_octave": 3, "refine_level": 1},
        "tiny_plain": {"pyramid": "none"},
    }
    configs = {
        name: replace(libra, recipe=name, model=replace(libra.model, **change)) for name, change in changes.items()
    }

    def function_of(name: str) -> Callable[[], Config]:
        def make() -> Config:
            return configs[name]

        make.__name__ = name
        return make

    monkeypatch.setattr(recipes, "_RECIPES", tuple(function_of(name) for name in configs))
    monkeypatch.setattr("libra_det.cli.DEFAULT_RECIPE", "tiny_faster")
    return configs
