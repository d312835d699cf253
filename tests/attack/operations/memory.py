"""Tensors otherwise in memory, and whether a call has written to what is not its own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tests.attack.operations.draw import Draw

_GUARD = 8  # elements on both sides of a tensor
LAYOUTS = ("guarded", "guarded", "strided", "transposed", "odd address", "expanded", "negated", "parameter")


def guarded(tensor: Tensor) -> Tensor:
    """A copy with elements before and behind it that must be neither read nor written."""
    guard = float("nan") if tensor.is_floating_point() else 1 if tensor.dtype == torch.bool else 77
    memory = torch.full((tensor.numel() + 2 * _GUARD,), guard, dtype=tensor.dtype)
    inner = memory[_GUARD : _GUARD + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


def lay_out(draw: Draw, tensor: Tensor) -> Tensor:
    """The same values in a layout that is drawn."""
    layout = draw.choice(LAYOUTS)
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return tensor
    if layout == "guarded":
        return guarded(tensor)
    if layout == "strided" and tensor.dim():
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
        if tensor.is_floating_point():
            wide.fill_(float("nan"))
        inner = wide[..., 1::2]
        return inner.copy_(tensor)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "odd address" and tensor.dtype != torch.bfloat16:
        memory = np.zeros(tensor.numel() * tensor.element_size() + 1, np.uint8)
        array = memory[1:].view(tensor.numpy().dtype).reshape(tensor.shape)
        array[...] = tensor.numpy()
        return torch.from_numpy(array)
    if layout == "expanded" and tensor.dim() and tensor.shape[0]:
        return tensor[:1].clone().expand(tensor.shape)
    if layout == "negated" and tensor.is_floating_point():
        return torch._neg_view(-tensor)
    if layout == "parameter" and tensor.is_floating_point():
        return torch.nn.Parameter(tensor, requires_grad=False)
    return tensor


def odd_bools(draw: Draw, tensor: Tensor) -> Tensor:
    """The same flags, where true is any byte but 0."""
    bytes_ = torch.from_numpy(draw.numbers.integers(1, 256, tuple(tensor.shape), dtype=np.uint8))
    return torch.where(tensor, bytes_, torch.zeros_like(bytes_)).view(torch.bool)


def tensors_in(values: Iterable[object]) -> list[Tensor]:
    """Tensors with memory of their own on the CPU, also in lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            if value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested:
                found.append(value)
        elif isinstance(value, (list, tuple)) and len(value) < 64:
            found += tensors_in(value)
    return found


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """All the memory that the tensor lies in, guards and gaps included."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


class Watch:
    """Notes the memory of tensors and arrays before a call; afterwards tells whether it is what it was."""

    def __init__(self, values: Iterable[object]) -> None:
        values = list(values)
        self._memory = [raw_bytes(tensor) for tensor in tensors_in(values)]
        self._memory += [root_bytes(array) for array in arrays_in(values)]
        self._before = [memory.tobytes() for memory in self._memory]

    def unchanged(self) -> bool:
        return all(memory.tobytes() == before for memory, before in zip(self._memory, self._before, strict=True))


def arrays_in(values: Iterable[object]) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
            found.append(value)
        elif isinstance(value, (list, tuple)) and len(value) < 64:
            found += arrays_in(value)
    return found


def root_bytes(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def same_values(one: object, other: object) -> bool:
    """Equal outputs, every NaN the same."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_values, one, other))
    if one is None or other is None:
        return one is other
    if isinstance(one, np.ndarray):
        one, other = torch.from_numpy(one), torch.from_numpy(other)
    if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return False
    return torch.equal(one.masked_fill(one.isnan(), 0), other.masked_fill(other.isnan(), 0))


def same_bits(one: object, other: object) -> bool:
    """Equal outputs, a NaN of the same bits included; of tensors, arrays, and lists of such."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape or one.is_meta != other.is_meta:
        return False
    if one.is_meta:
        return True
    # A single number may have any stride, and counts as contiguous all the same.
    flat = (x.detach().resolve_neg().contiguous().reshape(-1).as_strided((x.numel(),), (1,)) for x in (one, other))
    flat = (x.view(torch.uint8) for x in flat)
    return torch.equal(*flat)
