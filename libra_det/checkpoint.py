"""Checkpoints of a run: a crash at any moment leaves the old or the new one whole, and they are read as plain data.

They lie in RUN/checkpoints: `epoch_0003.pt` after three epochs, `epoch_0003_step_000017.pt` 17 steps later. There are
always two, once two were written: what damages one, such as a broken disk, leaves the other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from libra_det.checkpoint_values import (
    checked_categories,
    checked_optimizer,
    checked_position,
    checked_tensors,
)
from libra_det.config import Config
from libra_det.distributed import warn
from libra_det.files import NotWritten, whole_stream, writing
from libra_det.run_folder import resume_command
from libra_det.terminal import shown
from libra_det.weights.files import DamagedFile, described, read_tensor_file

FORMAT = 1  # of the file; raised when an older libra_det could not read a newer file
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.pt")


@dataclass
class Checkpoint:
    """All that `libra train --resume`, `libra eval` and `libra predict` need, in one file.

    There is no state of a random generator: whatever is random in a step follows from (seed, step).
    """

    config: Config
    categories: list[tuple[int, str]]  # (id, name) in the order of the labels 0..C-1
    model: dict[str, Any]  # state_dict of the trained weights
    ema: dict[str, Any] | None  # state_dict of their moving average, where the run has one
    optimizer: dict[str, Any]
    epoch: int  # complete epochs
    step: int  # steps of the epoch after those
    steps_per_epoch: int
    seconds: float  # of training so far

    @property
    def file_name(self) -> str:
        return f"epoch_{self.epoch:04d}.pt" if self.step == 0 else f"epoch_{self.epoch:04d}_step_{self.step:06d}.pt"

    def tensors(self) -> list[torch.Tensor]:
        momenta = (kept.get("momentum_buffer") for kept in self.optimizer["state"].values())
        return [*self.model.values(), *(self.ema or {}).values(), *(value for value in momenta if value is not None)]


def checkpoint_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of a checkpoint with these tensors, by their sizes alone: at most so many.

    Beside its numbers a tensor takes less than 512 bytes for its name and place; what else there is, less than 64 KiB.
    """
    return sum(tensor.nbytes + 512 for tensor in tensors) + 2**16


