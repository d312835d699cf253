"""What a user sees of training: a bar, RUN/log.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from libra_det.files import GrowingFile, NotWritten, check_regular, make_folder, write_text
from libra_det.interrupt import drop_lost_terminal
from libra_det.plain_json import parse_json

PLAIN_LINE_SECONDS = 20.0  # between two lines where the output is no terminal
SMOOTHING = 0.9  # share of the old value in the loss that the bar shows


class Progress:
    """Shows and records the steps of one call of `libra train`.

    Lines of log.jsonl and TensorBoard's scalars have the same names: loss/..., loss_share/..., learning_rate, ...
    A resumed run drops the lines after the step that it continues from, so that the log reads as that of one run.

    Args:
        run: the run folder; None where another process shows and records: then nothing is.
        epochs, steps_per_epoch: of the whole run.
        first_step: number of steps that were done before.

    Attributes:
        evaluated: steps after which the log has an evaluation.

    As a context it closes what it has opened; an error that ends the context is the one that is told.

    Raises:
        NotWritten: there is no room for the log or TensorBoard's file; also from `record`.
    """

    def __init__(self, run: Path | None, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self._silent = run is None
        self.evaluated: set[int] = set()
        if run is not None:
            self._log, self.evaluated = _open_log(run / "log.jsonl", first_step)
            self._unwritten = b""
            self._board = _Board(run / "tensorboard", first_step)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._bar: tqdm | None = None
        self._smooth_loss = math.nan
        self._images, self._seconds, self._steps = 0, 0.0, 0  # in training, in this call
        self._last_count, self._last_time, self._last_line = 0, 0.0, 0.0

    def start_epoch(self, epoch: int, step: int) -> None:
        """Open the bar of an epoch (0 is the first) at which `step` steps are done already."""
        self._bar = tqdm(
            total=self._steps_per_epoch,
            initial=step,
            desc=f"epoch {epoch + 1}/{self._epochs}",
            unit="step",
            disable=self._silent or not _is_terminal(),
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n}/{total}{postfix}",
        )
        self._start = self._last_time = time.perf_counter()
        self._last_count = self._images

    def end_epoch(self) -> None:
        self._seconds += time.perf_counter() - self._start
        self._close_bar()

    def step(self, step: int, images: int, loss: float, learning_rate: float) -> None:
        """Count a finished step (`step` of the whole run, from 1) and show it."""
        if self._silent:
            return
        self._images += images
        self._steps += 1
        self._smooth_loss = (
            loss if math.isnan(self._smooth_loss) else SMOOTHING * self._smooth_loss + (1 - SMOOTHING) * loss
        )
        seconds = self._seconds + time.perf_counter() - self._start
        rest = (self._epochs * self._steps_per_epoch - step) * seconds / self._steps
        speed = self._images / seconds
        text = f"loss {self._smooth_loss:.4f}, lr {learning_rate:.2g}, {speed:.1f} images/s, {_clock(rest)} to go"
        if not self._bar.disable:
            with _seen_or_not():
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update()
        elif time.perf_counter() - self._last_line > PLAIN_LINE_SECONDS or step % self._steps_per_epoch == 0:
            self._last_line = time.perf_counter()
            epoch, done = divmod(step - 1, self._steps_per_epoch)
            line = f"epoch {epoch + 1}/{self._epochs} step {done + 1}/{self._steps_per_epoch}: {text}"
            with _seen_or_not():
                print(line, file=sys.stderr, flush=True)

    def images_per_second(self, now: float) -> float:
        """From the `now` of the last call of this function, or the epoch's start, to this one (`time.perf_counter`)."""
        rate = (self._images - self._last_count) / max(now - self._last_time, 1e-9)
        self._last_count, self._last_time = self._images, now
        return rate

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Write a line of the log, and its numbers to TensorBoard."""
        if self._silent:
            return
        self._unwritten += (json.dumps({"step": step, **values}) + "\n").encode()
        self._write_log()
        if any(name.startswith("evaluation/") for name in values):
            self.evaluated.add(step)
        self._board.add(step, {name: value for name, value in values.items() if isinstance(value, (int, float))})

    def close(self) -> None:
        self._close_bar()
        if not self._silent:
            with contextlib.closing(self._board), contextlib.closing(self._log):
                self._write_log()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(NotWritten) if kind is not None else contextlib.nullcontext():
            self.close()

    def _write_log(self) -> None:
        self._log.write(self._unwritten)  # with the lines that there was no room for
        self._unwritten = b""

    def _close_bar(self) -> None:
        if self._bar is not None:
            with _seen_or_not():
                self._bar.close()


class _Board:
    """TensorBoard's file of a run's numbers, written step by step.

    `SummaryWriter` leaves the writing to a thread, whose errors come late and with a traceback of its own.

    Args:
        folder: for the file; it is created.
        first_step: number of steps that were done before. What older files say of later ones is not shown any more.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_folder(folder)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = GrowingFile(folder / name)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if first_step:
            self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, numbers: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _open_log(file: Path, first_step: int) -> tuple[GrowingFile, set[int]]:
    """The log, open for appending, without lines beyond `first_step` and without a line that was cut off.

    Also the steps of the evaluations that it holds.
    """
    check_regular(file)
    kept, evaluated = [], set()
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            values = parse_json(line)
            if type(values["step"]) is not int or values["step"] > first_step:
                continue
        except (ValueError, KeyError, TypeError):  # the process was killed while it wrote this line
            continue
        kept.append(line + "\n")
        if any(name.startswith("evaluation/") for name in values):
            evaluated.add(values["step"])
    if file.exists():
        write_text(file, "".join(kept))
    return GrowingFile(file), evaluated


@contextlib.contextmanager
def _seen_or_not() -> Iterator[None]:
    """What is shown here need not be seen: training goes on when the terminal is closed, or its output has no room."""
    try:
        yield
    except OSError:
        drop_lost_terminal()


def _is_terminal() -> bool:
    """True if a bar would be seen; a terminal of size 0 (in some containers) would show none."""
    return sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno()))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
