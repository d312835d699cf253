"""`libra train`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from libra_det.commands.common import quoted
from libra_det.config import Config
from libra_det.run_folder import (
    is_free,
    new_run_folder,
    refuse_run,
    remove_if_empty,
    remove_leftovers,
    resume_command,
)
from libra_det.run_lock import RunLock, refuse_if_held
from libra_det.terminal import say

if TYPE_CHECKING:
    import torch

    from libra_det.distributed import World
    from libra_det.train import Trainer


class _Held(ExitStack):
    """What a run holds until it ends; in the first process the lock of its folder."""

    lock: RunLock | None = None


@dataclass
class Train:
    """Train a detector, evaluate it and fill a run folder.

    The recipe is a complete configuration; every field of it is a flag.
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    output: Path | None = None
    """Folder of the run; none: runs/RECIPE, runs/RECIPE-2, ..."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --output from its newest checkpoint, with its configuration and the flags given now; with
    --recipe or --weights a run begins where there is none yet."""
    weights: Path | None = None
    """Run or file to begin from: a published .pth, ...; without --recipe its own. Other classes begin at random."""
    partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Load what fits of --weights, also if tensors are missing, unexpected or of other shapes."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        if self.output is not None and not self.resume:
            refuse_if_held(self.output)
            refuse_run(self.output)
        from libra_det.distributed import joined_world

        with joined_world(self.device) as (world, device):
            return self._train(world, device)

    def _train(self, world: World, device: torch.device) -> int:
        with _Held() as held:
            if not self.resume or world.from_main(lambda: is_free(self.output)):
                trainer = self._trainer(world, device)
                # Only now, when the data was read: a mistake in the command leaves no folder.
                trainer.run = world.from_main(lambda: self._new_folder(held))
            else:
                world.from_main(lambda: _hold(self.output, held))
                trainer = self._continued(world, device)
            trainer.lock = held.lock
            return self._run(trainer)

    def _run(self, trainer: Trainer) -> int:
        """Train, and say what there is and what can be done with it."""
        from libra_det.report import print_metrics

        run, world, device = trainer.run, trainer.world, trainer.device
        processes = f"{device}, {world.size} processes" if world.size > 1 else f"{device}"
        say(f"run folder: {run} ({processes})", flush=True)
        try:
            evaluation = trainer.train()
        except KeyboardInterrupt:  # in the evaluation, or a second Ctrl-C in training
            say(f"\ncontinue with: {resume_command(run)}", file=sys.stderr)
            raise
        print_metrics(evaluation.metrics, f"{self.config.recipe}, {trainer.eval_dataset.annotations.name} split")
        say(
            f"trained in {trainer.seconds:.0f} s, evaluated in {evaluation.seconds:.0f} s\n"
            f"run folder: {run} (detections are drawn in {run / 'pictures'})\n"
            f"use it:     libra predict {quoted(run)} IMAGE_OR_FOLDER --output predictions\n"
            f"measure it: libra eval {quoted(run)} --split {quoted(self.config.data.eval_split)}"
        )
        return 0

    def _new_folder(self, held: _Held) -> Path:
        """The folder of a run that begins, which `held` holds; another process may have been faster."""
        new = self.output is None or not self.output.exists()
        run = new_run_folder(self.output, self.config.recipe)
        if new:
            held.callback(remove_if_empty, run)  # where training does not even begin
        _hold(run, held)
        refuse_run(run)
        return run

    def _continued(self, world: World, device: torch.device) -> Trainer:
        """A trainer that goes on with the run; one that was stopped before its first checkpoint begins again."""
        from libra_det.checkpoint import checkpoint_files
        from libra_det.train import resume

        if not world.from_main(lambda: bool(checkpoint_files(self.output))):
            return self._trainer(world, device)
        if self.weights is not None:
            say(f"--weights {self.weights}: not read; the run continues from its own checkpoint")
        trainer = resume(self.output, device, self.config, world)
        epochs, done = self.config.train.epochs, f"{trainer.epoch} epochs"
        if trainer.epoch >= epochs:
            say(f"nothing is left to train: {done} are done, of {epochs}; a larger --epochs goes on")
        else:
            say(f"continues after {done}{f' and {trainer.step} steps' if trainer.step else ''}, of {epochs} epochs")
        return trainer

    def _trainer(self, world: World, device: torch.device) -> Trainer:
        """A trainer that begins: at random, from a backbone, or from a detector's weights."""
        from libra_det.train import Trainer
        from libra_det.weights.load import check_fit, read_weights

        run = self.output or Path()
        if self.weights is None:
            return Trainer(self.config, run, device, world=world)
        weights = read_weights(self.weights)
        if weights.is_backbone:
            model = replace(self.config.model, backbone_weights=str(self.weights))
            return Trainer(replace(self.config, model=model), run, device, world=world)
        check_fit(weights, self.config, partial=self.partial)  # before the data is read
        return Trainer(self.config, run, device, weights=weights, partial=self.partial, world=world)


def _hold(run: Path, held: _Held) -> None:
    """Make a run this process's own until `held` ends, and clean up after a process that was killed."""
    held.lock = held.enter_context(RunLock(run))
    remove_leftovers(run)
