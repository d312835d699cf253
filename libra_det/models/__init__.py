"""The detectors: `build_model(config, num_classes)` gives the `DetectionModel` that a configuration asks for."""

from libra_det.models.build import build_model
from libra_det.models.detection_model import DetectionModel
from libra_det.models.fast_rcnn import FastRCNN
from libra_det.models.faster_rcnn import FasterRCNN
from libra_det.models.retinanet import RetinaNet

__all__ = ["DetectionModel", "FastRCNN", "FasterRCNN", "RetinaNet", "build_model"]
