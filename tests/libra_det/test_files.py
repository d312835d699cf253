"""Files: whole or not there, whatever ends the writing; an error says which file, why, and what room there is."""

import errno
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from file_limit import files_of_at_most
from safetensors.torch import save_file

from libra_det import files
from libra_det.files import (
    GrowingFile,
    NotWritten,
    check_room,
    make_folder,
    size_text,
    whole_file,
    whole_stream,
    write_bytes,
    write_text,
    writing,
)

posix = pytest.mark.skipif(os.name != "posix", reason="limits, links and pipes of POSIX")


def refuse(code: int):
    def raise_it(*_, **__):
        raise OSError(code, os.strerror(code))

    return raise_it


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_the_writing_leaves_the_old_file_alone(tmp_path, error):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(error), whole_stream(file) as stream:
        stream.write(b"new")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_the_system_refuses_is_one_error(tmp_path, monkeypatch, code, call):
    monkeypatch.setattr(os, call, refuse(code))
    with pytest.raises(NotWritten) as caught:
        write_text(tmp_path / "a.txt", "new", durable=True)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'a.txt'}: could not be written ({os.strerror(code)}): 3 bytes are needed, ")
    assert told.endswith("B are free on that disk")
    assert list(tmp_path.iterdir()) == []


def test_what_is_free_is_told_without_the_part_that_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda folder: sum(file.stat().st_size for file in folder.iterdir()))
    with pytest.raises(NotWritten, match="0 bytes are free"), whole_stream(tmp_path / "a") as stream:
        stream.write(bytes(100))
        stream.flush()
        refuse(errno.ENOSPC)()


def test_a_name_that_cannot_be_written_to_is_the_users_mistake(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "folder", "text")
    assert caught.value.filename == str(tmp_path / "folder")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        write_text(tmp_path / "file", "text")
        make_folder(tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_writers_at_the_same_time_are_not_in_each_others_way(tmp_path):
    file = tmp_path / "a.txt"
    with whole_file(file) as first, whole_file(file) as second:
        first.write_text("first")
        second.write_text("second")
    assert first != second and first.name.endswith(files.UNFINISHED) and str(os.getpid()) in first.name
    assert file.read_text() == "first"


def test_long_names_can_be_written(tmp_path):
    write_text(tmp_path / ("é" * 120), "text")


def test_the_mode_is_that_of_the_users_files(tmp_path):
    (tmp_path / "usual").touch()
    with whole_file(tmp_path / "weights") as unfinished:
        save_file({"a": torch.zeros(3)}, unfinished)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "weights")]
    assert modes[0] == modes[1]


def test_a_file_system_without_modes(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "chmod", refuse(errno.EPERM))
    with whole_file(tmp_path / "weights") as unfinished:
        save_file({"a": torch.zeros(3)}, unfinished)
    write_text(tmp_path / "text", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "weights"]


@posix
def test_a_name_that_the_disk_does_not_confirm_is_written(tmp_path, monkeypatch):
    sync = files._sync
    monkeypatch.setattr(files, "_sync", lambda path: refuse(errno.EIO)() if path.is_dir() else sync(path))
    write_text(tmp_path / "a.txt", "new", durable=True)
    assert (tmp_path / "a.txt").read_text() == "new"


@posix
def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    for text in ("first", "second"):  # the target is missing, then there
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == text
    assert len(list(tmp_path.iterdir())) == 2


@posix
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_given_the_content_and_stays(tmp_path, linked):
    pipe = file = tmp_path / "pipe"
    os.mkfifo(pipe)
    if linked:
        file = tmp_path / "link"
        file.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(file, "text", durable=True)
    assert os.read(reader, 100) == b"text" and pipe.is_fifo()
    os.close(reader)


@posix
def test_a_growing_file_is_no_link(tmp_path):
    (tmp_path / "precious").write_text("a user's")
    (tmp_path / "log").symlink_to("precious")
    with pytest.raises(NotWritten, match="log: is a link"):
        GrowingFile(tmp_path / "log")
    assert (tmp_path / "precious").read_text() == "a user's"


def write_by(kind: str, file: Path) -> None:
    if kind == "torch":
        with whole_stream(file, needed=400_000) as stream:
            torch.save({"a": torch.zeros(100_000)}, stream)
    elif kind == "safetensors":
        with whole_file(file, needed=400_000) as unfinished:
            save_file({"a": torch.zeros(100_000)}, unfinished)
    elif kind == "bytes":
        write_bytes(file, bytes(400_000))
    else:
        growing = GrowingFile(file)
        growing.write(b"before")
        growing.write(bytes(400_000))


@posix
@pytest.mark.parametrize("kind", ["torch", "safetensors", "bytes", "growing"])
def test_a_real_limit_is_told_whoever_writes(tmp_path, kind):
    """EFBIG of the system, met by PyTorch's C++, by safetensors' Rust, and by Python."""
    file = tmp_path / "file"
    with files_of_at_most(100_000), pytest.raises(NotWritten) as caught:
        write_by(kind, file)
    assert str(caught.value).startswith(f"{file}: could not be written (File too large): 400.0 kB are needed, ")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"before"] if kind == "growing" else [])


def test_errors_of_others_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_a_growing_file_grows(tmp_path):
    for part in (b"a", b"b"):
        file = GrowingFile(tmp_path / "log")
        file.write(part)
        file.close()
    assert (tmp_path / "log").read_bytes() == b"ab"


def test_room_is_looked_at_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000, total=10**12))
    check_room(tmp_path / "not" / "there", 2_000_000, "two checkpoints")
    with pytest.raises(NotWritten, match=r"2\.5 GB are needed for two checkpoints, and 2\.0 MB are free"):
        check_room(tmp_path, 2_500_000_000, "two checkpoints")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0, total=0))  # which is unknown, not full
    check_room(tmp_path, 2_500_000_000, "two checkpoints")


def test_sizes_are_readable():
    assert [size_text(size) for size in (0, 999, 1000, 135_240_000, 2 * 10**9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "135.2 MB",
        "2.0 GB",
    ]
