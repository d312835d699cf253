"""The batches of an epoch in all processes alike: either each of them takes a step or none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from libra_det.distributed import World
from libra_det.interrupt import Interruptible
from libra_det.structures import Batch

AHEAD = 2
"""Batches that one of several processes holds besides the current one. What a process reports with a step is read when
the next one is under way: so all know of a batch that cannot be had before any of them begins with it."""


class SharedBatches:
    """A loader's batches until there are no more, one cannot be had, or the processes agree to stop.

    A process that is interrupted, or that cannot have the batch after the next, says so by `asks_to_stop`, which goes
    with the numbers of its step to all processes. Whoever reads there that one asked sets `stopped`.

    Args:
        loader: of this process's share of the batches; as many as in the others.
        interrupt: a terminal's Ctrl-C may end the loader's worker processes as well, which is no error.
        world: the processes.

    Attributes:
        asks_to_stop: while a batch is worked on, this process asks all to stop.
        stopped: no further batch is wanted.
        error: why this process could not have a batch, or cannot go on for another reason that is set from outside.
    """

    def __init__(self, loader: Iterable[Batch], interrupt: Interruptible, world: World) -> None:
        self.loader, self.interrupt, self.world = loader, interrupt, world
        self.asks_to_stop = self.stopped = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Batch]:
        source = self._read()
        held = deque(islice(source, AHEAD if self.world.size > 1 else 0))
        # The steps that all can take, if one of them had to stop this early.
        limits = [count for count, ends in self.world.gather((len(held), self._has_to_stop())) if ends]
        while not self.stopped and not (self.world.size == 1 and self._has_to_stop()):
            held.extend(islice(source, 1))
            if not held or 0 in limits:
                return
            self.asks_to_stop = self._has_to_stop()
            yield held.popleft()
            limits = [count - 1 for count in limits]

    def _has_to_stop(self) -> bool:
        return self.error is not None or self.interrupt.signal_number is not None

    def _read(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        except Exception as error:
            if self.interrupt.signal_number is None:
                self.error = error
