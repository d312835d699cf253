"""What is known of a function that is attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attack.operations.draw import Draw

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """A function, good arguments for it, and what must be true of whatever it returns."""

    name: str
    function: Callable[..., Any]
    draw: Callable[[Draw], Arguments]
    check: Callable[[Arguments, Any], None]
    """Checks the result of any accepted arguments: shapes, dtypes, ranges. Raises AssertionError."""
    compare: Callable[[Arguments, Any], None] | None = None
    """The same for the values, by the twin in libra_ops.reference. Slow, so of some calls only."""
    leaves: tuple[str, ...] = ()
    """Arguments with a gradient: tensors or lists of tensors."""
    errors: tuple[str, ...] = ()
    """Beginnings of RuntimeErrors and NotImplementedErrors that the contract promises, as regular expressions."""
    any_error: bool = False
    """Registered operators promise no words: whatever they raise, they must not crash."""


def expect(found: object, shape: tuple[int, ...], dtype: object) -> None:
    assert isinstance(found, (Tensor, np.ndarray)), f"expected a tensor, got {type(found).__name__}"
    assert tuple(found.shape) == tuple(shape), f"expected shape {list(shape)}, got {list(found.shape)}"
    assert found.dtype == dtype, f"expected dtype {dtype}, got {found.dtype}"


def close(found: Tensor, expected: Tensor, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=rtol, atol=atol, equal_nan=True)


def plain(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values alone: contiguous, by itself in memory, without a gradient."""
    tensor = tensor.detach().as_subclass(Tensor)
    return tensor.to(dtype or tensor.dtype).clone(memory_format=torch.contiguous_format)


def arithmetic(*tensors: Tensor) -> torch.dtype:
    """What results have: float64 if one of these has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def any_meta(arguments: Arguments) -> bool:
    values = [v for value in arguments.values() for v in (value if isinstance(value, (list, tuple)) else [value])]
    return any(isinstance(value, Tensor) and value.is_meta for value in values)
