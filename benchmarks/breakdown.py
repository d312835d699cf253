"""Where the time of a call goes, by kinds of work, from torch.profiler; and how often it waits for the device.

Each operation's own time (that of its kernels on a GPU) counts for one part: inside of Optimizer.step for the
optimizer, else by the operation's name. What the profiler does not see, such as Python between two operations, is
the rest up to the call's time under the profiler. On a GPU that rest is time in which no kernel runs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Plan

CALLS = 3  # that a breakdown is the mean of; one at sizes of no interest
MOST_OPERATIONS = 15  # listed singly in the JSON

MEASURED = "measured calls"
OPTIMIZER = "optimizer"

# The first of these parts that has a word of the operation's name; none: OTHER.
PARTS = {
    OPTIMIZER: ("optimizer.step",),  # and everything inside it
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution", "conv2d"),
    "fully connected": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("attention",),
    "libra_ops": ("libra_ops", "libra::"),
    "torchvision's operations": ("torchvision::",),
    "batch norm": ("batch_norm",),
    "pooling and resizing": ("pool", "upsample"),
    "sorting and choosing": ("sort", "topk", "nonzero", "aten::index", "gather", "scatter", "where", "embedding_bag"),
    "gradient's norm": ("vector_norm", "foreach_norm"),
}
OTHER, REST = "element-wise, copies and others", "between operations"

# What makes the host wait for the device, by the names of operations (which a CPU has too) and of CUDA's functions.
WAITS = {
    "values read by the host": ("aten::_local_scalar_dense",),
    "nonzero": ("aten::nonzero",),
    "synchronisations": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "copies to the host": ("Memcpy DtoH",),
}
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def part_of(name: str) -> str:
    """The part that an operation of this name counts for."""
    name = name.lower()
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), OTHER)


def break_down(call: Callable[..., Any], sets: Sequence[tuple], plan: Plan) -> dict:
    """Of one call, the mean of a few: {"seconds", "parts": seconds of each, "operations": the longest, "counts"}.

    "multiply-adds" are those of convolutions and matrix products, counted by torch.
    """
    with FlopCounterMode(display=False) as flops:
        call(*sets[0])
    calls = 1 if plan.sizes == "tiny" else CALLS
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.cuda else [])]
    _finish(plan)
    with profile(activities=activities, acc_events=True) as recorded:
        start = time.perf_counter()
        with record_function(MEASURED):
            for turn in range(calls):
                call(*sets[turn % len(sets)])
        _finish(plan)
        seconds = (time.perf_counter() - start) / calls
    everything = recorded.events()
    measured = next(event.time_range for event in everything if event.name == MEASURED)
    events = [event for event in everything if event.name != MEASURED]
    times: dict[str, float] = defaultdict(float)
    operations: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        own = _own_seconds(event, plan.cuda) / calls
        part = OPTIMIZER if _in_optimizer(event) else part_of(event.name)
        times[part] += own
        operations[part, event.name][0] += own
        operations[part, event.name][1] += 1
    parts = {part: times[part] for part in (*PARTS, OTHER) if times[part] > 0}
    parts[REST] = max(0.0, seconds - sum(parts.values()))
    longest = sorted(operations.items(), key=lambda item: -item[1][0])[:MOST_OPERATIONS]
    return {
        "seconds": seconds,
        "parts": parts,
        "operations": [[name, total, count / calls] for (_, name), (total, count) in longest],
        "counts": _counts([event for event in events if _belongs(event, measured)], calls, plan.cuda),
        "multiply-adds": flops.get_total_flops() // 2,
    }


def _finish(plan: Plan) -> None:
    if plan.cuda:
        torch.cuda.synchronize()


def _own_seconds(event: Any, cuda: bool) -> float:
    """Microseconds in the profiler. A kernel's time is that of the operation which launched it; its own event has none
    on the CPU."""
    if not cuda:
        return event.self_cpu_time_total / 1e6
    on_host = event.device_type == torch.autograd.DeviceType.CPU
    return event.self_device_time_total / 1e6 if on_host else 0.0


def _belongs(event: Any, measured: Any) -> bool:
    """To the measured calls, and not to the wait at their end. What the GPU does comes later than the host's part."""
    return event.device_type != torch.autograd.DeviceType.CPU or event.time_range.start <= measured.end


def _in_optimizer(event: Any) -> bool:
    while event is not None:
        if event.name.startswith("Optimizer.step"):
            return True
        event = event.cpu_parent
    return False


def _counts(events: list[Any], calls: int, cuda: bool) -> dict[str, float]:
    """How often a call waits, and what it launches; CUDA's functions are seen on a GPU only."""
    words = dict(WAITS) if cuda else {name: words for name, words in WAITS.items() if words[0].startswith("aten::")}
    if cuda:
        words["launches"] = LAUNCHES
    return {name: sum(event.name.startswith(those) for event in events) / calls for name, those in words.items()}
