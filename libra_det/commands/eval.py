"""`libra eval`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from libra_det.commands.common import loaded, one_source
from libra_det.file_names import written_name
from libra_det.terminal import say

if TYPE_CHECKING:
    import torch

    from libra_det.distributed import World


@dataclass
class Eval:
    """Evaluate a run or a file of weights: COCO's 12 numbers, AP per class, Pascal VOC's AP50, images/s, memory."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN|FILE]")] = None
    """Run folder of `libra train`, a checkpoint, or any file that --weights takes."""
    weights: Path | None = None
    """The same as RUN|FILE: published .pth, file of `libra convert`, run, ..."""
    recipe: str | None = None
    """The model's recipe; none: the file's own, or the one that its tensors fit."""
    partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Load what fits, also if tensors are missing, unexpected or of other shapes; the rest stays random."""
    data: str | None = None
    """Folder of another data set; none: that of the run."""
    split: str | None = None
    """Split of it; none: the run's eval_split."""
    annotations: str | None = None
    """COCO JSON, where it does not lie in the data folder under a usual name."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""
    allow_outside: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read images also where the annotations name files outside the data folder."""
    proposals: str | None = None
    """File of `libra proposals` with the regions of the split, for Fast R-CNN."""
    batch_size: int | None = None
    """Images at once, all of one padded size; none: as in training."""
    workers: int | None = None
    """Processes that read images; none: as in training."""
    flip: tyro.conf.FlagCreatePairsOff[bool] = False
    """Detect in the mirrored images too, and merge both by non-maximum suppression."""
    half: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compute in half precision: float16 on CUDA, bfloat16 on the CPU."""
    output: Path | None = None
    """Folder for metrics.json, results.json and pictures; none: evaluation/DATA-SPLIT in the run folder."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        source = one_source(self.run, self.weights)
        from libra_det.distributed import joined_world

        with joined_world(self.device) as (world, device):
            return self._evaluate(source, world, device)

    def _evaluate(self, source: Path, world: World, device: torch.device) -> int:
        detector = loaded(source, str(device), self.recipe, self.partial, self.flip, self.half)
        from libra_det.evaluate import draw_pictures, evaluate, evaluation_data, write_evaluation
        from libra_det.report import print_metrics

        names = ("data", "split", "annotations", "image_folder", "proposals", "batch_size", "workers")
        changes = {name: getattr(self, name) for name in names}
        dataset = evaluation_data(detector, **changes, allow_outside=self.allow_outside)
        evaluation = evaluate(detector.model, dataset, device, detector.categories, detector.inference, world)
        if not world.is_main:
            return 0
        split = dataset.annotations.name
        print_metrics(evaluation.metrics, f"{source}, {split} split of {dataset.config.data}")
        output = self.output or _run_folder(source) / "evaluation" / self._name(dataset.config.data, split)
        write_evaluation(evaluation, output, data=dataset.config.data, split=split)
        draw_pictures(dataset.annotations, evaluation.results, output / "pictures")
        kind = "GPU memory" if device.type == "cuda" else "memory"
        say(
            f"{len(dataset)} images at {evaluation.images_per_second:.2f} images/s (batches of "
            f"{dataset.config.batch_size}), peak {kind} {evaluation.peak_memory / 2**20:.0f} MiB\n"
            f"evaluated in {evaluation.seconds:.0f} s; numbers, results and pictures are in {output}"
        )
        return 0

    def _name(self, data: str, split: str) -> str:
        """Tells evaluations on different data apart."""
        parts = [Path(os.path.expanduser(data)).resolve().name, split]
        if self.annotations is not None:
            parts.append(Path(self.annotations).stem)
        return "-".join(map(written_name, parts))  # a split may be called ../../x in the configuration of a file


def _run_folder(source: Path) -> Path:
    """The run folder; for a file that lies in none, the current folder."""
    if source.is_dir():
        return source
    folder = source.absolute().parent
    return folder.parent if folder.name == "checkpoints" else Path()
