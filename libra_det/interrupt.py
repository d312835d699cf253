"""Ctrl-C (and a job scheduler's SIGTERM) at a moment that suits: the running step ends, a checkpoint is written."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """Training was asked to stop and has written a checkpoint.

    Attributes:
        checkpoint: the file to resume from.
        exit_code: what a shell expects of a process that ended so: 130 after Ctrl-C.
    """

    def __init__(self, checkpoint: Path, signal_number: int) -> None:
        super().__init__(f"interrupted; {checkpoint} holds all that was learned")
        self.checkpoint = checkpoint
        self.exit_code = 128 + signal_number


class Interruptible:
    """Within this context the first SIGINT or SIGTERM only sets `signal_number`; a second one acts as usual.

    Args:
        quiet: say nothing about it, as one of several processes to which a terminal's Ctrl-C comes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.signal_number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruptible:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other thread
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which a terminal's Ctrl-C reaches too
            return
        self.signal_number = number
        self._restore()
        if self.quiet:
            return
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nlibra: stopping after this step; press Ctrl-C again to stop at once\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
