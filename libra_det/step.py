"""What one training step computed, and what of it is shown, logged and checked."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from libra_det.distributed import ALONE, World
from libra_det.files import NotWritten, write_json

CURES = (
    "Usual cures: a lower --learning-rate, more --warmup-steps, --gradient-clip 10, and a look at the annotations "
    "with `libra check`"
)


class NonFiniteLoss(RuntimeError):
    """A loss, the gradient or a weight became NaN or infinite; training has stopped without saving the weights."""


@dataclass
class Step:
    """What a step computed. On a GPU `values` is still under way until `ready` has happened."""

    step: int  # of the whole run, from 1
    file_names: list[str]
    learning_rate: float
    names: list[str]  # of the losses
    values: Tensor  # float32 on the CPU: stop, the losses, the gradient's norm, and where measured that of each loss
    ready: torch.cuda.Event | None
    time: float  # when it was computed, or handed to the GPU

    @classmethod
    def of(
        cls,
        step: int,
        file_names: list[str],
        learning_rate: float,
        names: list[str],
        values: Tensor,
        *,
        stop: bool = False,
        world: World = ALONE,
    ) -> Step:
        """Start to bring the numbers to the CPU.

        Args:
            step, file_names, learning_rate: as above.
            names, values: of `TrainStep`, on its device.
            stop: this process asks all to stop.
            world: the processes, over which numbers become means.
        """
        values, ready = world.mean(torch.cat([values.new_full((1,), float(stop)), values.detach()])), None
        if values.is_cuda:
            stream = torch.cuda.current_stream(values.device)
            values = values.to("cpu", non_blocking=True)  # into page-locked memory
            ready = torch.cuda.Event()
            ready.record(stream)
        return cls(step, file_names, learning_rate, names, values, ready, time.perf_counter())

    def read(self) -> StepNumbers:
        """The numbers, once they are there."""
        if self.ready is not None:
            self.ready.synchronize()
        stop, *numbers = self.values.tolist()
        count = len(self.names)
        losses = dict(zip(self.names, numbers[:count], strict=True))
        norms = dict(zip(self.names, numbers[count + 1 :], strict=False))  # none where they were not measured
        return StepNumbers(losses, numbers[count], norms, stop > 0)


@dataclass
class StepNumbers:
    """The numbers of a step as the log has them, the same in all processes."""

    losses: dict[str, float]
    gradient_norm: float
    loss_norms: dict[str, float]  # norm of each loss's gradient with respect to the pyramid; empty if not measured
    stop: bool  # a process asked all to stop, not later than after the next step

    @property
    def total(self) -> float:
        return sum(self.losses.values())

    def scalars(self) -> dict[str, float]:
        """By their names in log.jsonl and TensorBoard."""
        return {
            **{f"loss/{name}": value for name, value in self.losses.items()},
            "loss/total": self.total,
            **{f"loss_share/{name}": share for name, share in _shares(self.losses).items()},
            **{f"gradient_share/{name}": share for name, share in _shares(self.loss_norms).items()},
            "gradient_norm": self.gradient_norm,
        }


def check_finite(done: Step, numbers: StepNumbers, run: Path, world: World = ALONE) -> None:
    """A loss or gradient that is not finite is a `NonFiniteLoss`, and RUN/non_finite.json lists the step's images."""
    culprits = [name for name, value in numbers.losses.items() if not math.isfinite(value)]
    if not culprits and math.isfinite(numbers.gradient_norm):
        return
    file = run / "non_finite.json"
    file_names = [name for names in world.gather(done.file_names) for name in names]
    facts = {"step": done.step, "file_names": file_names, "learning_rate": done.learning_rate}
    losses = {name: str(value) for name, value in numbers.losses.items()}
    where = f"{file} lists the images of this step"
    try:
        if world.is_main:
            write_json(file, {**facts, "losses": losses, "gradient_norm": str(numbers.gradient_norm)})
    except NotWritten as error:
        where = f"The images of this step are {', '.join(file_names)} ({error})"
    raise NonFiniteLoss(
        f"step {done.step}: {', '.join(culprits) or 'the gradient'} became NaN or infinite; no weights were saved. "
        f"{where}. {CURES}"
    )


def _shares(values: dict[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total if total > 0 else 0.0 for name, value in values.items()}
