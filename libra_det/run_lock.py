"""A run folder belongs to one process at a time: RUN/lock says to which, and a dead process's lock is taken over.

The file is JSON: host, pid, process_start (clock ticks after the host's start, by which a number that is given to
another process later is told apart), boot_id (of the host's start), pid_namespace (in which the pid counts: containers
have their own, and often one host name) and started, for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libra_det.files import UNFINISHED, open_regular, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"  # name of the file
TOUCHED_EVERY = 60.0
"""Seconds between two signs of life, which are the file's time of change."""
DEAD_AFTER = 15 * 60.0
"""Seconds without a sign of life after which a process of another host counts as dead."""
_SETTLED = 0.5  # seconds after which a lock stands, where the file system cannot keep two writers apart


class RunLocked(ValueError):
    """Another process has the run folder."""


class RunLock:
    """Holds a run folder until it is released, or this process is gone.

    The owner is dead if it was of this host and its process is gone, or its host has started again since; or if it was
    of another host or container and the file is older than `DEAD_AFTER`. Judging and writing are one step for all that
    look at the same time, by a lock of the operating system on the file; on a file system without such locks, the last
    to write within half a second of another is the owner.

    Args:
        run: the run folder, which exists.

    Raises:
        RunLocked: a living process has it; the message names it.
        NotWritten: the lock could not be written, or something that is no regular file has its name.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._file = run.absolute() / LOCK
        self._pid = os.getpid()
        self._text = json.dumps(_this_process())
        while not self._take():  # its file was removed meanwhile
            pass
        self._released = threading.Event()
        threading.Thread(target=self._give_signs_of_life, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Give the folder free. In a process that was forked from the owner, and a second time, nothing happens."""
        if os.getpid() != self._pid or self._released.is_set():
            return
        self._released.set()
        with contextlib.suppress(OSError), _opened(self._file, os.O_RDWR) as descriptor:
            _lock(descriptor)
            if _content(descriptor) == self._text:
                self._file.unlink()

    def still_mine(self) -> bool:
        """Whether no other process has taken the folder over, as after a long suspension of this one.

        True where nobody can tell, and where somebody has merely removed the file.
        """
        try:
            with _opened(self._file, os.O_RDONLY) as descriptor:
                return _content(descriptor) == self._text
        except OSError:
            return True

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self) -> bool:
        """Become the owner; False: another try is needed."""
        with writing(self._file), _opened(self._file, os.O_RDWR | os.O_CREAT) as descriptor:
            exclusive = _lock(descriptor)
            if not _is_at(descriptor, self._file):
                return False
            owner = _owner(_content(descriptor))
            if owner is not None and is_alive(owner, _now(self._file) - os.fstat(descriptor).st_mtime):
                raise RunLocked(_refusal(self.run, owner))
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, self._text.encode())
            os.fsync(descriptor)
        if not exclusive:
            time.sleep(_SETTLED)
            with writing(self._file), _opened(self._file, os.O_RDWR) as descriptor:
                text = _content(descriptor)
            if text != self._text:
                raise RunLocked(_refusal(self.run, _owner(text) or {}))
        return True

    def _give_signs_of_life(self) -> None:
        while not self._released.wait(TOUCHED_EVERY):
            with contextlib.suppress(OSError), _opened(self._file, os.O_RDWR) as descriptor:
                if _content(descriptor) == self._text:
                    os.utime(self._file)


def refuse_if_held(run: Path) -> None:
    """Raises RunLocked if a living process has the run folder, or what may become one. Nothing is taken."""
    file = run.absolute() / LOCK
    try:
        with _opened(file, os.O_RDONLY) as descriptor:
            owner, changed = _owner(_content(descriptor)), os.fstat(descriptor).st_mtime
        if owner is not None and is_alive(owner, _now(file) - changed):
            raise RunLocked(_refusal(run, owner))
    except OSError:  # there is none
        return


def _refusal(run: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner['pid']} on {owner['host']} has had it since {owner['started']}" if owner else "another"
    gone = f"; if that process is gone, remove {run / LOCK}"
    return (
        f"{run}: another process trains in this run folder ({who}); wait for its end, or stop it, or choose another "
        f"--output{gone if owner and owner['host'] != socket.gethostname() else ''}"
    )


def is_alive(owner: dict[str, Any], age: float) -> bool:
    """Whether the process that wrote a lock lives.

    Args:
        owner: what the lock says.
        age: seconds since its last sign of life.
    """
    here = _this_process()
    elsewhere = owner["host"] != here["host"] or owner.get("pid_namespace") != here["pid_namespace"]
    if elsewhere or os.name != "posix":
        return age < DEAD_AFTER
    if None not in (owner["boot_id"], here["boot_id"]) and owner["boot_id"] != here["boot_id"]:
        return False
    state, start = _process(owner["pid"])
    if state is not None:
        return state not in "ZX" and owner["process_start"] in (None, start)
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def _this_process() -> dict[str, Any]:
    boot_id = pid_namespace = None
    with contextlib.suppress(OSError):
        pid_namespace = os.readlink("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process(os.getpid())[1],
        "boot_id": boot_id,
        "pid_namespace": pid_namespace,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _process(pid: int) -> tuple[str | None, int | None]:
    """State letter and start time of a process of this host; None where it is gone or Linux does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()  # the name before it, in parentheses, may hold anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None, None


def _owner(text: str) -> dict[str, Any] | None:
    """What a lock says; None where it says nothing, as that of a process that was killed while it wrote."""
    kinds = {"host": str, "pid": int, "process_start": (int, type(None)), "boot_id": (str, type(None)), "started": str}
    try:
        owner = json.loads(text)
        return owner if all(isinstance(owner[key], kind) for key, kind in kinds.items()) and owner["pid"] > 0 else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


@contextlib.contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
    """A descriptor; what `_lock` has locked is free again when it is closed."""
    descriptor = open_regular(file, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Wait for the others that look at the file; False where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (OSError, AttributeError):
        return False
    return True


def _now(file: Path) -> float:
    """The time by the clock that dates a file: a file server's, which may differ from this host's."""
    probe = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 10_000).decode(errors="replace")
