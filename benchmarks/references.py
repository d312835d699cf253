"""The sides that several subjects share: the reference as it is (eager) and under torch.compile, and the NumPy door.

The reference asks whether any box is huge, which breaks torch.compile's graph in two and would keep it from fusing the
IoU with what follows. No box is huge here, so the compiled side gets a copy of the module in which `any` answers False:
one graph, and several times as fast as with the question.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Plan, Side
from libra_ops import reference

try:
    import libra_ops.numpy as numpy_door
except ImportError:  # the extension was built without it
    numpy_door = None


def _traceable_reference() -> ModuleType:
    name = "benchmarks._traceable_reference"
    specification = importlib.util.spec_from_file_location(name, reference.__file__)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # torch.compile looks the module up by its name
    specification.loader.exec_module(module)
    module.any = lambda values: False
    return module


traceable = _traceable_reference()


def compiled(function: Callable, fullgraph: bool = True) -> Callable:
    """`function` under torch.compile for fixed shapes; it is compiled as it is first called."""
    return torch.compile(function, dynamic=False, fullgraph=fullgraph)


NUMPY = "libra_ops.numpy"


def numpy_sides(plan: Plan, call: Callable[..., Any], agrees: Callable[[Any, Any], str | None]) -> dict[str, Side]:
    """The side of `libra_ops.numpy`, where it is: `call` takes arrays that share the tensors' memory. None on a GPU."""
    if plan.cuda or numpy_door is None:
        return {}
    return {NUMPY: Side(call, prepare=_as_arrays, agrees=lambda ours, theirs: agrees(ours, as_tensors(theirs)))}


def as_tensors(result: Any) -> Any:
    """Arrays, or tuples of them, as tensors."""
    if isinstance(result, tuple):
        return tuple(map(as_tensors, result))
    return torch.from_numpy(np.asarray(result))


def _as_arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.numpy() for tensor in tensors)
