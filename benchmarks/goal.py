"""A goal, and what its measure reads from a run's JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.tables import ratio


@dataclass(frozen=True)
class Goal:
    """kind: cpu or cuda. limit: what `measure` has to reach, or with at_most what it may not exceed.

    counted: of a run, in words, the cases that `measure` looks at, where they are several.
    """

    kind: str
    subject: str
    words: str
    limit: float
    measure: Callable[[dict], float | None]
    show: Callable[[float], str] = ratio
    at_most: bool = False
    counted: Callable[[dict], str] | None = None

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


def find(run: dict, subject: str, case: str) -> dict | None:
    return next((one for one in run["cases"] if (one["subject"], one["case"]) == (subject, case)), None)


def time_of(case: dict | None, side: str) -> float | None:
    return case["sides"].get(side, {}).get("median") if case else None


def quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def percent(value: float) -> str:
    return f"{value:.0%}"
