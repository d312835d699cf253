"""Checks of configurations: a value of another type or outside its range is an error that names the field."""

from __future__ import annotations

import math
import numbers
import typing
from typing import Any, Literal

from libra_det.terminal import shown

MOST_ITEMS = 64
"""The longest tuple of a field, such as the ratios of anchors. No real configuration comes near it."""
LARGEST = 1e38
"""The bound of a number that has no other: what float32 holds."""


def check_fields(config: Any, intervals: dict[str, str]) -> None:
    """Compare the fields of a dataclass with their annotations, and numbers with their interval.

    Args:
        config: the dataclass. Whole numbers do where a float is declared; every number has to be finite.
        intervals: "[1, 64]" or "[0, 1)" or such -> names of the fields, with spaces between them, whose numbers lie
            in there; also each number of a tuple. Every whole number needs one: what is read from a file must not
            be able to ask for any amount of memory.

    Raises:
        TypeError: a field holds another type than declared.
        ValueError: a number outside its interval, not one of the choices of a Literal, or more than 64 numbers.
    """
    interval_of = {name: interval for interval, names in intervals.items() for name in names.split()}
    for name, hint in typing.get_type_hints(type(config)).items():
        value, interval = getattr(config, name), interval_of.get(name)
        if typing.get_origin(hint) is Literal:
            if not isinstance(value, str) or value not in typing.get_args(hint):
                raise ValueError(f"{name}: expected one of {', '.join(typing.get_args(hint))}; got {shown(value)}")
            continue
        expected = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
        if interval is not None:
            expected += f" in {interval}"
        if isinstance(value, tuple) and len(value) > MOST_ITEMS:
            raise ValueError(f"{name}: expected at most {MOST_ITEMS} values, got {len(value)}")
        if not _has_type(value, hint):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, numbers.Real) and not _contains(interval or f"[-{LARGEST}, {LARGEST}]", number):
                raise ValueError(f"{name}: expected {expected}, got {shown(value)}")


def check_order(config: Any, low: str, high: str) -> None:
    """Field `low` is at most field `high`, or a ValueError names both."""
    if getattr(config, low) > getattr(config, high):
        raise ValueError(f"{low}: expected at most {high} {getattr(config, high)}, got {getattr(config, low)}")


def _has_type(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if arguments:  # of a union
        return any(_has_type(value, argument) for argument in arguments)
    if hint in (int, float):  # a bool is an int to Python, not to a reader
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def _contains(interval: str, number: float) -> bool:
    """A whole number may be larger than any float: Python compares them, and does not convert it."""
    low, high = map(float, interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return above and below and math.isfinite(number)
