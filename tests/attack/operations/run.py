"""Hostile calls in batches: each batch in a child, and where one crashes, the next child goes on behind it."""

from __future__ import annotations

import functools
import gc
import mmap
import resource
import signal
import struct
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from tests.attack.children import MB, run_forked, virtual_memory
from tests.attack.operations.call import KINDS, Call
from tests.attack.table import FAILED, HANDLED, REFUSED, Outcome, Table, from_line, to_line

CALLS_OF_A_CHILD = 2000
SECONDS_OF_A_CALL = 10.0  # of computing; a call that waits has six times as long
_OUT_OF_TIME = (signal.SIGPROF, signal.SIGALRM)
_VERDICTS = (REFUSED, HANDLED, FAILED)
_NONE = 255


class Progress:
    """Memory that a child shares with its parent: the number of the call it is at, and the verdict of each before."""

    def __init__(self, calls: int) -> None:
        self._memory = mmap.mmap(-1, 8 + 2 * calls)
        self._memory[8:] = bytes([_NONE]) * (2 * calls)

    @property
    def current(self) -> int:
        return struct.unpack("q", self._memory[:8])[0]

    def begin(self, number: int) -> None:
        self._memory[:8] = struct.pack("q", number)

    def set_kind(self, place: int, kind: int) -> None:
        self._memory[8 + 2 * place] = kind

    def set_verdict(self, place: int, verdict: int) -> None:
        self._memory[9 + 2 * place] = verdict

    def get(self, place: int) -> tuple[int, int]:
        return self._memory[8 + 2 * place], self._memory[9 + 2 * place]


def attack_operations(
    first: int, calls: int, seed: int, folder: Path, *, memory_mb: int | None = 2048, tell: bool = True
) -> Table:
    """Calls `first` to `first + calls - 1`. memory_mb: of a child's address space; None under AddressSanitizer."""
    prepare()
    table, start, told = Table(folder), time.monotonic(), time.monotonic()
    for begin in range(first, first + calls, CALLS_OF_A_CHILD):
        _batch(begin, min(begin + CALLS_OF_A_CHILD, first + calls), seed, table, memory_mb)
        if tell and time.monotonic() - told > 15:
            told = time.monotonic()
            print(f"{table.tried} calls, {table.failed} failed, {told - start:.0f} s", flush=True)
    return table


def prepare() -> None:
    """Before children are forked: one thread, as those of OpenMP do not survive a fork; and no words of NumPy's."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    gc.collect()
    gc.freeze()


def _batch(begin: int, end: int, seed: int, table: Table, memory_mb: int | None) -> None:
    while begin < end:
        progress = Progress(end - begin)
        with tempfile.TemporaryDirectory() as scratch:
            failures = Path(scratch) / "failures"
            failures.touch()
            ended = run_forked(
                functools.partial(_calls, begin, end, seed, progress, failures),
                seconds=SECONDS_OF_A_CALL * (end - begin),
                address_space=None if memory_mb is None else memory_mb * MB,
                output=Path(scratch) / "output",
            )
            whole = ended.code == 0
            stop = end if whole else progress.current
            for number in range(begin, stop):
                kind, verdict = progress.get(number - begin)
                if _VERDICTS[verdict] != FAILED:
                    table.count(KINDS[kind], _VERDICTS[verdict])
            for line in failures.read_text().splitlines():
                table.add(from_line(line))
            if whole:
                return
            words = (Path(scratch) / "output").read_text(errors="backslashreplace")
            reason = "time-out" if ended.signal in _OUT_OF_TIME else ended.reason
            table.add(_of_crash(begin, stop, seed, reason, words, progress, memory_mb))
        begin = stop + 1


def _calls(begin: int, end: int, seed: int, progress: Progress, failures: Path) -> int:
    """In the child."""
    with open(failures, "w") as stream:
        for number in range(begin, end):
            progress.begin(number)
            _start_clock()
            call = Call(seed, number)
            progress.set_kind(number - begin, KINDS.index(call.operation.name))
            outcome = call.run()
            progress.set_verdict(number - begin, _VERDICTS.index(outcome.verdict))
            if outcome.verdict == FAILED:
                stream.write(to_line(outcome))
                stream.flush()
    return 0


def _start_clock() -> None:
    """The signals end the process by themselves, so that a kernel that does not return is stopped too."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS_OF_A_CALL)
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS_OF_A_CALL)


def _of_crash(
    begin: int, number: int, seed: int, reason: str, words: str, progress: Progress, memory_mb: int | None
) -> Outcome:
    """What the child was at when it ended; run once more by itself, as an earlier call may have done the harm."""
    kind, _ = progress.get(number - begin)
    name = KINDS[kind] if kind != _NONE else "drawing a call"
    with tempfile.TemporaryDirectory() as scratch:
        described, output = Path(scratch) / "described", Path(scratch) / "output"
        alone = run_forked(
            functools.partial(_one, seed, number, described),
            seconds=3 * SECONDS_OF_A_CALL,
            address_space=None if memory_mb is None else memory_mb * MB,
            output=output,
        )
        details = described.read_text(errors="backslashreplace") if described.exists() else ""
        details += "\n" + words[-4000:] + "\n" + output.read_text(errors="backslashreplace")[-4000:]
    if alone.code == 0:
        reason += f", but not by itself: look at the calls from {begin} on"
    return Outcome(number, name, FAILED, reason, details)


def _one(seed: int, number: int, described: Path) -> int:
    call = Call(seed, number)
    described.write_text(call.described(), errors="backslashreplace")
    _start_clock()
    call.run()
    return 0


def show_call(seed: int, number: int) -> int:
    """Prints one call and what becomes of it, in this process, where a debugger can be."""
    prepare()
    limit = virtual_memory() + 2048 * MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    call = Call(seed, number)
    print(call.described(), flush=True)
    outcome = call.run()
    print(f"\n{outcome.verdict} {outcome.cause}\n{outcome.details}")
    return int(outcome.verdict == FAILED)
