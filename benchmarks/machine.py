"""Where and with what a run was made: without device, commit and command a number is not a result."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import libra_ops

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "triton")
SOURCES = (
    "csrc",
    "libra_ops",
    "libra_det",
    "setup.py",
    "benchmarks/*.py",
    "benchmarks/*.c",
)  # what a number depends on
CPU_THREADS = 2  # the goals are those of two cores


def pin(threads: int = CPU_THREADS) -> list[int]:
    """Keep this process and all its threads on so many cores (or as many as there are); returns which."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    return cores


def facts(device: torch.device, cores: list[int]) -> dict:
    """Everything about a run but its results."""
    found = {
        "device": _gpu_name(device) if device.type == "cuda" else f"{_processor()}, cores {_listed(cores)}",
        "driver": _driver() if device.type == "cuda" else "none",
        "host": f"{_processor()}, cores {_listed(cores)}, {len(cores)} threads",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "build": libra_ops.build_info(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device.type == "cuda":
        found["versions"]["CUDA of torch"] = torch.version.cuda
    return found


def commit() -> str:
    """The commit, and whether the sources differ from it; $LIBRA_COMMIT where there is no git."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("LIBRA_COMMIT", "unknown")
    return f"{name} with changes" if changed else name


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _listed(cores: list[int]) -> str:
    return " and ".join([", ".join(map(str, cores[:-1])), str(cores[-1])] if len(cores) > 1 else map(str, cores))


def _processor() -> str:
    names, flags = [], set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            names.append(value.strip())
        elif name.strip() == "flags":
            flags = set(value.split())
    widest = next((name for name in ("avx512f", "avx2", "sse2") if name in flags), "")
    words = {"avx512f": "AVX-512", "avx2": "AVX2", "sse2": "SSE2"}
    return f"{names[0] if names else platform.machine()} ({words.get(widest, platform.machine())})"


def _gpu_name(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    memory, l2 = properties.total_memory / 2**30, properties.L2_cache_size / 2**20
    return f"{properties.name} ({properties.multi_processor_count} SMs, {memory:.0f} GiB, {l2:.0f} MiB L2)"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
