"""Write a detector to a file of `torch.export` (pt2) or ONNX, and what has to be known to use it beside it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import BinaryIO

import torch

from libra_det.export.graph import (
    INPUTS,
    OUTPUTS,
    ExportableDetector,
    dynamic_shapes,
    example_inputs,
    side_divisor,
    smallest_side,
)
from libra_det.files import make_folder, whole_file, whole_stream
from libra_det.predict import Detector
from libra_det.weights.load import metadata

FORMATS = ("pt2", "onnx")
METADATA_FILE = "metadata.json"
"""Name of the extra file in a pt2 archive that holds the metadata, a JSON object of strings."""
_OPSET = 18
_INSIDE = (
    "everything from a padded batch of uint8 RGB images to detections in pixels of the original images: normalisation, "
    "backbone, pyramid, heads, box decoding, {nms}, the best {slots} of each image. Not inside: decoding, resizing and "
    "padding of images."
)
_NMS = {
    "pt2": "non-maximum suppression (torchvision::nms; import torchvision before loading)",
    "onnx": "non-maximum suppression (ONNX NonMaxSuppression)",
}


def export_detector(detector: Detector, output: Path, format: str = "pt2", *, source: str = "") -> dict[str, str]:
    """Write a Faster R-CNN or RetinaNet to one file that computes without this package.

    The graph is that of `ExportableDetector`, for batches of any length and images of any size from `smallest_side` on.
    It computes in float32; a pt2 file on the device that the detector is on, an ONNX file where its runtime does.

    Args:
        output: the file, which ends in .pt2 or .onnx; a file of that name is replaced in one step.
        format: "pt2" or "onnx".
        source: name of the file or run, for the metadata.

    Returns:
        The metadata in the file: for pt2 its extra file "metadata.json", for ONNX its metadata_props. Besides what
        `libra convert` writes (recipe, config, categories): class_names, category_ids, contents, inputs, outputs.

    Raises:
        ValueError: for Fast R-CNN, another ending, or ONNX without its packages.
        NotWritten: there is no room for the file, or the system refuses otherwise.
    """
    if format not in FORMATS:
        raise ValueError(f"--format: expected one of {', '.join(FORMATS)}; got {format!r}")
    if output.suffix != f".{format}":
        raise ValueError(f"--output: expected a name ending in .{format} with --format {format}, got {output}")
    if detector.config.model.detector == "fast_rcnn":
        raise ValueError(
            f"{source or detector.config.recipe}: a Fast R-CNN cannot be exported: it has no way from an image to "
            "detections, only from an image and regions that another detector found in it; export a Faster R-CNN or a "
            "RetinaNet"
        )
    if format == "onnx":
        _check_onnx_is_there()
    facts = _metadata(detector, format, source)
    module = ExportableDetector(detector.model).eval()
    make_folder(output.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own deprecated functions
        if format == "pt2":
            with whole_stream(output) as stream:  # a path would have to end in .pt2
                _save_pt2(module, detector, stream, facts)
        else:
            with whole_file(output) as unfinished:
                _save_onnx(module, detector, unfinished, facts)
    return facts


def _save_pt2(module: ExportableDetector, detector: Detector, file: BinaryIO, facts: dict[str, str]) -> None:
    inputs = example_inputs(detector.config, detector.device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:  # a file whose weights asked for gradients would return detections that hold a graph
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(detector.config), strict=False)
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(facts)})
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _save_onnx(module: ExportableDetector, detector: Detector, file: Path, facts: dict[str, str]) -> None:
    from libra_det.export.onnx_nms import nms_padded

    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example_inputs(detector.config, detector.device),
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=dynamic_shapes(detector.config),
            opset_version=_OPSET,
            custom_translation_table={torch.ops.libra_ops.nms_padded.default: nms_padded},
            verbose=False,
        )
    program.model.metadata_props.update(facts)
    program.save(file)


def _metadata(detector: Detector, format: str, source: str) -> dict[str, str]:
    config = detector.config
    slots = config.model.detections_per_image
    sides = f"multiples of {side_divisor(config)}, at least {smallest_side(config)}"
    return metadata(config, detector.categories, source) | {
        "format": format,
        "class_names": json.dumps([name for _, name in detector.categories]),
        "category_ids": json.dumps([id for id, _ in detector.categories]),
        "contents": _INSIDE.format(nms=_NMS[format], slots=slots),
        "inputs": f"images: uint8 [B, 3, H, W] RGB, zeros beyond each image, H and W {sides}; sizes, original_sizes: "
        "float32 [B, 2], height and width of each image, resized and as stored",
        "outputs": f"boxes: float32 [B, {slots}, 4] xyxy in pixels of the original images; scores: float32, labels: "
        f"int64 (position in class_names), valid: bool (False: an empty slot), [B, {slots}] each; best first",
        "torch": torch.__version__,
    }


def _check_onnx_is_there() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format onnx: needs {' and '.join(missing)}, which is not installed: pip install onnx onnxscript "
            "onnxruntime (or this package with its extra `export`)"
        )
