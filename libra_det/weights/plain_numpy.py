"""NumPy's numbers and arrays in a pickle, rebuilt from their bytes: no function of NumPy sees what the file says.

The kind of the numbers is one of a closed list, which has no objects, and an array has exactly the bytes that its shape
asks for. (`np.ndarray((1,), "O", eight_bytes)` would take the bytes for the address of an object.)
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

_KINDS = re.compile(r"(b1|[iu][1248]|f[248]|[US]\d{1,6})")
_MOST_DIMENSIONS = 32


class DType:
    """The kind of the numbers, such as f4, and the order of their bytes. The arguments are those of `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _KINDS.fullmatch(code):
            raise ValueError("NumPy values of another kind than numbers and text in its pickle")
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        """What NumPy writes behind a kind: (version, byte order, no sub-array, no names, no fields, sizes, flags)."""
        plain = isinstance(state, tuple) and 8 <= len(state) <= 9 and state[2:5] == (None, None, None)
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a structured NumPy kind in its pickle; expected numbers or text")
        self.order = state[1]

    def numbers(self, data: Any) -> np.ndarray:
        """A copy of the bytes as an array of one dimension."""
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        if not isinstance(data, bytes):
            raise ValueError(f"NumPy values in its pickle are a {type(data).__name__} instead of bytes")
        kind = np.dtype(self.order + self.code)  # one of the closed list
        if kind.itemsize == 0 or len(data) % kind.itemsize:
            raise ValueError(f"{len(data)} bytes of NumPy values of kind {self.code} in its pickle")
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="))


def scalar(kind: DType, data: bytes) -> Any:
    """A single number or text, as Python has it."""
    numbers = _checked(kind).numbers(data)
    if len(numbers) != 1:
        raise ValueError(f"{len(numbers)} NumPy values in its pickle where one is expected")
    return numbers[0].item()


class ArrayInTheMaking:
    """An array between the two instructions that make it. The arguments, of an empty array, tell nothing."""

    def __init__(self, *_: Any) -> None:
        self.memo_keys: list[int] = []  # under which the machine remembers it

    def finished(self, state: Any) -> np.ndarray:
        """The array of NumPy's state (version, shape, kind, column by column, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("a NumPy array in its pickle is incomplete")
        _, shape, kind, by_columns, data = state
        numbers = _checked(kind).numbers(data)
        if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
            raise ValueError("a NumPy array in its pickle has no shape")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(numbers):
            raise ValueError(f"a NumPy array in its pickle has {len(numbers)} values, which its shape does not")
        return numbers.reshape(shape, order="F" if by_columns else "C")


def _checked(kind: Any) -> DType:
    if not isinstance(kind, DType):
        raise ValueError("NumPy values of no kind in its pickle")
    return kind
