"""Loads the compiled kernels, and knows what was compiled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_REBUILD = "Rebuild it in the repository with `pip install -e .`"


def _load() -> None:
    files = sorted(Path(__file__).parent.glob("_C*.so"))
    if not files:
        raise ImportError(
            f"libra_ops: the compiled extension is not there ({Path(__file__).parent}/_C*.so). {_REBUILD}."
        )
    try:
        torch.ops.load_library(files[0])
    except OSError as error:
        raise ImportError(
            f"libra_ops: {files[0]} does not load with torch {torch.__version__}: {error}. {_REBUILD}."
        ) from error


_load()
_FACTS = dict(line.split(": ", 1) for line in torch.ops.libra_ops.build_info().splitlines())
_HAS_CUDA = _FACTS["cuda"].startswith("yes")


def build_info() -> dict[str, str]:
    """What the extension was built with: "cuda" (yes or no, and why), "architectures", "compiler", "built against"."""
    return dict(_FACTS)


def check_device(name: str, tensor: Tensor) -> None:
    """The kernels for this tensor's device are compiled in; a fake tensor needs none."""
    kind = tensor.device.type
    if kind == "cuda" and not _HAS_CUDA and not isinstance(tensor, FakeTensor):
        raise RuntimeError(
            f"{name}: is on {tensor.device}, but libra_ops was built without CUDA ({_FACTS['cuda']}). With nvcc and a "
            "CUDA build of torch at hand, rebuild with `LIBRA_CUDA=1 pip install -e .`; or pass CPU tensors."
        )
    if kind not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name}: expected a tensor on cpu or cuda, got {tensor.device}")
