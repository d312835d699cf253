"""Argument errors: which argument, what was expected, what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from libra_ops._extension import check_device

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    check_device(name, value)


def check_floating(name: str, value: object) -> None:
    check_tensor(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"{name}: expected a floating dtype (float16, bfloat16, float32, float64), got {describe(value)}"
        )


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
    if value.dim() < 2 or value.shape[-1] != 4 or (dims is not None and value.dim() not in dims):
        raise ValueError(f"{name}: expected xyxy boxes of shape {shape}, got {describe(value)}")


def check_shape(name: str, value: Tensor, shape: Sequence[int], meaning: str) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {list(shape)} ({meaning}), got {describe(value)}")


def check_dtype(name: str, value: object, dtype: torch.dtype) -> None:
    check_tensor(name, value)
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {str(dtype).removeprefix('torch.')}, got {describe(value)}")


def check_same_device(name: str, value: Tensor, other: Tensor, other_name: str) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected on {other.device} like {other_name}, got {value.device}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite number in [low, high], or (low, high] with open_low; returned as a float."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    # Comparisons alone, which torch.compile can trace for a number that it does not know; a NaN fails them.
    if not (-math.inf < value < math.inf and low <= value <= high) or (open_low and value == low):
        bound = f"{'>' if open_low else '>='} {low:g}" + ("" if high == math.inf else f" and <= {high:g}")
        raise ValueError(f"{name}: expected a finite number {bound}, got {value!r}")
    return float(value)


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bound = f">= {low}" + ("" if high is None else f" and <= {high}")
        raise ValueError(f"{name}: expected an int {bound}, got {value}")
    return int(value)
