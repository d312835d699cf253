"""Several processes that train or evaluate together: what each knows of the others, and what they tell each other.

`torchrun --nproc-per-node 2 -m libra_det.cli train ...` starts the processes and says in the environment who is who.
On GPUs tensors go through NCCL, on the CPU through gloo; Python objects always go through gloo, so that a wait for
what only the first process does (measuring, writing) is no wait of a GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from libra_det.devices import choose_device
from libra_det.interrupt import Interrupted
from libra_det.terminal import say

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for what only the first one does, such as measuring a large data set."""
FIRST_WORD = 5.0
"""Seconds that the others leave to the first process to report an error that all have met; torchrun then ends them."""


@dataclass(frozen=True)
class World:
    """The processes that work together, and which of them this is. One process alone is `ALONE`."""

    rank: int = 0
    size: int = 1
    objects: Any = None  # group of all processes through which objects go

    @property
    def is_main(self) -> bool:
        """This is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.objects)
        return values

    def gather_to_main(self, value: T) -> list[T]:
        """Every process's value, by rank, in the first process; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_main else []
        dist.gather_object(value, values if self.is_main else None, group=self.objects)
        return values

    def from_main(self, compute: Callable[[], T]) -> T:
        """What `compute` returns, or raises, in the first process: the others wait for it."""
        if self.size == 1:
            return compute()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = compute()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0, group=self.objects)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def raise_first(self, error: Exception | None) -> None:
        """Raise in every process the error of the first one that has one. Without any nothing happens."""
        errors = [other for other in self.gather(error) if other is not None]
        if errors:
            raise errors[0] if error is None else error

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor on the device of each; a GPU's host does not wait for it."""
        if self.size == 1:
            return values
        values = values / self.size
        dist.all_reduce(values)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, such as batch statistics, which each gathers for itself."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


ALONE = World()


def warn(message: str) -> None:
    """Say a warning on the standard error; of several processes, which all meet its reason, the first one does."""
    if os.environ.get("RANK", "0") == "0":
        say(f"libra: warning: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def joined_world(device: str) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun has started, and the device of this one. Without torchrun: `ALONE`.

    Within the context only the first process prints to the standard output. An error that another one meets is
    reported by it only if the first has nothing to report within `FIRST_WORD`.

    Args:
        device: what the user asked for: auto, cpu, cuda, and without torchrun cuda:N.

    Raises:
        ValueError: there is no such device, or it is not for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield ALONE, chosen
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with contextlib.ExitStack() as stack:
        if rank > 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            chosen = device_of_process(device, int(os.environ.get("LOCAL_RANK", "0")))
            if chosen.type == "cuda":
                torch.cuda.set_device(chosen)
                dist.init_process_group("nccl", store=_fresh_store(size), rank=rank, world_size=size, device_id=chosen)
                objects = dist.new_group(backend="gloo", timeout=PATIENCE)
            else:
                dist.init_process_group("gloo", store=_fresh_store(size), rank=rank, world_size=size, timeout=PATIENCE)
                objects = dist.group.WORLD
            yield World(rank, size, objects), chosen
        except Interrupted as stop:
            if rank > 0:  # all have stopped after the same step, and the first one says so
                raise SystemExit(stop.exit_code) from None
            raise
        except Exception:
            if rank > 0:
                time.sleep(FIRST_WORD)
            raise
        dist.destroy_process_group()


def _fresh_store(size: int) -> dist.Store:
    """Where the processes find each other's addresses: torchrun's store, but without those of earlier processes.

    torchrun keeps one store when it starts processes again (torch 2.11; torch takes it for a new one), and new ones
    would call at addresses where nobody listens any more. So does a process that joins twice.
    """
    store, _, _ = next(rendezvous("env://"))
    attempt = f"libra/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    joined_before = (store.add(attempt, 1) - 1) // size  # nobody joins again before all have joined
    return dist.PrefixStore(f"{attempt}/{joined_before}", store)


def device_of_process(name: str, local_rank: int) -> torch.device:
    """The device that a process takes: of GPUs the one with its number on this machine.

    Raises:
        ValueError: a certain GPU was asked for; or as `choose_device`, if there are fewer GPUs than processes.
    """
    if name.startswith("cuda:"):
        raise ValueError(
            f"--device {name}: expected auto, cpu or cuda with torchrun, where each process takes a GPU of its own; "
            "CUDA_VISIBLE_DEVICES chooses among them"
        )
    kind = choose_device(name)
    return choose_device(f"cuda:{local_rank}") if kind.type == "cuda" else kind
