"""What the machine allows, measured in the same run: bytes copied and fused multiply-adds, per second.

A copy of n bytes reads n and writes n: it moves 2 n. A multiply-add counts as one instruction for one number, so that
instruction counts of a kernel can be held against it.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.clock import CudaClock

COPIED_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}  # read; well beyond any cache


def measure_ceilings(device: torch.device, copied_bytes: int | None = None) -> dict[str, float | None]:
    """{"copy": bytes per second, read and written; "fma": multiply-adds per second, None where it cannot be built}."""
    if device.type == "cuda":
        return {"copy": _copy_cuda(device, copied_bytes), "fma": _fma_cuda(device)}
    return {"copy": _copy_cpu(copied_bytes), "fma": _fma_cpu()}


def _copy_cpu(copied_bytes: int | None) -> float:
    source = torch.rand((copied_bytes or COPIED_BYTES["cpu"]) // 4)
    target = torch.empty_like(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times[2:])


def _copy_cuda(device: torch.device, copied_bytes: int | None) -> float:
    free = torch.cuda.mem_get_info(device)[0]
    source = torch.rand(min(copied_bytes or COPIED_BYTES["cuda"], free // 4) // 4, device=device)
    target = torch.empty_like(source)
    clock = CudaClock(device)
    times = [clock.sample(target.copy_, [(source,)]) for _ in range(12)]
    return 2 * source.nbytes / statistics.median(times[2:])


def _fma_cuda(device: torch.device) -> float | None:
    """None, with a remark, where Triton is not there or finds no C compiler for its stub: the rest can be measured."""
    try:
        from benchmarks import fma_triton

        fma_triton.launch(device)
    except Exception as error:  # Triton's own classes, which cannot be named where it is not there
        print(f"multiply-adds are not measured: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    clock = CudaClock(device)
    times = [clock.sample(fma_triton.launch, [(device,)]) for _ in range(12)]
    return fma_triton.launch(device) / statistics.median(times[2:])


def _fma_cpu() -> float | None:
    """On as many threads as torch uses."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_loop.so"
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=fast", "-shared", "-fPIC"]
        source = Path(__file__).with_name("fma_loop.c")
        for compiler in ("cc", "gcc", "clang"):
            for options in (flags, [flag for flag in flags if "vector-width" not in flag]):  # which only x86 knows
                try:
                    command = [compiler, *options, str(source), "-o", str(library)]
                    subprocess.run(command, check=True, capture_output=True)
                except (OSError, subprocess.CalledProcessError):
                    continue
                return _run_fma_loop(library)
    return None


def _run_fma_loop(library: Path, rounds: int = 4_000_000) -> float:
    loop = ctypes.CDLL(str(library)).fma_loop  # ctypes lets other threads run meanwhile
    loop.restype, loop.argtypes = ctypes.c_longlong, (ctypes.c_longlong, ctypes.POINTER(ctypes.c_float))
    rates = []
    for _ in range(7):
        done = [0] * torch.get_num_threads()

        def work(thread: int, done: list[int] = done) -> None:
            done[thread] = loop(rounds, ctypes.byref(ctypes.c_float(thread)))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(len(done))]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(sum(done) / (time.perf_counter() - start))
    return statistics.median(rates)
