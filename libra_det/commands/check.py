"""`libra check`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from libra_det.config import DataConfig
from libra_det.layouts import find_splits
from libra_det.terminal import say


@dataclass
class Check:
    """Read a data set as training would, decode all its images, and say what is in it and what is wrong with it."""

    data: tyro.conf.Positional[str]
    """A folder with COCO JSON or Pascal VOC annotations, or "shapes" for the embedded data set."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: str = "val"
    """Split that is evaluated."""
    train_annotations: str | None = None
    """COCO JSON to train on, where it does not lie in the data folder under a usual name."""
    eval_annotations: str | None = None
    """COCO JSON to evaluate on, likewise."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""
    allow_outside: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read images also where the annotations name files outside the data folder."""

    def __call__(self) -> int:
        config = DataConfig(**vars(self))
        find_splits(config)  # says at once, before PyTorch is imported, if there is nothing to check
        from libra_det.data import check_data

        say(check_data(config))
        return 0
