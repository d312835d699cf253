"""A run folder that somebody deletes or renames while it is trained in: it is noticed, and nothing learned is lost."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from libra_det.checkpoint import Checkpoint, save_checkpoint
from libra_det.files import NotWritten, make_folder, write_text
from libra_det.run_folder import resume_command


class WatchedFolder:
    """Tells whether a folder is still the one that it was: not deleted, renamed, or made anew under its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.absolute = folder, folder.absolute()
        # While it is open, no other folder gets its number. Windows opens no folders.
        self._descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None

    def is_there(self) -> bool:
        try:
            now = os.stat(self.absolute)
        except OSError:
            return False
        return self._descriptor is None or os.path.samestat(now, os.fstat(self._descriptor))

    def check(self) -> None:
        """Raises NotWritten if it is not there any more."""
        if not self.is_there():
            raise NotWritten(f"{self.folder}: the run folder was deleted or renamed")

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def save_or_rescue(checkpoint: Checkpoint, run: WatchedFolder, keep: int) -> Path:
    """Write a checkpoint to a run folder, as `save_checkpoint`. Where that is gone, a new one is made beside it.

    Raises:
        NotWritten: the checkpoint could not be written; or the folder was gone, and the message names the new one,
            RUN-rescued, or RUN-rescued-2, ...
    """
    try:
        if run.is_there():
            return save_checkpoint(checkpoint, run.folder, keep)
    except NotWritten:
        if run.is_there():
            raise
    lost = run.folder if run.folder.name and run.folder.parent.exists() else run.absolute
    names = (f"{lost.name}-rescued{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    rescued = next(folder for folder in map(lost.with_name, names) if not folder.exists())
    make_folder(rescued)
    write_text(rescued / "config.json", checkpoint.config.to_json() + "\n", durable=True)
    file = save_checkpoint(checkpoint, rescued)
    raise NotWritten(
        f"{run.folder}: the run folder was deleted or renamed during training, so all that was learned is in {file}\n"
        f"continue with: {resume_command(rescued)}"
    )
