"""The clocks: one sample is the time of one call of one side.

CPU: time.perf_counter around as many calls as make a sample last a millisecond, over rotating input sets.
CUDA: events around one call, with a cold L2 (a buffer of four times its size is read before, which leaves no dirty
lines), after a spin of about a millisecond during which the host can enqueue the call: the time of the device, not of
the launches. That holds only while the host needs less than the spin: it is timed too (`enqueue`), and a side that
needs more is marked, since the device then waits for it within the measured time. `call_seconds` is what a loop pays:
wall time per call, back to back, launches included.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

SHORTEST_SAMPLE = 1e-3  # seconds
SPIN_CYCLES = 2_000_000  # about a millisecond


class CpuClock:
    def sample(self, call: Callable[..., Any], sets: Sequence[tuple], calls: int) -> float:
        """Seconds per call."""
        count = len(sets)
        start = time.perf_counter()
        for i in range(calls):
            call(*sets[i % count])
        return (time.perf_counter() - start) / calls

    def calls_per_sample(self, seconds: float) -> int:
        return max(1, round(SHORTEST_SAMPLE / max(seconds, 1e-9)))

    @contextlib.contextmanager
    def no_synchronisation(self) -> Iterator[None]:
        yield

    def finish(self) -> None:
        pass


class CudaClock:
    def __init__(self, device: torch.device) -> None:
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.ones(max(4 * l2, 64 << 20) // 4, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._turn = 0
        self.enqueue = 0.0  # seconds of the host for the last sample's call
        self.spin = min(self._spin_seconds() for _ in range(5))

    def sample(self, call: Callable[..., Any], sets: Sequence[tuple], calls: int = 1) -> float:
        """Seconds of the device for one call; `calls` is not used."""
        self._turn += 1
        arguments = sets[self._turn % len(sets)]
        self._flush.sum()
        begin = time.perf_counter()  # the spin starts later than this
        torch.cuda._sleep(SPIN_CYCLES)
        self._start.record()
        call(*arguments)
        self._end.record()
        self.enqueue = time.perf_counter() - begin
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def _spin_seconds(self) -> float:
        self._start.record()
        torch.cuda._sleep(SPIN_CYCLES)
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def calls_per_sample(self, seconds: float) -> int:
        return 1

    def call_seconds(self, call: Callable[..., Any], sets: Sequence[tuple], seconds: float) -> float:
        """Wall time per call, back to back; `seconds`: what one call takes, about."""
        calls = min(200, max(3, round(0.01 / max(seconds, 1e-6))))
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            call(*sets[i % len(sets)])
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    @contextlib.contextmanager
    def no_synchronisation(self) -> Iterator[None]:
        """Raises if what runs inside waits for the GPU."""
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def finish(self) -> None:
        torch.cuda.synchronize()
