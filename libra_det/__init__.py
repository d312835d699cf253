"""Libra R-CNN: detectors for imbalanced data, trained and used.

detector = libra_det.load("runs/shapes")
found = detector.predict("photo.jpg")
print(found.boxes, found.scores, found.names)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from libra_det.predict import Detector

__all__ = ["Config", "DataConfig", "ModelConfig", "TrainConfig", "load"]


def load(source: Path | str, device: str = "auto", *, recipe: str | None = None, partial: bool = False) -> Detector:
    """A trained detector, from whatever holds its weights.

    Args:
        source: a run folder of `libra train` (its newest checkpoint is taken), a checkpoint file, a safetensors file of
            `libra convert`, or a published .pth file. It is recognised by its content.
        device: auto (the first GPU if there is one), cpu, cuda or cuda:N.
        recipe: name of the model's recipe; None: the file's own, or the one that its tensors fit.
        partial: load what fits, and leave the rest of the model at random.

    Returns:
        A detector; `detector.predict` takes paths, PIL images and uint8 tensors [3, H, W].

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: the file is damaged or needs code to be run, its tensors do not fit, or there is no such device.
    """
    from libra_det.devices import choose_device  # imports torch, which `import libra_det` alone does not
    from libra_det.predict import load_detector

    return load_detector(source, choose_device(device), recipe=recipe, partial=partial)
