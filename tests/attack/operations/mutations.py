"""Arguments made hostile: of another type, dtype, shape or device, beyond every range, or larger than any memory."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attack.operations.draw import INT64, SPECIAL, Draw
from tests.attack.operations.memory import lay_out, odd_bools

WORDS = (
    None,
    "text",
    "",
    b"",
    object,
    [],
    {},
    (),
    1j,
    [0.5],
    (1, None),
    slice(1),
    range(3),
    float,
    Ellipsis,
    "\x1b[2J",
)
NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 63, 64, 65, 2**15, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64),
    *(10**18, 10**400, -(10**400), 10**5000, -(2**63), -(2**31), True, False, math.nan, math.inf, -math.inf),
    *(0.5, -0.5, -0.0, 1.5, 1e-320, 5e-324, 1e-45, 1e-38, 1e30, 3e38, 1e39, 1.7e308, Fraction(1, 3), "0.5", "nan"),
    *(np.float32(0.5), np.float64("nan"), np.int64(2), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), 1j),
)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16, torch.uint32),
)
HUGE = (2**31, 2**31 - 1, 2**33, 2**40, 2**61, 2**62)
LARGE = 2**27  # elements: what asks for so many may be refused for want of memory


class Subclass(Tensor):
    """A tensor of another type."""


def mutated(draw: Draw, value: object) -> object:
    """A hostile value in the place of a good one."""
    if isinstance(value, Tensor):
        return _mutated_tensor(draw, value)
    if isinstance(value, np.ndarray):
        return _mutated_array(draw, value)
    if isinstance(value, (list, tuple)):
        return _mutated_sequence(draw, value)
    if isinstance(value, str):
        return draw.choice((value.upper(), value + " ", "", *WORDS, 0, -1, True))
    if value is None:
        wild = (
            torch.ones(4),
            torch.ones(1, 4),
            torch.ones(1, 1, dtype=torch.bool),
            torch.zeros(1, 2, dtype=torch.int64),
        )
        return draw.choice((*wild, *WORDS, *NUMBERS))
    if isinstance(value, (bool, int, float, np.number)):
        return draw.choice(NUMBERS) if draw.chance(0.8) else draw.choice((*WORDS, torch.ones(()), torch.ones(2)))
    return draw.choice((*WORDS, *NUMBERS))


def _mutated_sequence(draw: Draw, value: list | tuple) -> object:
    kind, items = type(value), list(value)
    if hasattr(value, "_fields"):
        kind = tuple
    what = draw.choice(("element", "element", "element", "element", "drop", "twice", "type", "many", "reversed"))
    if what == "element" and items:
        position = draw.integer(0, len(items) - 1)
        items[position] = mutated(draw, items[position])
        return kind(items)
    if what == "drop" and items:
        items.pop(draw.integer(0, len(items) - 1))
        return kind(items)
    if what == "twice":
        return kind(items + items)
    if what == "many":
        return kind(items[:1] * draw.choice((9, 17, 10**5)))
    if what == "reversed":
        return kind(items[::-1])
    flat = [item for item in items if isinstance(item, Tensor)]
    return draw.choice((*WORDS, items, tuple(items), {0: items}, *flat[:1], 4, iter(items)))


def _mutated_tensor(draw: Draw, tensor: Tensor) -> object:
    what = draw.choice(
        ("values", "values", "values", "shape", "shape", "shape", "dtype", "dtype", "layout", "layout", "type")
        if draw.chance(0.97)
        else ("huge",)
    )
    if what == "values":
        return _with_values(draw, tensor)
    if what == "shape":
        return _of_shape(draw, tensor)
    if what == "dtype":
        return tensor.to(draw.choice(DTYPES))
    if what == "layout":
        return lay_out(draw, tensor)
    if what == "huge":
        return _huge(draw, tensor)
    with suppress(Exception):  # torch itself refuses some, such as a nested tensor of no rows
        match draw.choice(("meta", "meta", "sparse", "csr", "nested", "subclass", "array", "list", "grad", "word")):
            case "meta":
                return tensor.to("meta")
            case "sparse":
                return tensor.to_sparse()
            case "csr":
                return tensor.to_sparse_csr()
            case "nested":
                return torch.nested.nested_tensor(list(tensor))
            case "subclass":
                return tensor.as_subclass(Subclass)
            case "array":
                return tensor.numpy()
            case "list":
                return tensor.tolist()
            case "grad":
                return tensor.detach().clone().requires_grad_()
    return draw.choice((*WORDS, *NUMBERS))


def _with_values(draw: Draw, tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        return tensor
    if tensor.dtype == torch.bool:
        return odd_bools(draw, tensor) if draw.chance(0.5) else torch.full_like(tensor, draw.chance(0.5))
    tensor = tensor.detach().clone()
    flat = tensor.view(-1)
    every = draw.chance(0.2)
    for place in range(len(flat)) if every and len(flat) < 9 else (draw.integer(0, len(flat) - 1) for _ in range(3)):
        value = draw.choice(SPECIAL if tensor.is_floating_point() else INT64)
        with suppress(RuntimeError, OverflowError):  # beyond the dtype
            flat[place] = value
    return tensor


def _of_shape(draw: Draw, tensor: Tensor) -> Tensor:
    shape = list(tensor.shape)
    what = draw.choice(("more", "fewer", "none", "one", "unsqueeze", "squeeze", "flat", "scalar", "swap", "repeat"))
    place = draw.integer(0, max(0, len(shape) - 1))
    if what == "scalar" or not shape:
        return tensor.new_ones(()) if shape else tensor.new_ones(draw.choice(((1,), (0,), (4,), (1, 1, 4))))
    if what == "unsqueeze":
        return tensor.unsqueeze(place)
    if what == "squeeze":
        return tensor.select(place, 0) if shape[place] else tensor.sum(place).to(tensor.dtype)
    if what == "flat":
        return tensor.reshape(-1)
    if what == "swap":
        return tensor.transpose(0, -1)
    if what == "repeat":
        return torch.cat((tensor, tensor), place)
    shape[place] = {"more": shape[place] + 1, "fewer": max(0, shape[place] - 1), "none": 0, "one": 1}[what]
    return tensor.new_ones(shape)


def _huge(draw: Draw, tensor: Tensor) -> Tensor:
    """Claims more than there is: rows that are all the same memory, or none of them with any."""
    shape = list(tensor.shape) or [1]
    shape[draw.integer(0, len(shape) - 1)] = draw.choice(HUGE)
    if draw.chance(0.5):
        shape[draw.integer(0, len(shape) - 1)] = draw.choice((0, 1, *HUGE))
    try:
        return tensor.new_ones(()).expand(shape)
    except RuntimeError:  # more elements than 2^63
        return tensor


def _mutated_array(draw: Draw, array: np.ndarray) -> Any:
    what = draw.choice(
        ("dtype", "dtype", "values", "values", "shape", "shape", "order", "swapped", "object", "masked", "huge", "word")
    )
    if what == "dtype":
        dtype = draw.choice(("f2", "f4", "f8", "i8", "i4", "i1", "?", "c8", "u1", "U3", "O", "g", ">f4", ">i8"))
        with suppress(ValueError):  # text that was cut short is no number any more
            return array.astype(dtype)
        return array
    if what == "values" and array.size:
        array = array.copy()
        pool = SPECIAL if array.dtype.kind == "f" else (0, 1) if array.dtype.kind == "b" else INT64
        with suppress(OverflowError):
            array.reshape(-1)[draw.integer(0, array.size - 1)] = draw.choice(pool)
        return array
    if what == "shape" and array.ndim:
        return draw.choice(
            (array[None], array[..., None], array[..., :-1], array[:0], array[0] if len(array) else array, array.T)
        )
    if what == "order" and array.ndim:
        return draw.choice(
            (np.asfortranarray(array), np.repeat(array, 2, axis=-1)[..., ::2], array[..., ::-1], _odd(array))
        )
    if what == "swapped":
        return array.astype(array.dtype.newbyteorder(">"))
    if what == "masked":
        return draw.choice((np.ma.masked_array(array), array.view(np.memmap), np.rec.array(array)))
    if what == "huge" and array.ndim:
        shape = list(array.shape)
        shape[draw.integer(0, array.ndim - 1)] = draw.choice((2**31, 2**40, 0))
        with suppress(ValueError):
            return np.broadcast_to(array.dtype.type(1), shape)
    return draw.choice((array.tolist(), torch.ones(array.shape), *WORDS, *NUMBERS))


def _odd(array: np.ndarray) -> np.ndarray:
    """At an odd address, and read-only."""
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    moved = memory.view(array.dtype).reshape(array.shape)
    moved[...] = array
    moved.flags.writeable = False
    return moved


def is_large(value: object) -> bool:
    """Asks for more than there is, so that an error for want of memory is an honest answer."""
    if isinstance(value, (Tensor, np.ndarray)):
        shape = tuple(value.shape)
        return math.prod(shape) >= LARGE or max(shape, default=0) >= LARGE
    if isinstance(value, (list, tuple)):
        return any(map(is_large, value[:64]))
    try:
        return not isinstance(value, (str, bool)) and float(value) >= LARGE
    except (TypeError, ValueError, OverflowError):
        return False
