"""`libra convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from libra_det.commands.common import beside, described, one_source, print_notes, quoted
from libra_det.terminal import printable, say


@dataclass
class Convert:
    """Write weights of any kind to a safetensors file, with recipe and classes in it: loading it needs nothing else."""

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN|FILE]")] = None
    """Published .pth, run folder, checkpoint or safetensors file."""
    weights: Path | None = None
    """The same as RUN|FILE."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE.safetensors")] = None
    """The file to write; none: beside the original, under its name."""
    recipe: str | None = None
    """The model's recipe; none: the file's own, or the one that its tensors fit."""
    partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Convert what fits, also if tensors are missing, unexpected or of other shapes; the rest is random."""

    def __call__(self) -> int:
        source = one_source(self.file, self.weights)
        from libra_det.weights.convert import convert

        output = self.output or beside(source, ".safetensors")
        config, categories, notes = convert(source, output, recipe=self.recipe, partial=self.partial)
        print_notes(source, notes)
        say(
            f"{source} is {printable(config.recipe)}, {described(categories)}; written to {output} "
            f"({output.stat().st_size / 1e6:.0f} MB)\nuse it: libra predict {quoted(output)} IMAGE_OR_FOLDER"
        )
        return 0
