"""The moving average of the weights."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from libra_det.average import WeightAverage


def test_average_follows_the_warmed_up_decay_in_weights_and_statistics():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = WeightAverage(model, decay=0.3)
    weight, mean = 0.0, 0.0
    for step in range(6):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
            model[1].running_mean.fill_(10.0 * step)
            model[1].num_batches_tracked.fill_(step)
        average.update_parameters(model)
        decay = 0.0 if step == 0 else min(0.3, (1 + step) / (10 + step))
        weight, mean = decay * weight + (1 - decay) * step, decay * mean + (1 - decay) * 10 * step
        assert average.module[0].weight.item() == pytest.approx(weight)
        assert average.module[1].running_mean.item() == pytest.approx(mean)
        assert average.module[1].num_batches_tracked.item() == step


def test_average_does_not_change_the_trained_model():
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    average = WeightAverage(model, decay=0.9)
    average.update_parameters(model)
    average.update_parameters(model)
    torch.testing.assert_close(model.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decay(decay):
    with pytest.raises(ValueError, match="ema_decay"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_following_a_model_copies_nothing_from_the_cpu():
    """The device is played by "meta": a copy to it from the CPU would make the host wait for a GPU."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to("meta")
    average = WeightAverage(model, 0.9)
    with Copies() as copies:
        for _ in range(3):
            average.update_parameters(model)
    assert copies.devices and copies.devices == {"meta"}


class Copies(TorchDispatchMode):
    """The devices of all tensors that operations with a tensor of "meta" are given."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        found = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        if "meta" in found:
            self.devices |= found
        return result
