"""What one call is made from: everything follows from a seed and the call's number."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTHS = (0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 9, 15, 17, 31, 33, 63, 65)
LONG = (127, 129, 255, 257, 300, 513)  # around the tiles and blocks of the kernels
FLOATS = (torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
SCALES = (1.0, 1.0, 100.0, 100.0, 1e4, 1e-3, 1e-42, 1e17, 1e19, 1e38)
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38, -1e38, 3.4e38, 1e-40, 1e-45, 5e-324, 1e154, 1.7e308, 65504.0, 1e20)
INT64 = (0, 1, -1, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, -(2**63), -(2**31))


class Draw:
    """Random numbers of one call."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(((seed + 1) << 64) + number)
        self._seed_of_numbers = self.random.getrandbits(63)

    @functools.cached_property
    def numbers(self) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self._seed_of_numbers))

    def choice(self, values: Sequence[Any]) -> Any:
        return values[int(self.random.random() * len(values))]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def integer(self, low: int, high: int) -> int:
        """Low to high, both included."""
        return low + int(self.random.random() * (high - low + 1))

    def length(self) -> int:
        return self.choice(LONG) if self.chance(0.04) else self.choice(LENGTHS)

    def values(self, shape: Sequence[int]) -> np.ndarray:
        """float64: of one scale, of a small grid (ties) or not, at times with numbers that are none."""
        if self.chance(0.4):
            array = self.numbers.integers(-3, 4, shape) * 0.25
        else:
            array = self.numbers.uniform(-1, 1, shape)
        array = np.asarray(array * self.choice(SCALES), dtype=np.float64)
        if self.chance(0.35) and array.size:
            for _ in range(self.integer(1, 3)):
                array.reshape(-1)[self.numbers.integers(0, array.size, 1 + array.size // 10)] = self.choice(SPECIAL)
        return array

    def boxes(self, shape: Sequence[int]) -> np.ndarray:
        """float64 [*shape, 4] xyxy: most of them proper, some inverted, empty, equal, huge or not finite."""
        array = self.values((*shape, 2, 2))  # [..., corner, x or y]
        if self.chance(0.8):
            array = np.sort(array, axis=-2)
        rows = array.reshape(-1, 4)
        if self.chance(0.4) and len(rows):
            chosen = self.numbers.integers(0, len(rows), 1 + len(rows) // 5)
            flaw = self.choice(("inverted", "empty", "equal", "edge"))
            if flaw == "inverted":
                rows[chosen] = rows[chosen][:, [2, 3, 0, 1]]
            elif flaw == "empty":
                rows[chosen, 2] = rows[chosen, 0]
            else:
                columns = slice(0, 4) if flaw == "equal" else slice(0, 2)
                rows[chosen, columns] = rows[0, columns]
        return rows.reshape(*shape, 4)

    def flags(self, shape: Sequence[int]) -> np.ndarray:
        share = self.choice((0.0, 0.3, 0.7, 0.9, 1.0))
        return np.asarray(self.numbers.random(shape) < share)

    def tensor(self, array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of a floating dtype, which is drawn unless it is given."""
        tensor = torch.from_numpy(np.asarray(array))
        if dtype is None:
            dtype = self.choice(FLOATS)
        return tensor if tensor.dtype == dtype else tensor.to(dtype)

    def fraction(self) -> float:
        return self.choice((0, 1, 0.5, 0.3, 0.7, 1 / 3, 1.0, 0.0, -0.0, 5e-324, self.random.random()))


def is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta
