"""Argument errors of torch's tensors: type, device, layout and tangent; the rest is that of every array.

The first test of each check is the one that an ordinary tensor on the CPU passes, and the only one it pays for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from libra_ops import _array_checks
from libra_ops._array_checks import (
    check_at_most,
    check_choice,
    check_integer,
    check_number,
    check_shape,
    describe,
    show,
    to_number,
)
from libra_ops._extension import check_device

__all__ = [
    "check_at_most",
    "check_boxes",
    "check_choice",
    "check_dtype",
    "check_floating",
    "check_integer",
    "check_no_tangent",
    "check_number",
    "check_same_device",
    "check_shape",
    "check_stds",
    "check_tensor",
    "describe",
    "show",
    "to_number",
]

_LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127
_ZERO_IN_FLOAT32 = 2.0**-150  # what is not larger rounds to 0

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STRIDED = torch.strided


def check_tensor(name: str, value: object) -> None:
    if type(value) is Tensor and value.is_cpu and value.layout is _STRIDED and not value.is_nested:
        return
    if not isinstance(value, Tensor):
        raise _array_checks.wrong_type(name, "a torch.Tensor", value)
    if value.layout is not _STRIDED or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor, got a {layout} one; pass it through to_dense() or pad it")
    check_device(name, value)


def check_floating(name: str, value: object) -> None:
    check_tensor(name, value)
    if value.dtype not in _FLOATS:
        raise _array_checks.not_floating(name, value)


def check_no_tangent(name: str, value: Tensor) -> None:
    """Not a dual tensor of forward-mode differentiation, whose tangent a kernel would drop without a word."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"{name}: expected a tensor without a tangent: the derivative is there in reverse mode only (backward, "
            "torch.autograd.grad); pass forward_ad.unpack_dual(...).primal for the value alone"
        )


def check_boxes(name: str, value: object, shape: str, dims: Sequence[int] | None = None) -> None:
    """Floating, with a last dimension of 4; `shape`: what is expected, in words; `dims`: how many dimensions."""
    check_floating(name, value)
    _array_checks.check_boxes_shape(name, value, shape, dims)


def check_dtype(name: str, value: object, dtype: torch.dtype) -> None:
    check_tensor(name, value)
    if value.dtype != dtype:
        raise _array_checks.wrong_dtype(name, dtype, value)


def check_same_device(name: str, value: Tensor, other: Tensor, other_name: str) -> None:
    if value.is_cpu and other.is_cpu:
        return
    if value.device != other.device:
        raise ValueError(f"{name}: expected on {other.device} like {other_name}, got {value.device}")


def check_stds(stds: object, expected: str = "4 numbers") -> list[float]:
    """`delta_stds` as numbers, of which none is 0 or infinite in float32. `expected`: types, in words."""
    if isinstance(stds, (Tensor, str, bytes)) or not isinstance(stds, (tuple, list, Sequence)):
        raise _array_checks.wrong_type("delta_stds", expected, stds)
    wanted = "delta_stds: expected 4 numbers > 0 within float32's range"
    if len(stds) != 4:
        raise ValueError(f"{wanted}, got {len(stds)}")
    found = [_array_checks.to_number("delta_stds", std) for std in stds]
    for number in found:
        if not _ZERO_IN_FLOAT32 < number <= _LARGEST_FLOAT32:
            raise ValueError(f"{wanted}, got {_array_checks.show(stds)}")
    return found
