"""What is measured: a case is one size of one subject, with the sides that compete at it.

A subject's file has a `cases(plan)` that returns its cases. Bytes are counted from shapes, as the least any
implementation could move: every input is read once, every output written once. Operations are nominal: those of the
formula for all pairs. An implementation that finds out that pairs lie apart does fewer, so where ours does, the pairs
that it visits are counted on the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

OURS = "libra_ops"
EAGER = "eager"
COMPILED = "torch.compile"
COPY = "copy"  # of the same bytes; added by the harness where bytes bind


class Mismatch(AssertionError):
    """Two sides do not give the same result, so their times cannot be compared."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    sizes: "full", "quick" (the goals and little more) or "tiny" (for tests: everything, at sizes of no interest).
    seconds: about how long each side of a case is timed.
    samples: the most samples of a side; a slow side gets fewer, at least `fewest`.
    compile: whether sides under torch.compile run.
    memory: whose peak memory is measured: "all" sides, "ours" or "none".
    """

    device: torch.device
    sizes: str = "full"
    seconds: float = 1.0
    samples: int = 40
    fewest: int = 3
    compile: bool = True
    memory: str = "all"

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def choose(self, *, full: list, quick: list, tiny: list, cuda: list = ()) -> list:
        """A subject's sizes for this plan; `cuda`: those that only a GPU gets on top of the full ones."""
        return {"full": [*full, *(cuda if self.cuda else ())], "quick": quick, "tiny": tiny}[self.sizes]


@dataclass(frozen=True)
class Side:
    """One competitor at one case.

    call: takes the tensors of an input set and returns the result.
    prepare: turns an input set into what `call` takes, outside of the clock.
    agrees: (our result, this result); raises Mismatch, or returns a remark on a difference that does not make the
        times incomparable. None: nothing to compare, and `note` says why.
    needs: bytes of memory beyond inputs and result, counted from shapes; a side that needs more than is there is not
        run, and the table says so.
    one_set: always the same input set (data-dependent shapes would make torch.compile start anew).
    not_run: why it is left out, if it is.
    breakdown: where its time goes is measured too, see `benchmarks.breakdown`.
    release: called when the case is over, to give up what the side keeps.
    peak: its peak memory can be measured; not that of a CUDA graph, which had it when it was captured.
    """

    call: Callable[..., Any]
    prepare: Callable[[tuple], tuple] | None = None
    agrees: Callable[[Any, Any], str | None] | None = None
    needs: int = 0
    one_set: bool = False
    compiled: bool = False
    note: str = ""
    not_run: str = ""
    breakdown: bool = False
    release: Callable[[], None] | None = None
    peak: bool = True


@dataclass(frozen=True)
class Case:
    """One size of a subject.

    name: unique within its subject. size: what the plot has on its horizontal axis.
    make: an input set from a generator, as tensors on the CPU.
    sides: by name; OURS is the one the others are compared with.
    bytes: the least that has to be moved. operations: float32 instructions of the formula for all pairs, each for one
        number, counted only where arithmetic binds; 0: bytes bind.
    visits: of an input set, the pairs that our kernel looks at one by one, where it does so by a rule that can be
        computed; visit_operations: the least float32 instructions for one of them.
    training: a size at which detectors are trained. goal: measured first. memory: peak memory is measured.
    whole: a program and no operation (a training step, a data loader). It has no ceiling, several input sets whatever
        their size, at least `fewest` samples, and it may wait for the device.
    images: that a call works on, where it is to be seen beside images a second.
    """

    subject: str
    name: str
    size: int
    make: Callable[[torch.Generator], tuple]
    sides: dict[str, Side]
    bytes: int = 0
    operations: int = 0
    visits: Callable[..., int] | None = None
    visit_operations: int = 0
    training: bool = False
    goal: bool = False
    memory: bool = False
    whole: bool = False
    fewest: int = 0
    images: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def close(ours: torch.Tensor, theirs: torch.Tensor, what: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Raises Mismatch unless both are equal within the tolerance."""
    if ours.shape != theirs.shape:
        raise Mismatch(f"{what}: shape {list(ours.shape)} here, {list(theirs.shape)} there")
    apart = (ours - theirs).abs() > atol + rtol * theirs.abs()
    wrong = apart | (ours.isnan() != theirs.isnan())
    if wrong.any():
        worst = (ours - theirs).abs().nan_to_num(torch.inf).max().item()
        raise Mismatch(f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, by up to {worst:g}")


def mostly_equal(ours: torch.Tensor, theirs: torch.Tensor, what: str, share: float = 1e-3) -> None:
    """Raises Mismatch if more than `share` of the elements differ: ties and thresholds, decided by a rounding."""
    if ours.shape != theirs.shape:
        raise Mismatch(f"{what}: shape {list(ours.shape)} here, {list(theirs.shape)} there")
    differ = int((ours != theirs).sum())
    if differ > share * ours.numel():
        raise Mismatch(f"{what}: {differ} of {ours.numel()} differ, expected at most {share:.1%}")


EAGER_PAIRS = 30_000_000  # pairs of boxes beyond which a CPU takes seconds for one call that stores them all
EAGER_BYTES_PER_PAIR = 24  # two corners and their difference, two float32 each, live at once before they are clamped


def too_long(pairs: int, needs: int, plan: Plan, most: int = EAGER_PAIRS) -> str:
    """Why a side that stores every pair is left out on a CPU, or nothing; a side that has no room says that instead."""
    if plan.cuda or pairs <= most:
        return ""
    return f"left out: seconds a call, {needs / 1e9:.3g} GB"


def shown(*shape: int) -> str:
    """2000, 50 -> "2,000 x 50"."""
    return " x ".join(f"{size:,}" for size in shape)
