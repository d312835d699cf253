"""The command `libra`. PyTorch is imported when a command runs, so that help and wrong flags are answered at once."""

from __future__ import annotations

import argparse
import os
import sys
import types
import typing
from pathlib import Path
from typing import Annotated

import tyro

from libra_det.commands.check import Check
from libra_det.commands.convert import Convert
from libra_det.commands.doctor import Doctor
from libra_det.commands.eval import Eval
from libra_det.commands.export import Export
from libra_det.commands.predict import Predict
from libra_det.commands.proposals import WriteProposals
from libra_det.commands.train import Train
from libra_det.config import Config, DataConfig, ModelConfig, TrainConfig
from libra_det.files import NotWritten
from libra_det.interrupt import drop_lost_terminal
from libra_det.recipes import recipe
from libra_det.run_folder import is_free, read_config, resume_command
from libra_det.terminal import say

DEFAULT_RECIPE = "shapes"
Command = Train | Eval | Predict | Convert | Export | WriteProposals | Check | Doctor


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 success, 1 the work failed or its result could not be written, 2 the arguments, the data or a file have to be
    mended, 129 the terminal was closed, 130 Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _parse(arguments)()
    except BrokenPipeError:  # the reader of our output has gone, as in `libra train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        drop_lost_terminal()
        print("\nlibra: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("LIBRA_DEBUG"):
            raise
        code, message = _explained(error)
        if code is None:
            raise
        drop_lost_terminal()  # or the message would be an error of its own, and the exit code another
        say(message, file=sys.stderr)
        return code


def _explained(error: Exception) -> tuple[int | None, str]:
    """Exit code and message of an error that the user can do something about; no code for one that is ours."""
    if isinstance(error, NotWritten):
        return 1, f"libra: error: {error}"
    # What defines these two is imported already, where they can be raised at all.
    if type(error).__module__.startswith("libra_det."):
        from libra_det.interrupt import Interrupted
        from libra_det.train import NonFiniteLoss

        if isinstance(error, Interrupted):
            run = error.checkpoint.parent.parent
            return error.exit_code, f"libra: {error}\ncontinue with: {resume_command(run)}"
        if isinstance(error, NonFiniteLoss):
            return 1, f"libra: error: {error}"
    if isinstance(error, (ValueError, TypeError, OSError)):
        return 2, f"libra: error: {error}"
    return None, ""


def _parse(arguments: list[str]) -> Command:
    """The chosen command with its arguments. Mistakes in them end the process with exit code 2, as tyro does."""
    config = _starting_config(arguments[1:]) if arguments[:1] == ["train"] else recipe(DEFAULT_RECIPE)
    commands = typing.Union[  # noqa: UP007 - built at run time, as the default of `train` depends on --recipe
        Annotated[Train, tyro.conf.subcommand("train", default=Train(config))],
        Annotated[Eval, tyro.conf.subcommand("eval")],
        Annotated[Predict, tyro.conf.subcommand("predict")],
        Annotated[Convert, tyro.conf.subcommand("convert")],
        Annotated[Export, tyro.conf.subcommand("export")],
        Annotated[WriteProposals, tyro.conf.subcommand("proposals")],
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
    """What the flags of `libra train` change: the recipe, or the configuration of the run that is resumed or of the
    weights to begin from. With a recipe or weights --resume begins a run where there is none yet, so that one command
    serves the first start and all that follow.

    Raises:
        ValueError: an unknown recipe, --resume without a run, or weights that fit no recipe.
    """
    parser = argparse.ArgumentParser(prog="libra train", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    named = known.recipe is not None or known.weights is not None
    begins = known.resume and named and known.output is not None and is_free(known.output)
    if not known.resume or begins:
        if known.recipe is None and known.weights is not None:
            return _config_of(known.weights, known.partial)
        return recipe(known.recipe or DEFAULT_RECIPE)
    if known.output is None:
        raise ValueError("--resume: expected --output RUN beside it, the folder of the run to continue")
    return read_config(known.output)


def _config_of(file: Path, partial: bool) -> Config:
    from libra_det.weights.load import configuration, read_weights

    weights = read_weights(file)
    return recipe(DEFAULT_RECIPE) if weights.is_backbone else configuration(weights, partial=partial)[0]


def _with_none(arguments: list[str]) -> list[str]:
    """The arguments with `none` spelt as tyro reads it, where a field may be without a value: --gradient-clip none."""
    optional = {
        "--" + name.replace("_", "-")
        for cls in (ModelConfig, DataConfig, TrainConfig, *typing.get_args(Command))
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
