"""`libra doctor`: what is installed, what is compiled, and whether each operation works on each device."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HOW_TO_BUILD = (
    "build it in the project's folder with `pip install -e .` "
    "(it needs a C++ compiler, and nvcc for CUDA; LIBRA_CUDA=0 builds without)"
)


def doctor(console: Console | None = None) -> bool:
    """Print the findings; True if every operation works on every device."""
    console = console or Console(highlight=False)
    console.print(_table("versions", _versions()))
    console.print(_table("devices", _devices()))
    try:
        import libra_ops

        build = libra_ops.build_info()
    except Exception as error:  # whatever keeps a broken build from loading is to be shown, not raised
        console.print(f"libra_ops cannot be used: {escape(_first_line(error))}\n{HOW_TO_BUILD}", soft_wrap=True)
        return False
    console.print(_table("libra_ops, as built", {name: str(value) for name, value in build.items()}))
    table, ok = _try_operations(libra_ops)
    console.print(table)
    return ok


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy", "pycocotools", "pillow")
    facts = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for package in packages:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["CUDA of torch"] = torch.version.cuda or "none: torch is built for the CPU"
    facts["NVIDIA driver"] = _driver()
    return facts


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "none found"
    return lines[0] if lines else "none found"


def _devices() -> dict[str, str]:
    facts = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        facts[f"cuda:{index}"] = f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    return facts


def _try_operations(libra_ops: ModuleType) -> tuple[Table, bool]:
    table = Table("operation", "device", "result", title="each operation, tried once", title_justify="left")
    ok = True
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        for name, attempt in _attempts(libra_ops, device).items():
            try:
                attempt()
                result = "ok"
            except Exception as error:  # every kind of failure is a finding
                result, ok = f"failed: {_first_line(error)}", False
            table.add_row(name, device, escape(result))
    return table, ok


def _attempts(libra_ops: ModuleType, device: str) -> dict[str, Callable[[], None]]:
    """One small call of each operation, which raises if the result is wrong."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]], device=device)  # [N=3, 4]
    targets = torch.tensor([[[0.0, 0, 10, 10]]], device=device)  # [B=1, G=1, 4]
    valid = torch.ones(1, 1, dtype=torch.bool, device=device)

    def match():
        return libra_ops.match_boxes(boxes, targets, valid, positive_iou=0.7, negative_iou=0.3)

    def try_box_iou() -> None:
        leaf = boxes.clone().requires_grad_()
        iou = libra_ops.box_iou(leaf, targets[0], kind="giou")
        iou.sum().backward()
        _expect("box_iou", libra_ops.box_iou(boxes, targets[0]).flatten().tolist(), [1.0, 0.5, 0.0])
        _expect("its gradient is finite", [float(leaf.grad.isfinite().all())], [1.0])

    def try_match_boxes() -> None:
        _expect("state", match().state.flatten().tolist(), [1, -1, 0])

    def try_sample() -> None:
        samples = libra_ops.sample_iou_balanced(match(), num_samples=2, positive_fraction=0.5)
        _expect("index", samples.index.flatten().tolist(), [0, 2])

    def try_nms() -> None:
        found = libra_ops.nms_padded(boxes[None], boxes[None, :, 2], iou_threshold=0.4, max_output=3)
        _expect("index", found.index.flatten().tolist(), [2, 0, 0])
        _expect("valid", found.valid.flatten().tolist(), [1, 1, 0])

    def try_loss() -> None:
        leaf = torch.zeros(1, 4, device=device, requires_grad=True)
        loss = libra_ops.balanced_l1_loss(leaf, torch.full((1, 4), 2.0, device=device), reduction="sum")
        loss.backward()
        _expect("gradient", leaf.grad.flatten().tolist(), [-1.5] * 4)

    def try_pooling() -> None:
        maps = [torch.full((1, 2, 8, 8), 3.0, device=device, requires_grad=True)]
        pooled = libra_ops.multiscale_roi_align(maps, boxes[None], strides=(4,), output_size=1, sampling_ratio=2)
        pooled.sum().backward()
        _expect("pooled", pooled.flatten().tolist(), [3.0] * 6)
        _expect("sum of its gradient", [float(maps[0].grad.sum())], [6.0])

    def try_pyramid() -> None:
        maps = [torch.full((1, 1, size, size), 2.0, device=device, requires_grad=True) for size in (4, 2)]
        mean = libra_ops.integrate_pyramid(maps, level=1)
        scattered = libra_ops.scatter_pyramid(maps, mean, level=1)
        sum(x.sum() for x in scattered).backward()
        _expect("mean", mean.flatten().tolist(), [2.0] * 4)
        _expect("finest map", [float(scattered[0].detach().sum())], [64.0])
        _expect("sum of its gradient", [float(maps[0].grad.sum())], [16.0 + 10.0])

    def try_topk() -> None:
        scores = torch.tensor([[1.0, 3.0, 2.0, 0.0, 5.0]], device=device)
        _expect("index", libra_ops.topk_per_level(scores, [3, 2], 2)[1].flatten().tolist(), [1, 2, 4, 3])

    def try_box_coding() -> None:
        deltas = libra_ops.encode_boxes(boxes[:1], targets)  # [1, 1, 4]
        _expect("deltas", deltas.flatten().tolist(), [0.0] * 4)
        leaf = deltas.clone().requires_grad_()
        decoded = libra_ops.decode_boxes(boxes[:1], leaf)
        decoded.sum().backward()
        _expect("boxes", decoded.flatten().tolist(), targets.flatten().tolist())
        _expect("gradient", leaf.grad.flatten().tolist(), [20.0, 20.0, 0.0, 0.0])

    def try_focal() -> None:
        leaf = torch.zeros(1, 2, device=device, requires_grad=True)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        libra_ops.sigmoid_focal_loss(leaf, labels, gamma=0.0, reduction="sum").backward()
        _expect("gradient", leaf.grad.flatten().tolist(), [-0.125, 0.375])

    def try_box_regression() -> None:
        leaf = torch.zeros(1, 4, device=device, requires_grad=True)
        options = {"references": boxes[1:2], "reduction": "sum"}
        loss = libra_ops.box_regression_loss(leaf, targets[0], "iou", **options)
        loss.backward()
        _expect("loss", [loss.item()], [0.5])
        _expect("its gradient is finite", [float(leaf.grad.isfinite().all())], [1.0])

    return {
        "box_iou": try_box_iou,
        "match_boxes": try_match_boxes,
        "sample_iou_balanced": try_sample,
        "nms_padded": try_nms,
        "balanced_l1_loss": try_loss,
        "multiscale_roi_align": try_pooling,
        "integrate_pyramid and scatter_pyramid": try_pyramid,
        "topk_per_level": try_topk,
        "encode_boxes and decode_boxes": try_box_coding,
        "sigmoid_focal_loss": try_focal,
        "box_regression_loss": try_box_regression,
    }


def _expect(what: str, got: list[float], expected: list[float]) -> None:
    if len(got) != len(expected) or any(abs(a - b) > 1e-5 for a, b in zip(got, expected, strict=True)):
        raise RuntimeError(f"{what}: expected {expected}, got {got}")


def _table(title: str, facts: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
