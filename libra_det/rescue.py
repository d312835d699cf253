"""A run folder that somebody deletes or renames while it is trained in: it is noticed, and nothing learned is lost."""

from __future__ import annotations

import errno
import itertools
import os
import time
from pathlib import Path

from libra_det.checkpoint import Checkpoint, save_checkpoint
from libra_det.files import NotWritten, make_folder, write_text
from libra_det.run_folder import resume_command
from libra_det.run_lock import RunLock

ASKED_EVERY = 60.0  # seconds between two looks at the lock while steps are logged


class WatchedFolder:
    """Tells whether a folder is still the one that it was: not deleted, renamed, made anew under its name, or taken.

    Args:
        folder: the run folder.
        lock: by which this process has it; None: nobody can take it.
    """

    def __init__(self, folder: Path, lock: RunLock | None = None) -> None:
        self.folder, self.absolute = folder, folder.absolute()
        self._lock, self._asked = lock, time.monotonic()
        # While it is open, no other folder gets its number. Windows opens no folders.
        self._descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None

    def is_there(self) -> bool:
        try:
            now = os.stat(self.absolute)
            return self._descriptor is None or os.path.samestat(now, os.fstat(self._descriptor))
        except OSError as error:  # a file server that does not answer well may still have it
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)

    def check(self) -> None:
        """Raises NotWritten if it is not there any more; every `ASKED_EVERY`, as `check_lock` too."""
        if not self.is_there():
            raise NotWritten(f"{self.folder}: the run folder was deleted or renamed")
        if time.monotonic() - self._asked >= ASKED_EVERY:
            self.check_lock()

    def check_lock(self) -> None:
        """Raises NotWritten if another process has taken the run over, as after a long suspension of this one."""
        self._asked = time.monotonic()
        if self._lock is not None and not self._lock.still_mine():
            raise NotWritten(
                f"{self.folder}: another process has taken this run over, as this one gave no sign of life for long; "
                "this one ends and writes nothing more"
            )

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def save_or_rescue(checkpoint: Checkpoint, run: WatchedFolder, keep: int) -> Path:
    """Write a checkpoint to a run folder, as `save_checkpoint`. Where that is gone, a new one is made beside it.

    Raises:
        NotWritten: the checkpoint could not be written; or another process has taken the run over; or the folder was
            gone, and the message names the new one, RUN-rescued, or RUN-rescued-2, ...
    """
    if run.is_there():
        run.check_lock()
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
