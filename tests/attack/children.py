"""Work in a forked child that may crash, hang or eat memory: the parent only learns how it ended."""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MB = 2**20


class Ended(NamedTuple):
    """How a child ended."""

    code: int | None  # exit code; None: by a signal
    signal: int | None
    timed_out: bool
    seconds: float
    cpu_seconds: float
    grown: int  # bytes that its memory was larger, at its largest, than that of a child that does nothing

    @property
    def reason(self) -> str:
        if self.timed_out:
            return "time-out"
        return f"exit code {self.code}" if self.signal is None else signal.Signals(self.signal).name


def virtual_memory() -> int:
    """Bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def run_forked(
    work: Callable[[], int], *, seconds: float, address_space: int | None, idle: int = 0, output: Path | None = None
) -> Ended:
    """Run `work` in a child; its return value is the exit code.

    Args:
        seconds: of computing, after which the child is killed. It may take three times as long where others compute
            too; then whatever it has started is killed as well.
        address_space: bytes that it may take beyond what this process has; None: no limit (AddressSanitizer takes
            terabytes).
        idle: peak memory of a child that does nothing, which `grown` does not count.
        output: file that takes standard output and error; None: they stay.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    limit = None if address_space is None else virtual_memory() + address_space
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(work, seconds, limit, output)
    pidfd = os.pidfd_open(child)
    try:
        ready, _, _ = select.select([pidfd], [], [], 3 * seconds)
    finally:
        os.close(pidfd)
    _end_group(child)  # also what a child that has ended left running
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        timed_out=not ready or -code == signal.SIGXCPU,
        seconds=time.monotonic() - start,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        grown=usage.ru_maxrss * 1024 - idle,
    )


def idle_memory() -> int:
    """Peak memory of a forked child that does nothing, in bytes."""
    return run_forked(lambda: 0, seconds=60, address_space=None).grown


def _be_child(work: Callable[[], int], seconds: float, limit: int | None, output: Path | None) -> None:
    """Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _end_group(child: int) -> None:
    """Kills the child, if it still runs, and the processes that it started; all are in a group of its number."""
    for end in (os.killpg, os.kill):
        try:
            end(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
