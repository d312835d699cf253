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
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow `model` by a step; the first one is copied. Nothing waits for a GPU: the counter is on the CPU.

        AveragedModel's own would copy the counter to the device first, which waits.
        """
        steps = int(self.n_averaged)
        decay = 0.0 if steps == 0 else min(self.decay, (1 + steps) / (10 + steps))
        (averaged, own_counters), (current, counters) = _tensors(self.module), _tensors(model)
        torch._foreach_lerp_(averaged, current, 1 - decay)
        if counters:
            torch._foreach_copy_(own_counters, counters)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: the floating ones, which are averaged, and the counters among them."""
    tensors = [*model.parameters(), *model.buffers()]
    return [x for x in tensors if x.is_floating_point()], [x for x in tensors if not x.is_floating_point()]
