"""A detector as one file that computes without this package: `torch.export` (pt2) or ONNX."""

from libra_det.export.file import FORMATS, export_detector

__all__ = ["FORMATS", "export_detector"]
