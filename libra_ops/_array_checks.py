"""Argument errors of torch's tensors and NumPy's arrays alike: which argument, what was expected, what came.

A value is asked for its dtype and shape alone, so nothing here imports torch, and both doors say the same words. A
check that passes costs a few hundred nanoseconds at most: common types come first, words are made for an error only.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

_SYMBOLS = ("SymInt", "SymFloat")  # of torch: a number that torch.compile does not know yet


def dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def describe(value) -> str:
    return f"{dtype_name(value.dtype)} {list(value.shape)}"


def show(value: object) -> str:
    """At most 80 characters of a value of any type and size."""
    try:
        text = repr(value)
    except Exception:  # an int of more than 4300 digits has none, nor have some objects
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def not_floating(name: str, value) -> TypeError:
    return TypeError(f"{name}: expected a floating dtype (float16, bfloat16, float32, float64), got {describe(value)}")


def wrong_dtype(name: str, expected: object, value) -> TypeError:
    return TypeError(f"{name}: expected dtype {dtype_name(expected)}, got {describe(value)}")


def check_boxes_shape(name: str, value, shape: str, dims: Sequence[int] | None = None) -> None:
    size = value.shape
    if len(size) < 2 or size[-1] != 4 or (dims is not None and len(size) not in dims):
        raise ValueError(f"{name}: expected xyxy boxes of shape {shape}, got {describe(value)}")


def check_shape(name: str, value, shape: tuple[int, ...], meaning: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)} ({meaning}), got {describe(value)}")


def check_at_most(name: str, size: int, limit: int, of_what: str) -> None:
    if size > limit:
        raise ValueError(f"{name}: expected at most {limit} {of_what}, got {size}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {show(value)}")


def check_number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite number in [low, high], or (low, high] with open_low; returned as a float."""
    number = to_number(name, value)
    # Comparisons alone, which torch.compile can trace for a number that it does not know; a NaN fails them.
    if not (-math.inf < number < math.inf and low <= number <= high) or (open_low and number == low):
        bound = f"{'>' if open_low else '>='} {low:g}" + ("" if high == math.inf else f" and <= {high:g}")
        raise ValueError(f"{name}: expected a finite number {bound}, got {show(value)}")
    return number


def to_number(name: str, value: object) -> float:
    """Of a number of any type and value, NaN and infinity too."""
    kind = type(value)
    if (
        kind is not float
        and kind is not int
        and (kind is bool or not (isinstance(value, numbers.Real) or kind.__name__ in _SYMBOLS))
    ):
        raise wrong_type(name, "a number", value)
    return value if kind is float else _to_float(value)


def _to_float(value) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond 1.8e308
        return math.inf


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    kind = type(value)
    if kind is not int and (kind is bool or not (isinstance(value, numbers.Integral) or kind.__name__ == "SymInt")):
        raise wrong_type(name, "an int", value)
    if value < low or (high is not None and value > high):
        bound = f">= {low}" + ("" if high is None else f" and <= {high}")
        raise ValueError(f"{name}: expected an int {bound}, got {show(value)}")
    return int(value)
