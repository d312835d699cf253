"""An exponential moving average of the weights (Polyak averaging): smoother, so evaluated instead."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """A second copy of a model, `module`, that follows the first one slowly; batch statistics are averaged too.

    The first t steps count with a decay of at most (1 + t) / (10 + t), so that the random start is soon forgotten.
    Call `update_parameters(model)` after each optimizer step.

    Args:
        model: the trained model, already on its device.
        decay: share of the average that is kept at each step, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {decay}")
        super().__init__(model, multi_avg_fn=self._blend, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def _blend(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        steps = int(self.n_averaged)  # stays on the CPU: reading it does not wait for a GPU
        decay = min(self.decay, (1 + steps) / (10 + steps))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:  # counters
            torch._foreach_copy_(averaged, current)
