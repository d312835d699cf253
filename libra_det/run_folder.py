"""The folder of a run: where it is, and the small files that describe it.

config.json  environment.json  log.jsonl  metrics.json  results.json  tensorboard/  checkpoints/  pictures/  lock
"""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from libra_det.config import Config
from libra_det.files import UNFINISHED, make_folder, writing
from libra_det.run_lock import LOCK

_FIRST = "epoch_0000.pt"  # the weights that a run begins from


def new_run_folder(output: Path | None, recipe: str) -> Path:
    """The folder that a new run writes to; it is created.

    Args:
        output: what the user asked for; None: runs/RECIPE, or runs/RECIPE-2, ... where that is taken.
        recipe: name of the recipe.

    Raises:
        FileExistsError: `output` already holds a run.
    """
    if output is not None:
        refuse_run(output)
        make_folder(output)
        return output
    number = 1
    while True:
        folder = Path("runs") / (recipe if number == 1 else f"{recipe}-{number}")
        try:
            with writing(folder):
                folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def refuse_run(output: Path) -> None:
    """Raises FileExistsError if `output` holds a run already."""
    checkpoints = output / "checkpoints"
    if (output / "config.json").exists() or (checkpoints.exists() and not _is_left_over(checkpoints)):
        raise FileExistsError(
            f"--output {output}: already holds a run; add --resume to continue it, or choose another folder"
        )


def is_free(output: Path) -> bool:
    """Whether there is no folder, or nothing in it but what a process leaves that was stopped before it began."""
    return not output.exists() or (output.is_dir() and all(_is_left_over(file) for file in output.iterdir()))


def remove_leftovers(run: Path) -> None:
    """Remove what dead processes have left half-written in a run folder, which the caller has the lock of."""
    if is_free(run):  # a run that begins must not find a checkpoint of other weights
        with contextlib.suppress(FileNotFoundError):
            (run / "checkpoints" / _FIRST).unlink()
        remove_if_empty(run / "checkpoints")
    for folder in (run, run / "checkpoints"):
        for file in folder.glob(f"*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                file.unlink()


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def read_config(run: Path) -> Config:
    """The configuration that a run was started with.

    Raises:
        FileNotFoundError: the folder is not a run.
    """
    file = run / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{run}: not a run folder (no config.json); expected the --output of `libra train`")
    try:
        return Config.from_json(file.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def resume_command(run: Path) -> str:
    """What continues a run, as a shell reads it."""
    return f"libra train --output {shlex.quote(str(run))} --resume"


def environment(device: str, processes: int = 1) -> dict[str, Any]:
    """What a number of this run depends on besides its configuration."""
    import numpy
    import torch
    import torchvision

    facts = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv),
        "device": device,
        "processes": processes,
        "cpu_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(torch.device(device))
        facts["cuda"] = torch.version.cuda
    return facts


def _is_left_over(file: Path) -> bool:
    """Whether a process left this that was stopped before config.json made its folder a run."""
    if file.name == "checkpoints" and file.is_dir():
        return all(other.name == _FIRST or other.name.endswith(UNFINISHED) for other in file.iterdir())
    return file.name == LOCK or file.name.endswith(UNFINISHED)
