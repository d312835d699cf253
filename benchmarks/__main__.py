"""python -m benchmarks [names ...] [--quick] [--device cpu|cuda] [--output DIR]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

import libra_ops
from benchmarks.case import Plan
from benchmarks.machine import pin
from benchmarks.report import write_report
from benchmarks.run import run
from benchmarks.subjects import GROUPS, SUBJECTS, of_groups


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times libra_ops and libra_det against plain PyTorch, torch.compile, torchvision and others.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"subjects (default: all): {', '.join([*SUBJECTS, *GROUPS])}"
    )
    parser.add_argument("--quick", action="store_true", help="the goals and little more, fewer samples: some minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where a GPU is and was built for")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of JSON, table and plots")
    parser.add_argument("--label", default="", help="the file is DEVICE-LABEL.json: RESULTS.md shows runs side by side")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no further case after so long")
    asked = parser.parse_args(arguments)
    asked.names = of_groups(asked.names)
    unknown = sorted(set(asked.names) - set(SUBJECTS))
    if unknown:
        parser.error(f"names: expected among {', '.join([*SUBJECTS, *GROUPS])}, got {', '.join(unknown)}")
    built = libra_ops.build_info()["cuda"]
    if asked.device is None:
        asked.device = "cuda" if torch.cuda.is_available() and built.startswith("yes") else "cpu"
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: needs an NVIDIA GPU, and torch sees none")
    if asked.device == "cuda" and not built.startswith("yes"):
        parser.error(f"--device cuda: libra_ops was built without CUDA ({built})")
    device = torch.device(asked.device)
    quick = {"sizes": "quick", "seconds": 0.5, "samples": 15, "memory": "ours"}
    plan = Plan(device, **(quick if asked.quick else {}))
    cores = pin(sys.maxsize if plan.cuda else 2)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    file, good = run(asked.names, plan, asked.output, cores, label=asked.label, budget=asked.budget, console=console)
    report = write_report(asked.output)
    console.print(f"{file}\n{report}", soft_wrap=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
