"""Resized images kept in memory from epoch to epoch, within a bound, shared by worker processes.

The memory is an anonymous map that forked workers inherit and write to, so that nothing is limited by /dev/shm or
copied between processes. A slot is written before its flag is set and always with the same bytes: no lock is needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ImageCache:
    """Slots for the first images that fit into a bound.

    Args:
        sizes: width and height of every image that may be kept; the position in it is the image's index.
        limit_mb: bound in MiB; images after it is reached are not kept.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], limit_mb: int) -> None:
        self._sizes = list(sizes)
        ends = np.cumsum([3 * width * height for width, height in sizes], dtype=np.int64)
        self._starts = np.concatenate([[0], ends[:-1]])
        self._slots = int(np.searchsorted(ends, limit_mb * 2**20, side="right"))
        self._limit_mb = limit_mb
        self._allocate()

    def _allocate(self) -> None:
        count = self._slots
        num_bytes = 3 * sum(width * height for width, height in self._sizes[:count])
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, num_bytes)), dtype=np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, max(1, count)), dtype=np.uint8)

    def get(self, index: int, load: Callable[[], Tensor]) -> Tensor:
        """The image at `index`, uint8 [3, H, W]: from memory, or from `load()` and then kept if it fits."""
        if index >= self._slots:
            return load()
        width, height = self._sizes[index]
        start = int(self._starts[index])
        slot = self._pixels[start : start + 3 * width * height].reshape(height, width, 3)
        if not self._filled[index]:
            slot[:] = load().permute(1, 2, 0).numpy()
            self._filled[index] = 1
        return torch.from_numpy(slot.copy()).permute(2, 0, 1)  # a copy: augmentations may write

    def __getstate__(self) -> dict[str, Any]:
        """Processes that are spawned instead of forked begin with an empty cache of their own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_pixels", "_filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()
