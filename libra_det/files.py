"""Files that are written whole or not at all, and one error for those that cannot be written.

A file is written under another name beside its own, and then renamed, which is one step for the file system: whoever
looks sees the old file or the new one. Whatever ends the writing early removes the part that is there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".unfinished"
"""Ending of a file that is being written, or that a process has left which was killed meanwhile."""
_MISTAKES = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)  # in the choice of the name


class NotWritten(OSError):
    """A file could not be written: its disk is full, broken, read-only or gone, or a quota or limit was reached."""


@contextlib.contextmanager
def whole_file(file: Path, *, needed: int | None = None, durable: bool = False) -> Iterator[Path]:
    """A context to write a file in: yields the path to write to, which becomes `file` when the context ends well.

    Args:
        file: in a folder that exists; a file of that name is replaced. A link stays, and what it leads to is replaced.
            What is no regular file, such as a pipe or /dev/null, stays too, and is given the content at the end.
        needed: bytes that it will have, for the message when there is no room.
        durable: wait until the disk has it, so that it survives a loss of power too. A disk that then refuses to
            confirm the file's name is no error, as the file is written.

    Raises:
        NotWritten: the system refused; `file` is as it was before. Also for an error of safetensors that tells so.
        PermissionError, IsADirectoryError, ...: the name was not one to write to.
    """
    if _is_special(file):
        with writing(file, needed), tempfile.TemporaryDirectory() as folder:
            content = Path(folder, "content")
            yield content
            with open(content, "rb") as source, open(file, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    target = Path(os.path.realpath(file)) if file.is_symlink() else file
    unfinished = target.with_name(f"{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
    with writing(file, needed):
        try:
            unfinished.touch(exist_ok=False)
            mode = stat.S_IMODE(unfinished.stat().st_mode)
            yield unfinished
            if stat.S_IMODE(unfinished.stat().st_mode) != mode:  # safetensors makes private files
                with contextlib.suppress(OSError):  # some file systems know no modes
                    unfinished.chmod(mode)
            if durable:
                _sync(unfinished)
            os.replace(unfinished, target)
            if durable and os.name == "posix":  # the new name itself; Windows has no such call
                with contextlib.suppress(OSError):
                    _sync(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()  # before the message tells how much is free
            raise


@contextlib.contextmanager
def whole_stream(file: Path, *, needed: int | None = None, durable: bool = False) -> Iterator[BinaryIO]:
    """A context to write a file in, as `whole_file`, that yields a stream.

    An error that the stream met is raised, also where the writer makes another error of it.
    """
    with whole_file(file, needed=needed, durable=durable) as unfinished:
        raw = _Recorder(unfinished, "wb")
        stream = io.BufferedWriter(raw)
        try:
            yield stream
            stream.close()
        except BaseException as error:
            with contextlib.suppress(OSError):
                stream.close()  # it tries to write the rest again
            if raw.error is not None and raw.error is not error:
                raise raw.error from error
            raise


def write_bytes(file: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file in one step, so that no reader sees half of it. Raises as `whole_file`."""
    with whole_stream(file, needed=len(content), durable=durable) as stream:
        stream.write(content)


def write_text(file: Path, text: str, *, durable: bool = False) -> None:
    """Write a file with this text, in UTF-8 and in one step. Raises as `whole_file`."""
    write_bytes(file, text.encode(), durable=durable)


def write_json(file: Path, value: Any) -> None:
    """Write a file with this value as JSON, in one step. Raises as `whole_file`."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where they are missing. Raises as `whole_file`."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


class GrowingFile:
    """A file that bytes are added to; they are with the system when `write` returns.

    Args:
        file: which is made if it is missing.

    Raises:
        NotWritten: the system refused, and the file is as it was before; or it is a link or no regular file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with writing(file):
            self._raw = open(file, "ab", buffering=0, opener=lambda name, flags: open_regular(Path(name), flags))

    def write(self, content: bytes) -> None:
        with writing(self.file, len(content)):
            rest, before = memoryview(content), os.fstat(self._raw.fileno()).st_size
            try:
                while rest:
                    rest = rest[self._raw.write(rest) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._raw.truncate(before)
                raise

    def close(self) -> None:
        with writing(self.file):
            self._raw.close()


def open_regular(file: Path, flags: int) -> int:
    """A descriptor of a regular file, as `os.open` gives it.

    Raises:
        NotWritten: the name is that of a link, whose target may be anything of the user's, or of no regular file.
    """
    check_regular(file)
    never = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # follow a link, or wait for a pipe's reader
    return os.open(file, flags | never, 0o666)


def check_regular(file: Path) -> None:
    """Raises NotWritten if something has this name that is no regular file, such as a link. None is well."""
    try:
        mode = os.lstat(file).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is another error
        what = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise NotWritten(f"{file}: is {what}; expected a file that only `libra train` writes, so remove it")


@contextlib.contextmanager
def writing(file: Path, needed: int | None = None) -> Iterator[None]:
    """A context in which an error of the system becomes one that names `file` and tells what room there is.

    Raises:
        NotWritten: as above.
        PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError: as they were, but naming `file`.
    """
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        cause = _of_system(error)
        if cause is None:
            raise
        if isinstance(cause, _MISTAKES):
            raise type(cause)(cause.errno, cause.strerror, str(file)) from error
        raise NotWritten(f"{file}: could not be written ({cause.strerror or cause}){_room(file, needed)}") from error


def check_room(folder: Path, needed: int, what: str) -> None:
    """Makes sure that the disk of a folder has room.

    Args:
        folder: which need not exist yet.
        needed: bytes.
        what: is to be written, for the message.

    Raises:
        NotWritten: telling what is needed and what is free.
    """
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise NotWritten(
            f"{folder}: {size_text(needed)} are needed for {what}, and {size_text(free)} are free on that disk; make "
            "room there, or choose a folder on another disk"
        )


def free_bytes(path: Path) -> int | None:
    """Bytes that are free for this user on the disk of `path`, or of the nearest folder above it; None: unknown."""
    path = path.absolute()
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(folder)
            return usage.free if usage.total > 0 else None  # some file systems do not tell, and say 0 of 0
    return None


def size_text(size: int) -> str:
    """Bytes as a person reads them: 135.2 MB."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.1f} {unit}"
    return f"{size} bytes"


def _is_special(file: Path) -> bool:
    """Whether there is something that is neither a regular file nor a folder: a pipe, a terminal, /dev/null."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


class _Recorder(io.FileIO):
    """Remembers why it could not write: PyTorch's writer tells a RuntimeError about a position instead."""

    error: BaseException | None = None

    def write(self, content: Any) -> int | None:
        try:
            return super().write(content)
        except BaseException as error:
            self.error = self.error or error
            raise


def _of_system(error: Exception) -> OSError | None:
    """The error of the system that this one is, or that its text tells as Rust does: ... (os error 28)."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def _room(file: Path, needed: int | None) -> str:
    free = free_bytes(file.parent)
    facts = [] if needed is None else [f"{size_text(needed)} are needed"]
    facts += [] if free is None else [f"{size_text(free)} are free on that disk"]
    return f": {', '.join(facts)}" if facts else ""


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
