"""Data: annotations of COCO JSON and Pascal VOC, images, and batches of one shape."""

from libra_det.data.annotations import Annotations, Category, ImageRecord, Problems, find_splits, load_annotations
from libra_det.data.check import check_data
from libra_det.data.dataset import DetectionDataset, make_loader
from libra_det.data.images import load_image, resize_and_pad

__all__ = [
    "Annotations",
    "Category",
    "DetectionDataset",
    "ImageRecord",
    "Problems",
    "check_data",
    "find_splits",
    "load_annotations",
    "load_image",
    "make_loader",
    "resize_and_pad",
]
