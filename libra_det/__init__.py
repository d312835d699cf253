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


def load(run: Path | str, device: str = "auto") -> Detector:
    """A trained detector.

    Args:
        run: a run folder of `libra train` (its newest checkpoint is taken), or a checkpoint file.
        device: auto (the first GPU if there is one), cpu, cuda or cuda:N.

    Returns:
        A detector; `detector.predict` takes paths, PIL images and uint8 tensors [3, H, W].

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: the checkpoint is damaged, or there is no such device.
    """
    from libra_det.devices import choose_device  # imports torch, which `import libra_det` alone does not
    from libra_det.predict import load_detector

    return load_detector(run, choose_device(device))
