"""`libra export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from libra_det.commands.common import beside, loaded, one_source
from libra_det.terminal import say


@dataclass
class Export:
    """Write a detector to one file that computes without this package, by torch.export (pt2) or ONNX.

    Inside either file: everything from a padded batch of uint8 RGB images to at most `detections_per_image` detections,
    with non-maximum suppression (in ONNX its NonMaxSuppression), for any number of images of any size from two cells of
    the coarsest map on. Outside: reading, resizing and padding images. Class names, category ids and the configuration
    are in the file's metadata, and so is what goes in and comes out. Faster R-CNN and RetinaNet.

    libra export runs/mine --format onnx --output detector.onnx
    """

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN|FILE]")] = None
    """Run folder of `libra train`, a checkpoint, or any file that --weights takes."""
    weights: Path | None = None
    """The same as RUN|FILE: published .pth, file of `libra convert`, run, ..."""
    format: Literal["pt2", "onnx"] = "pt2"
    """pt2 is for PyTorch (with torchvision), onnx for ONNX Runtime and others (pip install onnx onnxscript)."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file to write; none: beside the original, under its name."""
    recipe: str | None = None
    """The model's recipe; none: the file's own, or the one that its tensors fit."""
    partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Load what fits, also if tensors are missing, unexpected or of other shapes; the rest stays random."""
    device: str = "cpu"
    """Where a pt2 file will compute: cpu, cuda, cuda:N, or auto."""

    def __call__(self) -> int:
        source = one_source(self.run, self.weights)
        output = self.output or beside(source, f".{self.format}")
        detector = loaded(source, self.device, self.recipe, self.partial, flip=False, half=False)
        from libra_det.export import export_detector

        facts = export_detector(detector, output, self.format, source=source.name)
        say(f"written to {output} ({output.stat().st_size / 1e6:.0f} MB)")
        for name in ("contents", "inputs", "outputs"):
            say(f"{name}: {facts[name]}")
        return 0
