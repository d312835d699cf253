"""One hostile file, and the command or function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Attack:
    """Files that lie in the current folder, and what is done with them there, in a child."""

    kind: str
    words: str  # what is hostile
    arguments: tuple[str, ...] = ()  # of `libra`
    function: Callable[[], None] | None = None
    """In place of the command: it returns, raises an error that the contract promises, or AssertionError."""
    check: Callable[[], None] | None = None
    """After the command succeeded. Raises AssertionError."""


class Place(NamedTuple):
    """Where an attack's files lie."""

    folder: Path  # its own, the current folder of the child
    seeds: Path  # valid files, which nobody writes to
    canary: Path  # a file that only an exploit would make
