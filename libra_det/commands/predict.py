"""`libra predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from libra_det.commands.common import loaded
from libra_det.terminal import say

_PARALLEL_FROM = 8  # images; fewer are read in less time than worker processes take to start


@dataclass
class Predict:
    """Find objects in images: draw them, and write them to OUTPUT/predictions.json; or write them to a JSON file alone.

    libra predict RUN photos/
    libra predict --weights FILE.pth --json found.json photo.jpg
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN|FILE] IMAGE|DIR ...")]
    """Run folder or file of weights, unless --weights names it; then images, and folders that are searched for them."""
    weights: Path | None = None
    """Published .pth, file of `libra convert`, run folder, checkpoint: recognised by its content."""
    recipe: str | None = None
    """The model's recipe; none: the file's own, or the one that its tensors fit."""
    partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Load what fits, also if tensors are missing, unexpected or of other shapes; the rest stays random."""
    json: Path | None = None
    """File for a list of {bbox [x, y, width, height], category_id, score, file_name}; then nothing is drawn, unless
    --output is given too."""
    output: Path | None = None
    """Folder for the pictures and predictions.json; none: predictions, or no pictures with --json."""
    score_threshold: float | None = None
    """Weaker detections are left out; none: 0.3 in pictures, the model's own limit with --json."""
    batch_size: int | None = None
    """Images at once, all of one padded size; none: 1 on the CPU, 8 on a GPU."""
    workers: int | None = None
    """Processes that read images; none: 2, or 0 for a few images."""
    flip: tyro.conf.FlagCreatePairsOff[bool] = False
    """Detect in the mirrored images too, and merge both by non-maximum suppression."""
    half: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compute in half precision: float16 on CUDA, bfloat16 on the CPU."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        source, images = (self.weights, self.inputs) if self.weights is not None else _split(self.inputs)
        if not images:
            taken = "" if self.weights else f"; {source} was taken as the run: libra predict RUN IMAGE|DIR"
            raise ValueError(f"IMAGE|DIR: expected at least one image file or folder, got none{taken}")
        for name, smallest in (("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least {smallest}, got {value}")
        detector = loaded(source, self.device, self.recipe, self.partial, self.flip, self.half)
        from libra_det.photos import find_images
        from libra_det.predict import predict_files

        many = len(find_images(images)) >= _PARALLEL_FROM
        output = self.output if self.output is not None or self.json is not None else Path("predictions")
        found = predict_files(
            detector,
            images,
            output,
            self.score_threshold,
            json_file=self.json,
            batch_size=self.batch_size or (8 if detector.device.type == "cuda" else 1),
            workers=self.workers if self.workers is not None else (2 if many else 0),
        )
        places = [] if output is None else [f"pictures and predictions.json are in {output}"]
        places += [] if self.json is None else [f"{len(found.entries)} detections are in {self.json}"]
        say(f"{found.images} images predicted, {len(found.failures)} could not be read; {'; '.join(places)}")
        return 0 if found.images else 1


def _split(inputs: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    if not inputs:
        raise ValueError("RUN: expected a run folder or a file of weights first, or --weights FILE; got nothing")
    return inputs[0], inputs[1:]
