"""`libra proposals`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from libra_det.commands.common import loaded, one_source, quoted
from libra_det.terminal import say


@dataclass
class WriteProposals:
    """Write the regions that a Faster R-CNN finds in a data set to one file, for Fast R-CNN."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN|FILE]")] = None
    """Run folder of `libra train`, a checkpoint, or any file that --weights takes."""
    weights: Path | None = None
    """The same as RUN|FILE: published .pth, file of `libra convert`, run, ..."""
    recipe: str | None = None
    """The model's recipe; none: the file's own, or the one that its tensors fit."""
    data: str | None = None
    """Folder of another data set; none: that of the run."""
    split: str | None = None
    """Split of it; none: the run's train_split."""
    annotations: str | None = None
    """COCO JSON, where it does not lie in the data folder under a usual name."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""
    allow_outside: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read images also where the annotations name files outside the data folder."""
    output: Path = Path("proposals.safetensors")
    """The file to write."""
    limit: int | None = None
    """Most regions of an image; none: the model's proposals_test."""
    batch_size: int | None = None
    """Images at once, all of one padded size; none: as in training."""
    workers: int | None = None
    """Processes that read images; none: as in training."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: expected at least 1, got {self.limit}")
        source = one_source(self.run, self.weights)
        detector = loaded(source, self.device, self.recipe, partial=False, flip=False, half=False)
        from libra_det.proposals import write_proposals

        data = detector.config.data
        if self.data is not None:  # what named files in the old data set does not hold for the new one
            named = ("train_annotations", "eval_annotations", "image_folder")
            data = replace(data, data=self.data, **dict.fromkeys(named))
        split = self.split or data.train_split
        changes = {"image_folder": self.image_folder, "batch_size": self.batch_size, "workers": self.workers}
        if self.annotations is not None:
            changes |= {"train_split": split, "train_annotations": self.annotations}
        changes["allow_outside"] = self.allow_outside  # not the file's word: it may be anybody's
        data = replace(data, **{name: value for name, value in changes.items() if value is not None})
        images, total = write_proposals(detector, data, split, self.output, source=str(source), limit=self.limit)
        flag = "--proposals" if split == data.train_split else "--eval-proposals"
        say(
            f"{total} regions of {images} images, split {split}, are in {self.output} "
            f"({self.output.stat().st_size / 1e6:.1f} MB)\n"
            f"use it: libra train --recipe libra_fast_rcnn_r50 {flag} {quoted(self.output)} ..."
        )
        return 0
