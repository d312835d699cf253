"""The detector: `build_model(config, num_classes)` gives a `FasterRCNN`."""

from libra_det.models.faster_rcnn import FasterRCNN, build_model

__all__ = ["FasterRCNN", "build_model"]
