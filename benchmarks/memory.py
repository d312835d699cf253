"""Peak memory of one call beyond its inputs.

CUDA: torch.cuda.max_memory_allocated. CPU: a process of its own per side, so that no other side's memory is reused
unseen. There the call is made once to warm up, freed memory is given back to the system, Linux forgets the process's
high-water mark (/proc/self/clear_refs), and the call is made again: the mark less what was resident before is the peak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 120  # seconds for one process


def peak_on_cpu(call: Callable[[], Any]) -> dict[str, int]:
    """{"peak": bytes beyond what was there before the call, "result": bytes of the tensors that it returned}."""
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = _status("VmRSS")
    result = call()
    return {"peak": max(0, _status("VmHWM") - before), "result": bytes_of(result)}


def peak_on_cuda(call: Callable[[], Any]) -> dict[str, int]:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return {"peak": torch.cuda.max_memory_allocated() - before, "result": bytes_of(result)}


def bytes_of(result: Any) -> int:
    """Of all tensors in a result."""
    if isinstance(result, (tuple, list)):
        return sum(map(bytes_of, result))
    return result.nbytes if isinstance(result, Tensor) or hasattr(result, "nbytes") else 0


def available(device: torch.device) -> int:
    """Bytes that can be allocated."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def peak_in_a_process(subject: str, case: str, side: str, sizes: str) -> dict[str, int]:
    """`peak_on_cpu` of one side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", subject, case, side, sizes, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST)
    if done.returncode:
        raise RuntimeError(f"peak memory of {subject}, {case}, {side}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def _main() -> None:
    from benchmarks.case import Plan
    from benchmarks.harness import input_set
    from benchmarks.subjects import cases_of

    parser = argparse.ArgumentParser()
    for name in ("subject", "case", "side", "sizes", "threads"):
        parser.add_argument(name)
    asked = parser.parse_args()
    torch.set_num_threads(int(asked.threads))
    plan = Plan(torch.device("cpu"), sizes=asked.sizes)
    (case,) = (case for case in cases_of(asked.subject, plan) if case.name == asked.case)
    side = case.sides[asked.side]
    arguments = input_set(case, side, plan.device, seed=0)
    print(json.dumps(peak_on_cpu(lambda: side.call(*arguments))))


if __name__ == "__main__":
    _main()
