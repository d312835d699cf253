"""Checkpoints of a run: a crash at any moment leaves the old or the new one whole, and they are read as plain data.

They lie in RUN/checkpoints: `epoch_0003.pt` after three epochs, `epoch_0003_step_000017.pt` 17 steps later.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from libra_det.config import Config
from libra_det.weights.files import check_plain, described, read_tensor_file

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


def checkpoint_files(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    files = [file for file in (run / "checkpoints").glob("*.pt") if _NAME.fullmatch(file.name)]
    return sorted(files, key=_position)


def save_checkpoint(checkpoint: Checkpoint, run: Path, keep: int = 0) -> Path:
    """Write a checkpoint and remove what it makes superfluous.

    Args:
        checkpoint: what to write.
        run: the run folder; the file goes to RUN/checkpoints under the checkpoint's own name.
        keep: newest epoch checkpoints that stay (0: all). One written in mid-epoch goes when there is a newer one.

    Returns:
        The file.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / checkpoint.file_name
    values = dict(vars(checkpoint), format=FORMAT, config=checkpoint.config.to_json())
    # First all of it under another name, safely on the disk; then the new name, which is one step for the file system.
    unfinished = file.with_suffix(".unfinished")
    with open(unfinished, "wb") as stream:
        torch.save(values, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    _sync_folder(folder)

    older = [other for other in checkpoint_files(run) if _position(other) < _position(file)]
    whole = [other for other in older if _position(other)[1] == 0]
    superfluous = [other for other in older if _position(other)[1] != 0]
    if keep > 0:
        stay = keep - 1 if checkpoint.step == 0 else keep
        superfluous += whole[: max(len(whole) - stay, 0)]
    for other in superfluous:
        other.unlink(missing_ok=True)
    return file


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint: a file, or the newest one of a run folder. Tensors come to the CPU.

    Nothing in the file is executed (`weights_only`), so that a checkpoint from a stranger is safe to open.

    Raises:
        FileNotFoundError: there is no such file, or no checkpoint in the folder.
        ValueError: the file is damaged, or is not a checkpoint of libra_det; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        files = checkpoint_files(path)
        if not files:
            raise FileNotFoundError(f"{path}: no checkpoint in {path / 'checkpoints'}; expected a run of `libra train`")
        path = files[-1]
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint file")
    advice = "expected a checkpoint of `libra train`; if it is damaged, delete it and the one before it is used"
    try:
        file = read_tensor_file(path)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    checkpoint = checkpoint_of(file.values, path)
    if checkpoint is None:
        raise ValueError(f"{path}: holds {described(file)}; {advice}")
    return checkpoint


def checkpoint_of(values: Any, path: Path) -> Checkpoint | None:
    """The checkpoint that a file's content is; None for the content of any other file.

    Raises:
        ValueError: it is of a newer libra_det, or incomplete.
    """
    if not isinstance(values, dict) or "format" not in values:
        return None
    version = values["format"]
    if isinstance(version, torch.Tensor):  # a parameter of that name
        return None
    if version != FORMAT:
        raise ValueError(
            f"{path}: has checkpoint format {version}, this libra_det reads {FORMAT}; use the version that wrote it"
        )
    plain = ("model", "ema", "optimizer", "epoch", "step", "steps_per_epoch", "seconds")
    try:
        for state in (values["model"], values["ema"] or {}):
            if not isinstance(state, dict):
                raise TypeError("expected tensors by name under 'model' and 'ema'")
            check_plain(state, path)
        return Checkpoint(
            config=Config.from_json(values["config"]),
            categories=[(int(id), str(name)) for id, name in values["categories"]],
            **{name: values[name] for name in plain},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no complete checkpoint of `libra train` ({error!r})") from error


def _position(file: Path) -> tuple[int, int]:
    """(complete epochs, steps after those), from the file's name."""
    found = _NAME.fullmatch(file.name)
    return int(found[1]), int(found[2] or 0)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
