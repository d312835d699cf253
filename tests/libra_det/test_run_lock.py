"""A run folder has one owner: of many that begin at once, over a dead owner's lock, and after the owner's end."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from libra_det import run_lock
from libra_det.files import NotWritten
from libra_det.run_lock import RunLock, RunLocked, is_alive

posix = pytest.mark.skipif(os.name != "posix", reason="processes and locks of POSIX")

RACER = """
import os, sys, time
from pathlib import Path
from libra_det.run_lock import RunLock, RunLocked
run, owners, begin, end = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
time.sleep(max(0.0, begin - time.time()))
try:
    lock = RunLock(run)
except RunLocked:
    print("refused")
else:
    (owners / str(os.getpid())).touch()
    print("owner")
    while not end.exists():
        time.sleep(0.01)
    (owners / str(os.getpid())).unlink()
    if "released" in sys.argv[5]:
        lock.release()
"""


def lock_of(run) -> dict:
    return json.loads((run / "lock").read_text())


def of(owner: dict, **changes) -> dict:
    return {**owner, **changes}


def test_there_is_one_owner_until_it_ends(tmp_path):
    lock = RunLock(tmp_path)
    assert lock_of(tmp_path)["pid"] == os.getpid()
    with pytest.raises(
        RunLocked, match=rf"process {os.getpid()} on .* has had it since 2.*; wait for its end.*another --output$"
    ):
        RunLock(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path):
        assert (tmp_path / "lock").exists()
    lock.release()  # a second time
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("end", ["killed", "released"])
def test_of_many_that_begin_at_once_one_is_the_owner(tmp_path, end):
    """Three times: over no lock, then over that of an owner that was killed, or of one that has gone in order."""
    run, owners = tmp_path / "run", tmp_path / "owners"
    run.mkdir()
    owners.mkdir()
    for attempt in range(3):
        over = tmp_path / f"over {attempt}"
        command = [sys.executable, "-c", RACER, run, owners, str(time.time() + 1.5), over, end]
        racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        told = {}
        try:
            for racer in racers:
                told[racer] = racer.stdout.readline().strip()
            assert sorted(told.values()) == ["owner", *["refused"] * 7]
            owner = next(racer for racer in racers if told[racer] == "owner")
            assert [file.name for file in owners.iterdir()] == [str(owner.pid)]
            assert lock_of(run)["pid"] == owner.pid
            if end == "killed":  # and not reaped, as of a parent that waits for something else
                owner.kill()
                (owners / str(owner.pid)).unlink()
                while run_lock._process(owner.pid)[0] not in "Z":
                    time.sleep(0.01)
        finally:
            over.touch()
            if end == "released":
                assert [racer.wait() for racer in racers] == [0] * 8
        assert (run / "lock").exists() == (end == "killed")
    for racer in racers:
        racer.kill()


@posix
def test_a_fork_does_not_release_it(tmp_path):
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert lock_of(tmp_path)["pid"] == os.getpid()
    lock.release()


@posix
def test_who_is_alive(tmp_path):
    with RunLock(tmp_path):
        own = lock_of(tmp_path)
    assert is_alive(own, age=1e9)  # whatever its age: this process can be asked
    assert is_alive(of(own, process_start=None), age=0)  # where Linux does not tell
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_alive(of(own, pid=ended.pid), age=0)
    assert not is_alive(of(own, pid=10**30), age=0)
    if own["process_start"] is not None:
        assert not is_alive(of(own, process_start=own["process_start"] - 1), age=0)  # its number, given again
    if own["boot_id"] is not None:
        assert not is_alive(of(own, boot_id="another"), age=0)  # before the host was started again
    other = of(own, host="another")
    container = of(own, pid=ended.pid, pid_namespace="pid:[7]")  # on this host, and by its host name too
    assert is_alive(container, age=14 * 60) and not is_alive(container, age=16 * 60)
    assert is_alive(other, age=14 * 60) and is_alive(other, age=-60) and not is_alive(other, age=16 * 60)


@posix
def test_another_hosts_lock_is_judged_by_its_last_sign_of_life(tmp_path):
    with RunLock(tmp_path):
        own = lock_of(tmp_path)
    (tmp_path / "lock").write_text(json.dumps(of(own, host="another", pid=7)))
    with pytest.raises(RunLocked, match="process 7 on another has had it since"):
        RunLock(tmp_path)
    os.utime(tmp_path / "lock", (time.time() - 901,) * 2)
    with RunLock(tmp_path):
        assert lock_of(tmp_path)["pid"] == os.getpid()


@posix
def test_the_age_is_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    with RunLock(tmp_path):
        own = lock_of(tmp_path)
    (tmp_path / "lock").write_text(json.dumps(of(own, host="another", pid=7)))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)  # this host's is an hour ahead
    with pytest.raises(RunLocked):
        RunLock(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_an_owner_knows_whether_it_was_taken_over(tmp_path):
    with RunLock(tmp_path) as lock:
        assert lock.still_mine()
        (tmp_path / "lock").write_text("another's by now")
        assert not lock.still_mine()
        (tmp_path / "lock").unlink()
        assert lock.still_mine()  # nobody has it


@posix
@pytest.mark.parametrize("kind", ["a link", "no regular file"])
def test_what_is_no_regular_file_is_left_alone(tmp_path, kind):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("a user's")
    run.mkdir()
    if kind == "a link":
        (run / "lock").symlink_to(precious)
    else:
        os.mkfifo(run / "lock")
    with pytest.raises(NotWritten, match=f"lock: is {kind}; expected a file that only `libra train` writes"):
        RunLock(run)
    assert precious.read_text() == "a user's"


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    looks = []

    def content(descriptor, read=run_lock._content):
        looks.append(descriptor)
        return read(descriptor)

    monkeypatch.setattr(run_lock, "TOUCHED_EVERY", 0.02)
    monkeypatch.setattr(run_lock, "_content", content)
    with RunLock(tmp_path):
        os.utime(tmp_path / "lock", (1000, 1000))
        deadline = time.monotonic() + 20
        while (tmp_path / "lock").stat().st_mtime == 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (tmp_path / "lock").write_text("another's by now")
        os.utime(tmp_path / "lock", (1000, 1000))
        looked = len(looks)
        while len(looks) < looked + 3:  # the third begins when the second, which saw another's lock, is over
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime == 1000
    assert (tmp_path / "lock").read_text() == "another's by now"  # which is not this one's to remove


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}', '{"host": 1, "pid": "x"}', "\x00" * 50])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path, text):
    """Damages a file as a killed process or a loss of power does."""
    (tmp_path / "lock").write_text(text)
    with RunLock(tmp_path):
        assert lock_of(tmp_path)["pid"] == os.getpid()


@posix
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    monkeypatch.setattr(run_lock, "_SETTLED", 0.01)
    with RunLock(tmp_path):
        with pytest.raises(RunLocked):
            RunLock(tmp_path)
    sleep = time.sleep
    other = {"host": "another", "pid": 7, "process_start": None, "boot_id": None, "started": "now"}
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "lock").write_text(json.dumps(other)))
    with pytest.raises(RunLocked, match="process 7 on another"):  # which wrote after this one
        RunLock(tmp_path)
    monkeypatch.setattr(time, "sleep", sleep)
