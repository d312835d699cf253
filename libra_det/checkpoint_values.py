"""Makes sure of what a checkpoint's file holds besides weights: anybody's file may hold anything.

Each function returns or raises ValueError or TypeError, whose text says what was expected and what came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from libra_det.terminal import shown
from libra_det.weights.files import check_plain

_MOST_STEPS = 10**9  # in an epoch, and epochs: their product is an int64
_MOST_SECONDS = 1e12
LONGEST_NAME = 1000  # letters of a category's; a few bytes can stand for very long names of very many categories


def checked_tensors(name: str, values: Any, path: Path) -> dict[str, Tensor]:
    """A state_dict: dense tensors by name."""
    if not isinstance(values, dict):
        raise TypeError(f"{name}: expected tensors by name")
    check_plain({f"{name} {key}": value for key, value in values.items()}, path)
    return values


def checked_position(epoch: Any, step: Any, steps_per_epoch: Any, seconds: Any) -> dict[str, Any]:
    """How far a run has come: complete epochs, steps of the next one, the length of an epoch, seconds of training."""
    for name, value, least in (("epoch", epoch, 0), ("step", step, 0), ("steps_per_epoch", steps_per_epoch, 1)):
        if type(value) is not int or not least <= value <= _MOST_STEPS:
            raise ValueError(f"{name}: expected a whole number from {least} to {_MOST_STEPS}, got {shown(value)}")
    if step > steps_per_epoch:
        raise ValueError(f"step: expected at most steps_per_epoch {steps_per_epoch}, got {step}")
    if type(seconds) not in (int, float) or not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"seconds: expected a finite number from 0 on, got {shown(seconds)}")
    return {"epoch": epoch, "step": step, "steps_per_epoch": steps_per_epoch, "seconds": seconds}


def checked_categories(values: Any) -> list[tuple[int, str]]:
    """(id, name) of each label; an id is an int64."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"categories: expected a list of (id, name), got {shown(values)}")
    categories = []
    for value in values:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"categories: expected (id, name), got {shown(value)}")
        id, name = value
        if type(id) is not int or not -(2**63) <= id < 2**63:
            raise ValueError(f"categories: expected an id of 64 bits, got {shown(id)}")
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise TypeError(f"categories: expected a name of at most {LONGEST_NAME} letters, got {shown(name)}")
        categories.append((id, name))
    return categories


def checked_optimizer(values: Any, path: Path) -> dict[str, Any]:
    """The state_dict of an SGD: the momentum of each parameter by its number, and the numbers of each group."""
    if not isinstance(values, dict) or not isinstance(values.get("state"), dict):
        raise TypeError("optimizer: expected a dictionary with 'state' and 'param_groups'")
    for number, kept in values["state"].items():
        momentum = kept.get("momentum_buffer") if isinstance(kept, dict) else kept
        if type(number) is not int or not isinstance(kept, dict) or not isinstance(momentum, (Tensor, type(None))):
            raise TypeError(f"optimizer: expected a 'momentum_buffer' for each number, got {shown(kept)}")
        if momentum is not None:
            check_plain({f"the momentum of parameter {number}": momentum}, path)
    groups = values.get("param_groups")
    for group in groups if isinstance(groups, list) else [None]:
        numbers = group.get("params") if isinstance(group, dict) else None
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise TypeError("optimizer: expected 'param_groups', a list of dictionaries with the numbers of 'params'")
    return values
