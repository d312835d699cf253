"""From a configuration to its detector."""

from __future__ import annotations

from libra_det.config import ModelConfig
from libra_det.models.detection_model import DetectionModel
from libra_det.models.fast_rcnn import FastRCNN
from libra_det.models.faster_rcnn import FasterRCNN
from libra_det.models.retinanet import RetinaNet


def build_model(config: ModelConfig, num_classes: int) -> DetectionModel:
    """The detector that `config` describes, for `num_classes` classes (the background not counted), in training mode.

    Raises:
        ValueError: for a backbone, norm, level or weights that do not exist or do not fit, naming the choices.
    """
    if config.detector == "retinanet":
        return RetinaNet(config, num_classes)
    if config.detector == "fast_rcnn":
        return FastRCNN(config, num_classes)
    return FasterRCNN(config, num_classes)
