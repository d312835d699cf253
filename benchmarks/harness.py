"""Runs the cases: checks that the sides agree, times them interleaved, measures peak memory.

Interleaved: in every round each side that is still owed a sample gives one, spread evenly, so that whatever else the
machine does meets all sides alike. Reported are the median and the quartiles. A side that cannot run says why.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.breakdown import break_down
from benchmarks.case import COPY, OURS, Case, Mismatch, Plan, Side
from benchmarks.clock import CpuClock, CudaClock

Clock = CpuClock | CudaClock

MOST_SETS = 4
SETS_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}  # of all input sets together; one at least
SHARE_OF_MEMORY = 0.6  # of what is available, that a side may need


@dataclass
class Contestant:
    """A side with its input sets, and the times it has so far."""

    call: Callable[..., Any]
    sets: Sequence[tuple]
    calls: int
    samples: int
    times: list[float]
    enqueues: list[float]  # on a GPU: seconds of the host for each sample

    def turned_sets(self) -> Sequence[tuple]:
        """Beginning with another one for each sample, which may be a single call."""
        first = len(self.times) % len(self.sets)
        return [*self.sets[first:], *self.sets[:first]]


def input_set(case: Case, side: Side, device: torch.device, seed: int) -> tuple:
    """What `side.call` takes, on the device."""
    tensors = _on(device, case.make(torch.Generator().manual_seed(seed)))
    return side.prepare(tensors) if side.prepare else tensors


def run_case(case: Case, plan: Plan, clock: Clock, say: Callable[[str], None] = lambda text: None) -> dict:
    """The result of one case, as it is written to the JSON.

    A side that disagrees with ours or fails is not timed; "failures" tells of it, and the run ends with an error.
    """
    torch.compiler.reset()  # else the ninth shape of a function would be run eagerly, without a word
    if plan.cuda:
        torch.cuda.empty_cache()
    start = time.perf_counter()
    count = _set_count(case, plan)
    raw = [_on(plan.device, case.make(torch.Generator().manual_seed(seed))) for seed in range(count)]
    sides = dict(case.sides)
    if not case.operations and not case.whole:
        sides[COPY] = copy_side(case.bytes, plan.device)
    result = _head(case) | {"input sets": count, "checks": {}, "sides": {name: {} for name in sides}, "failures": []}
    if case.visits:
        result["visits"] = round(statistics.mean(case.visits(*one) for one in raw))
        result["visit operations"] = case.visit_operations * result["visits"]
    contestants: dict[str, Contestant] = {}
    ours: Any = None
    for name, side in sides.items():
        say(name)
        if reason := why_not(side, plan):
            result["sides"][name] = {"not run": reason}
            continue
        try:
            sets = [side.prepare(one) if side.prepare else one for one in (raw[:1] if side.one_set else raw)]
            outcome = side.call(*sets[0])
            clock.finish()
            if name == OURS:
                ours = outcome
                with nullcontext() if case.whole else clock.no_synchronisation():
                    side.call(*sets[0])
            elif side.agrees is not None and ours is not None:
                remark = side.agrees(ours, outcome)
                result["checks"][name] = remark or "agrees"
            elif name != COPY:
                result["checks"][name] = side.note or "not compared"
            del outcome
            contestants[name] = _enter(side, sets, plan, clock, case.fewest)
        except torch.OutOfMemoryError:
            result["sides"][name] = {"not run": f"ran out of memory, would need {side.needs / 1e9:.3g} GB"}
        except Exception as error:
            what = "does not agree" if isinstance(error, Mismatch) else f"failed: {type(error).__name__}"
            result["sides"][name] = {"not run": what.upper()}
            result["failures"].append(f"{case.subject}, {case.name}, {name} {what}: {error}")
    del ours
    say("timing")
    _time(contestants, clock)
    whole_calls = _time_whole_calls(contestants, clock) if isinstance(clock, CudaClock) else {}
    for name, contestant in contestants.items():
        found = _summary(contestant)
        if isinstance(clock, CudaClock):
            found["call"] = whole_calls[name]
            found["enqueue"] = statistics.median(contestant.enqueues)
            found["hidden"] = found["enqueue"] <= clock.spin
        if sides[name].note:
            found["note"] = sides[name].note
        if case.memory and sides[name].peak and name != COPY and _memory_wanted(name, case, plan):
            say(f"memory of {name}")
            found |= _peak(case, name, contestant, plan)
        if sides[name].breakdown:
            say(f"breakdown of {name}")
            found["breakdown"] = break_down(contestant.call, contestant.sets, plan)
        result["sides"][name] = found
    for side in sides.values():
        if side.release is not None:
            side.release()
    return result | {"seconds": round(time.perf_counter() - start, 2)}


def left_out(case: Case, reason: str) -> dict:
    """The result of a case that was not run."""
    sides = {name: {"not run": reason} for name in case.sides}
    return _head(case) | {"checks": {}, "sides": sides, "failures": []}


def _head(case: Case) -> dict:
    return {
        "subject": case.subject,
        "case": case.name,
        "size": case.size,
        "bytes": case.bytes,
        "operations": case.operations,
        "training": case.training,
        **({"images": case.images} if case.images else {}),
        **case.extra,
    }


def copy_side(total: int, device: torch.device) -> Side:
    """A copy that reads and writes `total` bytes together."""
    source = torch.ones(max(1, total // 8), device=device)
    target = torch.empty_like(source)
    return Side(call=lambda *_: target.copy_(source), one_set=True)


def why_not(side: Side, plan: Plan) -> str:
    """Why a side is not run, or nothing."""
    if side.needs > SHARE_OF_MEMORY * memory.available(plan.device):
        return f"would need {side.needs / 1e9:.3g} GB"
    if side.compiled and not plan.compile:
        return "left out of this run"
    return side.not_run


def _memory_wanted(name: str, case: Case, plan: Plan) -> bool:
    """Of whole programs on a GPU that of all sides, which takes two calls more."""
    all_sides = plan.memory == "all" or (plan.memory == "ours" and case.whole and plan.cuda)
    return all_sides or (plan.memory == "ours" and name == OURS)


def _set_count(case: Case, plan: Plan) -> int:
    """Several input sets where they are small, so that neither caches nor branch prediction know one by heart."""
    if case.whole:
        return 1 if plan.sizes == "tiny" else MOST_SETS
    values = case.make(torch.Generator().manual_seed(0))
    size = sum(value.nbytes for value in values if isinstance(value, Tensor))
    return max(1, min(MOST_SETS, SETS_BYTES[plan.device.type] // max(size, 1)))


def _on(device: torch.device, values: tuple) -> tuple:
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in values)


def _enter(side: Side, sets: Sequence[tuple], plan: Plan, clock: Clock, fewest: int) -> Contestant:
    """Warm the side up, and find out how many samples it is owed."""
    for arguments in sets:
        side.call(*arguments)
    clock.finish()
    seconds = clock.sample(side.call, sets, 1)
    if seconds < plan.seconds / 10:
        seconds = min(seconds, clock.sample(side.call, sets, clock.calls_per_sample(seconds)))
    calls = clock.calls_per_sample(seconds)
    samples = math.floor(plan.seconds / max(seconds * calls, 1e-9))
    return Contestant(side.call, sets, calls, min(plan.samples, max(plan.fewest, fewest, samples)), [], [])


def _time(contestants: dict[str, Contestant], clock: Clock) -> None:
    rounds = max((contestant.samples for contestant in contestants.values()), default=0)
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds):
            for one in contestants.values():
                if (round_ + 1) * one.samples // rounds > len(one.times):
                    one.times.append(clock.sample(one.call, one.turned_sets(), one.calls))
                    if isinstance(clock, CudaClock):
                        one.enqueues.append(clock.enqueue)
    finally:
        gc.enable()


def _time_whole_calls(contestants: dict[str, Contestant], clock: CudaClock) -> dict[str, float]:
    """Seconds of a call with everything the host does for it, the sides in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(3):
        for name, one in contestants.items():
            times[name].append(clock.call_seconds(one.call, one.sets, statistics.median(one.times)))
    return {name: statistics.median(found) for name, found in times.items()}


def _summary(contestant: Contestant) -> dict:
    times = sorted(contestant.times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "median": statistics.median(times),
        "low": low,
        "high": high,
        "samples": len(times),
        "calls per sample": contestant.calls,
    }


def _peak(case: Case, name: str, contestant: Contestant, plan: Plan) -> dict:
    if plan.cuda:
        return memory.peak_on_cuda(lambda: contestant.call(*contestant.sets[0]))
    return memory.peak_in_a_process(case.subject, case.name, name, plan.sizes)
