"""The command `libra`. PyTorch is imported when a command runs, so that help and wrong flags are answered at once."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig
from libra_det.recipes import recipe
from libra_det.run_folder import new_run_folder, read_config, refuse_run

DEFAULT_RECIPE = "shapes"


@dataclass
class Train:
    """Train a detector, evaluate it and fill a run folder.

    The recipe is a complete configuration; every field of it is a flag.
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    output: Path | None = None
    """Folder of the run; none: runs/RECIPE, runs/RECIPE-2, ..."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --output from its newest checkpoint, with its configuration and the flags given now."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from libra_det.checkpoint import checkpoint_files
        from libra_det.devices import choose_device
        from libra_det.report import print_metrics
        from libra_det.train import Trainer, resume

        device = choose_device(self.device)
        if self.output is not None and not self.resume:
            refuse_run(self.output)
        # A run that was stopped before its first checkpoint begins again.
        if self.resume and checkpoint_files(self.output):
            trainer = resume(self.output, device, self.config)
        else:
            trainer = Trainer(self.config, self.output or Path(), device)
        if not self.resume:  # only now, when the data was read: a mistake in the command leaves no folder
            trainer.run = new_run_folder(self.output, self.config.recipe)
        run = trainer.run
        print(f"run folder: {run} ({device})", flush=True)
        try:
            evaluation = trainer.train()
        except KeyboardInterrupt:  # in the evaluation, or a second Ctrl-C in training
            print(f"\ncontinue with: {_resume_command(run)}", file=sys.stderr)
            raise
        print_metrics(evaluation.metrics, f"{self.config.recipe}, {trainer.eval_dataset.annotations.name} split")
        print(
            f"trained in {trainer.seconds:.0f} s, evaluated in {evaluation.seconds:.0f} s\n"
            f"run folder: {run} (detections are drawn in {run / 'pictures'})\n"
            f"use it:     libra predict {_quoted(run)} IMAGE_OR_FOLDER --output predictions\n"
            f"measure it: libra eval {_quoted(run)} --split {_quoted(self.config.data.eval_split)}"
        )
        return 0


@dataclass
class Eval:
    """Evaluate a run: COCO's 12 numbers, AP per class, Pascal VOC's AP50."""

    run: tyro.conf.Positional[Path]
    """Run folder of `libra train`, or a checkpoint file."""
    data: str | None = None
    """Folder of another data set; none: that of the run."""
    split: str | None = None
    """Split of it; none: the run's eval_split."""
    annotations: str | None = None
    """COCO JSON, where it does not lie in the data folder under a usual name."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""
    batch_size: int | None = None
    """Images at once; none: as in training."""
    output: Path | None = None
    """Folder for metrics.json, results.json and pictures; none: evaluation/DATA-SPLIT in the run folder."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from libra_det.devices import choose_device
        from libra_det.evaluate import draw_pictures, evaluate_run, write_evaluation
        from libra_det.report import print_metrics

        dataset, evaluation = evaluate_run(
            self.run,
            device=choose_device(self.device),
            data=self.data,
            split=self.split,
            annotations=self.annotations,
            image_folder=self.image_folder,
            batch_size=self.batch_size,
        )
        split = dataset.annotations.name
        print_metrics(evaluation.metrics, f"{self.run}, {split} split of {dataset.config.data}")
        output = self.output or self._run_folder() / "evaluation" / self._name(dataset.config.data, split)
        write_evaluation(evaluation, output, data=dataset.config.data, split=split)
        draw_pictures(dataset.annotations, evaluation.results, output / "pictures")
        print(f"evaluated in {evaluation.seconds:.0f} s; numbers, results and pictures are in {output}")
        return 0

    def _run_folder(self) -> Path:
        """The run folder; for a checkpoint that lies in none, the current folder."""
        if self.run.is_dir():
            return self.run
        folder = self.run.absolute().parent
        return folder.parent if folder.name == "checkpoints" else Path()

    def _name(self, data: str, split: str) -> str:
        """Tells evaluations on different data apart."""
        name = f"{Path(data).expanduser().resolve().name}-{split}"
        return name if self.annotations is None else f"{name}-{Path(self.annotations).stem}"


@dataclass
class Predict:
    """Draw the detections of images, and write them to OUTPUT/predictions.json."""

    run: tyro.conf.Positional[Path]
    """Run folder of `libra train`, or a checkpoint file."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE|DIR [IMAGE|DIR ...]")]
    """Image files, and folders that are searched for images, with their sub-folders."""
    output: Path = Path("predictions")
    """Folder for the pictures and predictions.json."""
    score_threshold: float = 0.3
    """Weaker detections are left out."""
    device: str = "auto"
    """auto (the first GPU if there is one), cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from libra_det.devices import choose_device
        from libra_det.predict import load_detector, predict_files

        if not self.images:
            raise ValueError("IMAGE|DIR: expected at least one image file or folder, got none")
        detector = load_detector(self.run, choose_device(self.device))
        images, failures = predict_files(detector, self.images, self.output, self.score_threshold)
        print(
            f"{images} images predicted, {len(failures)} could not be read; "
            f"pictures and predictions.json are in {self.output}"
        )
        return 0 if images else 1


