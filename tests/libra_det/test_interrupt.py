"""Signals that end training with a checkpoint, and a terminal that is closed while there is training."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from libra_det.checkpoint import load_checkpoint
from libra_det.interrupt import Interruptible, drop_lost_terminal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_a_second_one_acts(number, capfd):
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Interruptible() as interrupt:
        assert interrupt.signal_number is None
        signal.raise_signal(number)
        assert interrupt.signal_number == number
        signal.raise_signal(signal.SIGHUP)  # a terminal that is closed sends two; systemd sends it after SIGTERM
        assert interrupt.signal_number == number
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {other: signal.getsignal(other) for other in before} == before
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptible() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal_number is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_output_that_is_no_terminal_is_left_alone(capfd):
    drop_lost_terminal()
    os.write(1, b"to a file")
    assert capfd.readouterr().out == "to a file"


class Terminal:
    """A terminal of 80 x 24 characters with a process in it."""

    def __init__(self, command: list[str], owned: bool) -> None:
        import fcntl
        import struct
        import termios

        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self.master, False)
        take = (lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if owned else None
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=take
        )
        os.close(slave)
        self.text = b""

    def wait_for(self, condition, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            with contextlib.suppress(OSError):  # nothing to read, or closed
                self.text += os.read(self.master, 10_000)
            assert self.process.poll() is None and time.monotonic() < deadline, self.text.decode()
            time.sleep(0.05)

    def close(self) -> None:
        os.close(self.master)


@pytest.mark.parametrize("owned", [True, False], ids=["which sends SIGHUP", "which it has left"])
def test_a_terminal_that_is_closed_costs_nothing(tiny_config, tmp_path, owned):
    """A process of the terminal gets a SIGHUP; a disowned one learns it from errors when it writes."""
    config = tiny_config(epochs=1000, ema_decay=0.0, momentum=0.0)  # whose checkpoints are small
    config = replace(config, data=replace(config.data, workers=2, batch_size=1))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    log = run / "log.jsonl"

    def lines() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    command = [sys.executable, "-m", "libra_det.cli", "train", "--output", run, "--resume", "--device", "cpu"]
    terminal = Terminal([str(part) for part in command], owned)
    try:
        terminal.wait_for(lambda: lines() > 1 and b"to go" in terminal.text)
        count = lines()
        terminal.close()
        if owned:
            os.kill(terminal.process.pid, signal.SIGHUP)  # as a shell that is closed too
        else:
            terminal.wait_for(lambda: lines() > count + 4)
            os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.process.wait(timeout=60) == (129 if owned else 143)
    finally:
        terminal.process.kill()
    checkpoint = load_checkpoint(run)
    assert checkpoint.epoch * checkpoint.steps_per_epoch + checkpoint.step >= count
    assert not (run / "lock").exists()
