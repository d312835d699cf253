"""Ctrl-C at a moment that suits: the running step ends, a checkpoint is written.

So does a job scheduler's SIGTERM, and the SIGHUP of a terminal that is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from pathlib import Path
from types import FrameType

_HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none


class Interrupted(Exception):
    """Training was asked to stop and has written a checkpoint.

    Attributes:
        checkpoint: the file to resume from.
        exit_code: what a shell expects of a process that ended so: 130 after Ctrl-C, 129 after SIGHUP.
    """

    def __init__(self, checkpoint: Path, signal_number: int) -> None:
        super().__init__(f"interrupted; {checkpoint} holds all that was learned")
        self.checkpoint = checkpoint
        self.exit_code = 128 + signal_number


class Interruptible:
    """Within this context the first SIGINT, SIGTERM or SIGHUP only sets `signal_number`.

    A second SIGINT or SIGTERM acts as usual. A second SIGHUP does not: a terminal that is closed often sends two, and
    some job schedulers send one after SIGTERM. Where SIGHUP is ignored already, as nohup does it, it stays ignored.

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
            numbers = [signal.SIGINT, signal.SIGTERM]
            if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
                numbers.append(_HANG_UP)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*self._before)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which a terminal's Ctrl-C reaches too
            return
        if number == _HANG_UP:
            drop_lost_terminal()
        if self.signal_number is not None:
            return
        self.signal_number = number
        self._restore(signal.SIGINT, signal.SIGTERM)
        if self.quiet:
            return
        with contextlib.suppress(OSError):
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nlibra: stopping after this step; press Ctrl-C again to stop at once\n")

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))


def drop_lost_terminal() -> None:
    """Standard output and error go nowhere from here on, where they are a terminal that was closed.

    Each write to it would be an error. Such a terminal is a character device that calls itself none; of those that
    are none for other reasons, such as /dev/null, nothing is lost.
    """
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