@dataclass
class Check:
    """Read a data set as training would, decode all its images, and say what is in it and what is wrong with it."""

    data: tyro.conf.Positional[str]
    """A folder with COCO JSON or Pascal VOC annotations, or "shapes" for the embedded data set."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: str = "val"
    """Split that is evaluated."""
    train_annotations: str | None = None
    """COCO JSON to train on, where it does not lie in the data folder under a usual name."""
    eval_annotations: str | None = None
    """COCO JSON to evaluate on, likewise."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""

    def __call__(self) -> int:
        from libra_det.data import check_data

        print(check_data(DataConfig(**vars(self))))
        return 0


@dataclass
class Doctor:
    """Print versions, devices and what is compiled, and try each operation once."""

    def __call__(self) -> int:
        from libra_det.doctor import doctor

        return 0 if doctor() else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 success, 1 the work failed, 2 the arguments, the data or a file have to be mended, 130 Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _parse(arguments)()
    except BrokenPipeError:  # the reader of our output has gone, as in `libra train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nlibra: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("LIBRA_DEBUG"):
            raise
        code, message = _explained(error)
        if code is None:
            raise
        print(message, file=sys.stderr)
        return code


def _explained(error: Exception) -> tuple[int | None, str]:
    """Exit code and message of an error that the user can do something about; no code for one that is ours."""
    if type(error).__module__.startswith(
        "libra_det."
    ):  # only these commands can raise them: what defines them is imported
        from libra_det.interrupt import Interrupted
        from libra_det.train import NonFiniteLoss

        if isinstance(error, Interrupted):
            run = error.checkpoint.parent.parent
            return error.exit_code, f"libra: {error}\ncontinue with: {_resume_command(run)}"
        if isinstance(error, NonFiniteLoss):
            return 1, f"libra: error: {error}"
    if isinstance(error, (ValueError, TypeError, OSError)):
        return 2, f"libra: error: {error}"
    return None, ""


def _resume_command(run: Path) -> str:
    return f"libra train --output {_quoted(run)} --resume"


def _quoted(value: Path | str) -> str:
    """As a shell reads it."""
    return shlex.quote(str(value))


def _parse(arguments: list[str]) -> Train | Eval | Predict | Check | Doctor:
    """The chosen command with its arguments. Mistakes in them end the process with exit code 2, as tyro does."""
    config = _starting_config(arguments[1:]) if arguments[:1] == ["train"] else recipe(DEFAULT_RECIPE)
    commands = typing.Union[  # noqa: UP007 - built at run time, as the default of `train` depends on --recipe
        Annotated[Train, tyro.conf.subcommand("train", default=Train(config))],
        Annotated[Eval, tyro.conf.subcommand("eval")],
        Annotated[Predict, tyro.conf.subcommand("predict")],
        Annotated[Check, tyro.conf.subcommand("check")],
        Annotated[Doctor, tyro.conf.subcommand("doctor")],
    ]
    command = tyro.cli(
        commands,
        prog="libra",
        description="Train and use Libra R-CNN detectors. `libra train` alone trains on the embedded data set.",
        args=_with_none(arguments) or ["--help"],
    )
    if isinstance(command, Train) and command.resume and command.config.recipe != config.recipe:
        raise ValueError(f"--recipe {command.config.recipe}: the run in {command.output} has recipe {config.recipe}")
    return command


def _starting_config(arguments: list[str]) -> Config:
    """What the flags of `libra train` change: the recipe, or the configuration of the run that is resumed.

    Raises:
        ValueError: an unknown recipe, or --resume without a run.
    """
    parser = argparse.ArgumentParser(prog="libra train", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    if not known.resume:
        return recipe(known.recipe)
    if known.output is None:
        raise ValueError("--resume: expected --output RUN beside it, the folder of the run to continue")
    return read_config(known.output)


def _with_none(arguments: list[str]) -> list[str]:
    """The arguments with `none` spelt as tyro reads it, where a field may be without a value: --gradient-clip none."""
    optional = {
        "--" + name.replace("_", "-")
        for cls in (ModelConfig, DataConfig, TrainConfig, Train, Eval, Check)
        for name, hint in typing.get_type_hints(cls).items()
        if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)
    }
    result: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if value.lower() == "none" and name.replace("_", "-") in optional:
            argument = f"{name}=None"
        elif argument.lower() == "none" and result and result[-1].replace("_", "-") in optional:
            argument = "None"
        result.append(argument)
    return result


if __name__ == "__main__":
    sys.exit(main())
