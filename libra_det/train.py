"""Train a detector: one loop, from a configuration to a run folder.

Everything random in a step follows from (seed, step) and the number of the process, and the learning rate from the
step, so that a resumed run computes the same as one that was never interrupted. Of several processes the first one
writes and prints; all of them come to the same decisions, from numbers that they share.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libra_det.average import WeightAverage
from libra_det.batches import SharedBatches
from libra_det.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    checkpoint_files,
    load_checkpoint,
    put_damaged_aside,
    save_checkpoint,
)
from libra_det.config import Config
from libra_det.data import DetectionDataset, load_annotations, make_loader
from libra_det.data.check import describe
from libra_det.devices import amp_warning
from libra_det.distributed import ALONE, World, warn
from libra_det.evaluate import Evaluation, category_ids, draw_pictures, evaluate, write_evaluation
from libra_det.files import check_room, free_bytes, make_folder, size_text, write_json, write_text
from libra_det.interrupt import Interrupted, Interruptible
from libra_det.models import build_model
from libra_det.models.backbone import check_not_random
from libra_det.progress import Progress
from libra_det.proposals import check_proposals_are_named
from libra_det.rescue import WatchedFolder, save_or_rescue
from libra_det.run_folder import environment, resume_command
from libra_det.run_lock import RunLock
from libra_det.schedule import learning_rate, schedule_warning
from libra_det.step import CURES, NonFiniteLoss, Step, StepNumbers, check_finite
from libra_det.structures import Batch
from libra_det.terminal import few, say
from libra_det.train_step import TrainStep, make_optimizer, restore_optimizer
from libra_det.weights.fit import compare, load_fitting
from libra_det.weights.load import Weights, fill


class Trainer:
    """One run: the model, what trains it, and how far it has come.

    Args:
        config: the complete configuration.
        run: the run folder, which exists.
        device: where to compute.
        checkpoint: to continue from, or None to begin.
        weights: of a detector, to begin from; with another number of classes its class layers begin at random.
        partial: take of `weights` what fits.
        world: the processes that train together, each with a trainer of its own.

    Attributes:
        lock: by which the first process has the run folder; None: nobody else can take it.
    """

    lock: RunLock | None = None

    def __init__(
        self,
        config: Config,
        run: Path,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
        *,
        weights: Weights | None = None,
        partial: bool = False,
        world: World = ALONE,
    ) -> None:
        check_shares(config, world)
        if weights is not None:  # they bring a backbone
            config = replace(config, model=replace(config.model, backbone_weights=None))
        self.config, self.run, self.device, self.world = config, run, device, world
        if checkpoint is None and weights is None:
            check_not_random(config.model.norm, config.model.frozen_stages, config.model.backbone_weights)
        check_proposals_are_named(config)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        train_annotations = load_annotations(config.data, config.data.train_split)
        eval_annotations = load_annotations(config.data, config.data.eval_split, train_annotations.categories)
        self.categories = [(category.id, category.name) for category in train_annotations.categories]
        category_ids(self.categories, eval_annotations)  # an error now is better than one after training
        self.dataset = DetectionDataset(train_annotations, config.data, training=True, seed=config.train.seed)
        self.eval_dataset = DetectionDataset(eval_annotations, config.data, training=False, seed=config.train.seed)
        self.steps_per_epoch = self.dataset.steps_per_epoch
        if world.size > 1 and len(self.dataset) < config.data.batch_size:
            raise ValueError(
                f"--batch-size {config.data.batch_size}: expected at most the {len(self.dataset)} images of "
                f"{train_annotations.name}, which {world.size} processes could not share equally otherwise"
            )
        _print_data(self.dataset, self.eval_dataset)
        warnings = [schedule_warning(config.train), amp_warning(device) if config.train.amp else None]
        for warning in filter(None, warnings):
            warn(warning)

        torch.manual_seed(config.train.seed)
        start = config.model if checkpoint is None else replace(config.model, backbone_weights=None)
        memory_format = torch.channels_last if config.train.channels_last else torch.preserve_format
        model = build_model(start, len(self.categories))
        if weights is not None:
            for note in weights.notes + fill(model, weights, categories=self.categories, partial=partial):
                say(f"{weights.path}: {note}")
        self.model = model.to(device, memory_format=memory_format)
        self.optimizer = make_optimizer(self.model, config.train, device)
        self.average = WeightAverage(self.model, config.train.ema_decay) if config.train.ema_decay > 0 else None
        self.take_step = TrainStep(self.model, self.optimizer, config.train, device, self.average, world)
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # complete epochs, steps after those, seconds of training
        self._began_from_weights = weights is not None
        self._watched: WatchedFolder | None = None  # the run folder, while there is training
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def train(self) -> Evaluation:
        """Train to the end, evaluate, and fill the run folder.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
            NonFiniteLoss: RUN/non_finite.json names the images.
            OSError, ValueError: an image could not be read; a checkpoint was written.
            NotWritten: there is no room for two checkpoints, before training; or later no room for a file, and the
                message says which checkpoint there is. Also when somebody has deleted the run folder: then all that
                was learned is beside it; or when another process has taken the run over.
        """
        self.world.from_main(self._prepare)
        watched = closing(WatchedFolder(self.run, self.lock)) if self.world.is_main else nullcontext()
        with watched as self._watched:
            return self._train()

    def _train(self) -> Evaluation:
        first_step = self.epoch * self.steps_per_epoch + self.step
        files = self.run if self.world.is_main else None
        with Progress(files, self.config.train.epochs, self.steps_per_epoch, first_step) as self.progress:
            while self.epoch < self.config.train.epochs:
                # Before an epoch, not after one: a run that was stopped in between makes up for it.
                if self.world.from_main(self._evaluation_is_due):  # it has the log
                    self._evaluate()
                self._train_epoch()
            evaluation = self._evaluate()
            pictures = self.run / "pictures"
            self.world.from_main(lambda: draw_pictures(self.eval_dataset.annotations, evaluation.results, pictures))
        return evaluation

    def _prepare(self) -> None:
        """Before anything is computed: whether there is room, and what describes the run.

        Weights that it begins from, which --resume is not given again, are saved before config.json makes it a run.
        """
        tensors = [*self.model.state_dict().values()]
        if self.average is not None:
            tensors += self.average.module.state_dict().values()
        if self.config.train.momentum:  # a number for each that is trained
            tensors += self.take_step.parameters
        count = max(1, 2 - len(checkpoint_files(self.run)))  # with those of a run that is resumed there are two
        what = f"{'two checkpoints' if count == 2 else 'another checkpoint'} of this model"
        size = checkpoint_bytes(tensors)
        check_room(self.run, count * size, what)
        free = free_bytes(self.run)
        if free is not None and free < (count + 1) * size and self.config.train.epochs - self.epoch > count:
            warn(
                f"{size_text(free)} are free on the disk of {self.run}: two checkpoints stay while a third is written, "
                f"which needs {size_text((count + 1) * size)}; make room, or training will stop there"
            )
        if self._began_from_weights:
            self._save()
        write_text(self.run / "config.json", self.config.to_json() + "\n", durable=True)
        write_json(self.run / "environment.json", environment(str(self.device), self.world.size))

    def _train_epoch(self) -> None:
        """The rest of an epoch, and its checkpoint. An interrupt, or an image that cannot be read, ends it early."""
        start = time.perf_counter()
        self.model.train()
        world = self.world
        with Interruptible(quiet=not world.is_main) as interrupt:
            self.progress.start_epoch(self.epoch, self.step)
            before: Step | None = None
            loader = make_loader(
                self.dataset,
                epoch=self.epoch,
                start_step=self.step,
                device=self.device,
                part=world.rank,
                parts=world.size,
            )
            batches = SharedBatches(loader, interrupt, world)
            for batch in batches:
                current = self._train_step(batch.to(self.device), stop=batches.asks_to_stop)
                self.step += 1
                # A GPU computes this step while the numbers of the one before are read.
                if before is not None:
                    batches.stopped = self._read(before, batches).stop
                before = current
            if before is not None:
                self._read(before, batches)
            self.progress.end_epoch()
            error = next((error for error in world.gather(batches.error) if error is not None), None)
            if error is not None and self.epoch == self.step == 0:  # nothing is lost
                raise error
            if self.step == self.steps_per_epoch:
                self.epoch, self.step = self.epoch + 1, 0
            self.seconds += time.perf_counter() - start
            file = world.from_main(self._save)
        if error is not None:
            if world.is_main:
                say(
                    f"libra: {file} holds all that was learned; when what follows is mended, continue with: "
                    f"{resume_command(self.run)}",
                    file=sys.stderr,
                )
            raise error
        signals = [number for number in world.gather(interrupt.signal_number) if number is not None]
        if signals:
            raise Interrupted(file, signals[0])

    def _train_step(self, batch: Batch, stop: bool = False) -> Step:
        train = self.config.train
        step = self.epoch * self.steps_per_epoch + self.step  # from 0
        torch.manual_seed(_mixed(train.seed, step, self.world.rank))
        rate = learning_rate(train, step, self.steps_per_epoch)
        measure = train.log_gradient_share_every > 0 and (step + 1) % train.log_gradient_share_every == 0
        names, values = self.take_step(batch, learning_rate=rate, measure=measure)
        return Step.of(step + 1, batch.file_names, rate, names, values, stop=stop, world=self.world)

    def _read(self, done: Step, batches: SharedBatches) -> StepNumbers:
        """Check, show and log a step. Where it cannot be logged, `batches` ends with as many in all processes."""
        numbers = done.read()
        check_finite(done, numbers, self.run, self.world)
        try:
            self._show(done, numbers)
        except OSError as error:
            batches.error = batches.error or error
        return numbers

    def _show(self, done: Step, numbers: StepNumbers) -> None:
        images = len(done.file_names) * self.world.size
        self.progress.step(done.step, images, numbers.total, done.learning_rate)
        last = self.steps_per_epoch * self.config.train.epochs
        every = self.config.train.log_every
        if numbers.loss_norms or (every and done.step % every == 0) or done.step in (1, last):
            values: dict[str, Any] = {
                "epoch": (done.step - 1) // self.steps_per_epoch + 1,
                "learning_rate": done.learning_rate,
                **numbers.scalars(),
                "images_per_second": round(self.progress.images_per_second(done.time), 3),
            }
            if self.device.type == "cuda":
                values["max_memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 3)
            if self._watched is not None:
                self._watched.check()  # a run in a deleted folder ends now, and not after hours
            self.progress.record(done.step, values)

    def _evaluation_is_due(self) -> bool:
        """The run is between two epochs, of which the first asks for an evaluation that the log does not have."""
        every = self.config.train.eval_every
        asked = every > 0 and self.epoch > 0 and self.step == 0 and self.epoch % every == 0
        return asked and self.epoch * self.steps_per_epoch not in self.progress.evaluated

    def _evaluate(self) -> Evaluation:
        evaluation = evaluate(self.evaluated_model, self.eval_dataset, self.device, self.categories, world=self.world)
        self.world.from_main(lambda: self._write(evaluation))
        return evaluation

    def _write(self, evaluation: Evaluation) -> None:
        if not self._watched.is_there():
            self._save()  # which tells where
        self._watched.check_lock()
        write_evaluation(evaluation, self.run, epoch=self.epoch, seconds_training=round(self.seconds, 3))
        numbers = {f"evaluation/{name}": value for name, value in evaluation.metrics.coco.items()}
        numbers["evaluation/voc_ap50"] = evaluation.metrics.voc_ap50
        step = self.epoch * self.steps_per_epoch
        if step not in self.progress.evaluated:  # a finished run that is resumed has it in its log
            self.progress.record(step, {"epoch": self.epoch, **numbers})

    def _save(self) -> Path:
        keep = self.config.train.keep_checkpoints
        if self._watched is not None:
            return save_or_rescue(self._checkpoint(), self._watched, keep)
        make_folder(self.run)
        return save_checkpoint(self._checkpoint(), self.run, keep)

    def _checkpoint(self) -> Checkpoint:
        weights = self.model.state_dict()
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        if broken:  # the last update did it: no loss has been computed with these weights
            step = self.epoch * self.steps_per_epoch + self.step
            raise NonFiniteLoss(f"step {step}: {broken[0]} became NaN or infinite; no weights were saved. {CURES}")
        return Checkpoint(
            config=self.config,
            categories=self.categories,
            model=weights,
            ema=None if self.average is None else self.average.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            seconds=self.seconds,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.categories != self.categories:
            raise ValueError(
                f"--resume: the run has the categories {few(checkpoint.categories)}, the data {few(self.categories)}"
            )
        if checkpoint.steps_per_epoch != self.steps_per_epoch:
            raise ValueError(
                f"--resume: the run has epochs of {checkpoint.steps_per_epoch} steps, which now have "
                f"{self.steps_per_epoch}; continue with the batch size and the data that it had, or start a new run"
            )
        ema = checkpoint.model if checkpoint.ema is None else checkpoint.ema
        for name, state in (("weights", checkpoint.model), ("averaged weights", ema)):
            fit = compare(state, self.model.state_dict())
            if not fit.exact:
                raise ValueError(
                    f"--resume: the {name} of the checkpoint do not fit the model of the run; tensors and their "
                    f"shapes:\n{fit.table()}"
                )
        load_fitting(self.model, checkpoint.model)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.epoch, self.step, self.seconds = checkpoint.epoch, checkpoint.step, checkpoint.seconds
        if self.average is not None:
            load_fitting(self.average.module, ema)
            self.average.n_averaged.fill_(self.epoch * self.steps_per_epoch + self.step)


def resume(run: Path, device: torch.device, config: Config | None = None, world: World = ALONE) -> Trainer:
    """A trainer that continues from the newest checkpoint of a run that is whole; damaged ones are put aside.

    Args:
        run: the run folder.
        device: where to compute.
        config: the run's configuration with changes, such as more epochs; None: as it was.
        world: the processes that go on together; their number may be another than before.

    Raises:
        ValueError: the model was changed, which its weights would not fit; or the length of an epoch (by another
            batch size or other data), which steps, schedule and log are counted in. Also as `load_checkpoint`.
    """
    checkpoint: Checkpoint | None = None

    def find() -> Path:
        nonlocal checkpoint
        file, checkpoint = put_damaged_aside(run)
        return file

    file = world.from_main(find)
    if checkpoint is None:  # in the other processes
        checkpoint = load_checkpoint(file)
    config = config or checkpoint.config
    old, new = vars(checkpoint.config.model), vars(config.model)
    changed = [name for name in new if old[name] != new[name]]
    if changed:
        raise ValueError(
            f"--resume: {changed[0]} was {old[changed[0]]!r} in this run, now it is {new[changed[0]]!r}; "
            "the model of a run stays as it is, start a new run to change it"
        )
    return Trainer(config, run, device, checkpoint, world=world)


def check_shares(config: Config, world: World) -> None:
    """Raises ValueError where a batch cannot be divided equally among the processes and the parts of each."""
    shares = world.size * config.train.accumulate
    if config.data.batch_size % shares:
        raise ValueError(
            f"--batch-size {config.data.batch_size}: expected a multiple of {shares} ({world.size} processes with "
            f"--accumulate {config.train.accumulate}): a batch is the images of one step of all processes together"
        )


def _mixed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for one step of one process: in practice different for all steps, seeds and processes.

    The factors are odd; the first is 2^64 / golden ratio.
    """
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**63 - 1)


def _print_data(*datasets: DetectionDataset) -> None:
    """A line for each data set, and what was handled in it."""
    for dataset in datasets:
        say(describe(dataset.annotations).splitlines()[0])
        if dataset.problems.counts:
            say(dataset.problems.summary())