def checkpoint_files(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    files = [file for file in (run / "checkpoints").glob("*.pt") if _NAME.fullmatch(file.name)]
    return sorted(files, key=_position)


def save_checkpoint(checkpoint: Checkpoint, run: Path, keep: int = 0) -> Path:
    """Write a checkpoint and remove what it makes superfluous.

    Args:
        checkpoint: what to write.
        run: the run folder, which exists; the file goes to RUN/checkpoints under the checkpoint's own name.
        keep: newest epoch checkpoints that stay (0: all; 1 is as 2). One written in mid-epoch goes when there is a
            newer one. But two files stay in any case, of whichever kind, so that one of them may be damaged.

    Returns:
        The file.

    Raises:
        NotWritten: it could not be written; the message says which checkpoint there is, and how to go on.
    """
    folder = run / "checkpoints"
    file = folder / checkpoint.file_name
    values = dict(vars(checkpoint), format=FORMAT, config=checkpoint.config.to_json())
    try:
        with writing(folder):
            folder.mkdir(exist_ok=True)  # but not the run folder, which somebody may have deleted
        with whole_stream(file, needed=checkpoint_bytes(checkpoint.tensors()), durable=True) as stream:
            torch.save(values, stream)
    except OSError as error:
        newest = next(reversed(checkpoint_files(run)), None)
        there = f"The checkpoint before it, {newest.name}, is intact" if newest else "There is no checkpoint before it"
        begun = newest is not None or (run / "config.json").exists()
        how = f"continue with: {resume_command(run)}" if begun else "start again"
        raise NotWritten(f"{error}. {there}; when there is room, {how}") from error
    for other in _superfluous([other for other in checkpoint_files(run) if _position(other) <= _position(file)], keep):
        try:
            other.unlink(missing_ok=True)
        except OSError as error:
            warn(f"{other}: could not be removed ({error.strerror or error}); it is not needed any more")
    return file


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint: a file, or the newest one of a run folder that is whole. Tensors come to the CPU.

    Where a run's newest file is damaged, a warning says so and which one is read instead. Nothing in the file is
    executed, so that a checkpoint from a stranger is safe to open.

    Raises:
        FileNotFoundError: there is no such file, or no checkpoint in the folder.
        DamagedFile: the file, or all that the run has, is damaged; the message names it.
        ValueError: the file is not a checkpoint of libra_det, or one of a newer libra_det; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        return _newest_whole(path)[1]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint file")
    return _read(path)


def put_damaged_aside(run: Path) -> tuple[Path, Checkpoint]:
    """The newest checkpoint of a run that is whole; damaged ones that are newer are renamed, epoch_0003.pt.damaged.

    So they do not count among the two that a run keeps, and are not lost. Each is read a second time before, as a disk
    may fail once.

    Returns:
        Its file, and what it holds.

    Raises:
        FileNotFoundError, DamagedFile, ValueError: as `load_checkpoint`.
    """
    file, checkpoint, damaged = _newest_whole(run)
    for other in damaged:
        try:
            again = _read(other)
        except DamagedFile:
            pass
        else:
            warn(f"{other}: could be read at the second attempt, and is used")
            return other, again
        names = (other.with_name(f"{other.name}.damaged{'' if n == 1 else n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        other.rename(aside)
        warn(f"the damaged checkpoint is now called {aside}; nothing needs it")
    return file, checkpoint


def checkpoint_of(values: Any, path: Path) -> Checkpoint | None:
    """The checkpoint that a file's content is; None for the content of any other file.

    Raises:
        ValueError: it is of a newer libra_det, or not all that a checkpoint has to be; the message names what.
    """
    if not isinstance(values, dict) or "format" not in values:
        return None
    version = values["format"]
    if isinstance(version, torch.Tensor):  # a parameter of that name
        return None
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"{path}: has checkpoint format {shown(version)}, this libra_det reads {FORMAT}; use the version that "
            "wrote it"
        )
    try:
        return Checkpoint(
            config=Config.from_json(values["config"]),
            categories=checked_categories(values["categories"]),
            model=checked_tensors("model", values["model"], path),
            ema=None if values["ema"] is None else checked_tensors("ema", values["ema"], path),
            optimizer=checked_optimizer(values["optimizer"], path),
            **checked_position(values["epoch"], values["step"], values["steps_per_epoch"], values["seconds"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no complete checkpoint of `libra train` ({error!r})") from error


def _read(path: Path) -> Checkpoint:
    file = read_tensor_file(path)
    checkpoint = checkpoint_of(file.values, path)
    if checkpoint is None:
        raise ValueError(f"{path}: holds {described(file)}; expected a checkpoint of `libra train`")
    return checkpoint


def _newest_whole(run: Path) -> tuple[Path, Checkpoint, list[Path]]:
    """The newest checkpoint that can be read: its file, what it holds, and the damaged files that are newer."""
    files = checkpoint_files(run)[::-1]
    if not files:
        raise FileNotFoundError(f"{run}: no checkpoint in {run / 'checkpoints'}; expected a run of `libra train`")
    reasons: list[DamagedFile] = []
    for file in files:
        try:
            checkpoint = _read(file)
        except DamagedFile as error:
            reasons.append(error)
            continue
        for damaged, reason in zip(files, reasons, strict=False):
            warn(f"{damaged} is damaged ({reason.why or reason}); {file} is used instead")
        return file, checkpoint, files[: len(reasons)]
    tried = f"of the {len(files)} checkpoints of the run, all tried, none can be read" if len(files) > 1 else "no other"
    raise DamagedFile(f"{reasons[0]}; {tried}; put a copy of one into {run / 'checkpoints'}, or begin a new run")


def _superfluous(files: list[Path], keep: int) -> list[Path]:
    """Which files may go when the last of them was written; oldest first, as `save_checkpoint` says."""
    epochs = [file for file in files if _position(file)[1] == 0]
    stay = epochs if keep == 0 else epochs[-max(keep, 2) :]
    stay = [*stay, files[-1]]
    for file in reversed(files):
        if len(set(stay)) < 2:
            stay.append(file)
    return [file for file in files if file not in stay]


def _position(file: Path) -> tuple[int, int]:
    """(complete epochs, steps after those), from the file's name."""
    found = _NAME.fullmatch(file.name)
    return int(found[1]), int(found[2] or 0)
