"""What became of attacks: one outcome each, counted by kind and by cause."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

REFUSED, HANDLED, FAILED = "refused", "handled", "failed"


@dataclass(frozen=True)
class Outcome:
    """How one attack ended."""

    number: int
    kind: str  # what was attacked: a function, a kind of file
    verdict: str  # REFUSED, HANDLED or FAILED
    cause: str = ""  # of a failure: the same words for failures that have the same reason
    details: str = ""  # of a failure: the attack, and what it did
    seconds: float = 0.0


class Table:
    """Counts outcomes and writes those that failed to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.causes: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], int] = {}

    def count(self, kind: str, verdict: str, times: int = 1) -> None:
        self.counts[kind][verdict] += times

    def add(self, outcome: Outcome) -> None:
        self.count(outcome.kind, outcome.verdict)
        if outcome.verdict != FAILED:
            return
        key = outcome.kind, outcome.cause
        self.causes[key] += 1
        self.examples.setdefault(key, outcome.number)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{outcome.kind.replace(' ', '_')}-{outcome.number}"
        (self.folder / f"{name}.txt").write_text(f"{outcome.cause}\n\n{outcome.details}\n", errors="backslashreplace")

    @property
    def tried(self) -> int:
        return sum(sum(verdicts.values()) for verdicts in self.counts.values())

    @property
    def failed(self) -> int:
        return sum(verdicts[FAILED] for verdicts in self.counts.values())

    def text(self) -> str:
        """The table, and below it each cause of failure with its number of attacks and the first of them."""
        rows = [("attacked", "tried", REFUSED, HANDLED, FAILED)]
        columns = (REFUSED, HANDLED, FAILED)
        for kind, verdicts in sorted(self.counts.items()):
            rows.append((kind, str(sum(verdicts.values())), *(str(verdicts[column]) for column in columns)))
        totals = (str(sum(verdicts[column] for verdicts in self.counts.values())) for column in columns)
        rows.append(("all", str(self.tried), *totals))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
        for (kind, cause), times in sorted(self.causes.items(), key=lambda item: (item[0][0], -item[1])):
            lines.append(f"\n{kind}: {times} x, such as number {self.examples[kind, cause]}\n  {cause}")
        return "\n".join(lines)

    def write_json(self, file: Path, **facts: object) -> None:
        causes = [
            {"kind": kind, "cause": cause, "times": times, "example": self.examples[kind, cause]}
            for (kind, cause), times in self.causes.items()
        ]
        counts = {kind: dict(verdicts) for kind, verdicts in sorted(self.counts.items())}
        file.write_text(json.dumps({**facts, "counts": counts, "causes": causes}, indent=2) + "\n")


def to_line(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome)) + "\n"


def from_line(line: str) -> Outcome:
    return Outcome(**json.loads(line))
