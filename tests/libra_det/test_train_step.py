"""What one step of training does to the weights, and in which precision and memory format."""

import math

import pytest
import torch

from libra_det.data import make_loader
from libra_det.train import Trainer


def new_trainer(config, run) -> Trainer:
    run.mkdir()
    return Trainer(config, run, torch.device("cpu"))


def take_step(trainer: Trainer) -> None:
    """One step at the full learning rate, without the loop around it."""
    trainer._train_step(next(iter(make_loader(trainer.dataset))))


def full_rate(**changes) -> dict:
    return {"schedule": "cosine", "warmup_steps": 0, "learning_rate": 0.5, "weight_decay": 0.0, **changes}


def test_the_gradient_is_clipped(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(**full_rate(gradient_clip=0.01)), tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    take_step(trainer)
    moved = torch.nn.utils.get_total_norm([new - old for new, old in zip(trainer.parameters, before, strict=True)])
    assert moved.item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_no_clipping_where_none_is_asked_for(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(**full_rate(gradient_clip=None)), tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    take_step(trainer)
    moved = torch.nn.utils.get_total_norm([new - old for new, old in zip(trainer.parameters, before, strict=True)])
    gradient = torch.nn.utils.get_total_norm([p.grad for p in trainer.parameters if p.grad is not None])
    assert moved.item() == pytest.approx(0.5 * gradient.item(), rel=1e-3)


def test_weight_decay_moves_a_weight_without_gradient(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(**full_rate(weight_decay=0.1)), tmp_path / "run")
    weight = trainer.model.rpn_head.rpn_conv.weight
    weight.register_hook(torch.zeros_like)
    before = weight.detach().clone()
    take_step(trainer)
    torch.testing.assert_close(weight.detach(), before * (1 - 0.5 * 0.1))


@pytest.mark.parametrize("amp", [False, True])
def test_amp_computes_in_bfloat16(tiny_config, tmp_path, amp):
    trainer = new_trainer(tiny_config(epochs=1, amp=amp), tmp_path / "run")
    seen = set()
    trainer.model.rpn_head.rpn_cls.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    take_step(trainer)
    assert seen == {torch.bfloat16 if amp else torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.parameters)
    evaluation = trainer.train()
    assert math.isfinite(evaluation.metrics.voc_ap50)


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_reaches_images_weights_and_their_average(tiny_config, tmp_path, channels_last):
    trainer = new_trainer(tiny_config(epochs=1, channels_last=channels_last), tmp_path / "run")
    seen = []
    for model in (trainer.model, trainer.average.module):
        weight = model.backbone.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    trainer.model.backbone.conv1.register_forward_hook(
        lambda module, inputs, output: seen.extend((inputs[0], output)),
    )
    take_step(trainer)
    assert [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen] == [channels_last] * 2
