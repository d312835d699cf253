"""What one step of training does to the weights, and in which precision and memory format."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from libra_det.data import make_loader
from libra_det.train import Trainer, resume
from libra_det.train_step import StepInputs, gradient_norms


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
    before = [parameter.detach().clone() for parameter in trainer.take_step.parameters]
    take_step(trainer)
    moved = torch.nn.utils.get_total_norm(
        [new - old for new, old in zip(trainer.take_step.parameters, before, strict=True)]
    )
    assert moved.item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_no_clipping_where_none_is_asked_for(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(**full_rate(gradient_clip=None)), tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.take_step.parameters]
    take_step(trainer)
    moved = torch.nn.utils.get_total_norm(
        [new - old for new, old in zip(trainer.take_step.parameters, before, strict=True)]
    )
    gradient = torch.nn.utils.get_total_norm([p.grad for p in trainer.take_step.parameters if p.grad is not None])
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
    assert all(parameter.dtype == torch.float32 for parameter in trainer.take_step.parameters)
    evaluation = trainer.train()
    assert math.isfinite(evaluation.metrics.voc_ap50)


@pytest.mark.parametrize(("amp", "supported"), [(True, False), (True, True), (False, False)])
def test_amp_on_a_processor_without_bfloat16_is_told(tiny_config, tmp_path, monkeypatch, capsys, amp, supported):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: supported)
    new_trainer(tiny_config(amp=amp), tmp_path / "run")
    assert ("give --no-amp" in capsys.readouterr().err) == (amp and not supported)


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


def test_gradient_norms_by_hand():
    features = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
    elsewhere = torch.ones(1, requires_grad=True)
    losses = [3 * features[0].sum(), features[0].sum() + 2 * features[1].sum(), elsewhere.sum() * 5]
    norms = gradient_norms(losses, features)
    assert [norm.item() for norm in norms] == pytest.approx([math.sqrt(18), math.sqrt(6), 0.0])
    sum(losses).backward()  # the graph is still there, and nothing was added to what it gives
    assert features[0].grad.tolist() == [4.0, 4.0] and elsewhere.grad.tolist() == [5.0]


def test_parts_of_a_batch_add_up_to_its_gradient(tiny_config, tmp_path):
    """With statistics that do not depend on the batch, and all samples of each image counted alike."""
    moved = {}
    for parts in (1, 2):
        config = tiny_config(**full_rate(gradient_clip=None, accumulate=parts))
        model = replace(config.model, norm="group_norm", detector="retinanet", pyramid="none")
        trainer = new_trainer(replace(config, model=model), tmp_path / f"{parts}")
        trainer.model.bbox_head.losses = lambda predictions, *_: {"class": predictions.logits.square().mean()}
        before = [parameter.detach().clone() for parameter in trainer.take_step.parameters]
        take_step(trainer)
        moved[parts] = [new - old for new, old in zip(trainer.take_step.parameters, before, strict=True)]
    assert any(change.abs().max() > 1e-4 for change in moved[1])
    for whole, added in zip(moved[1], moved[2], strict=True):
        torch.testing.assert_close(added, whole, rtol=1e-4, atol=1e-6)


def test_compiled_steps_move_the_weights_as_eager_ones(tiny_config, tmp_path, monkeypatch):
    """Without code generation: its other rounding turns a ReLU here and there, which moves a weight by a percent."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    moved = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        trainer = new_trainer(tiny_config(**full_rate(compile=compiled, learning_rate=0.01)), tmp_path / f"{compiled}")
        before = [parameter.detach().clone() for parameter in trainer.take_step.parameters]
        for _ in range(2):
            take_step(trainer)
        moved[compiled] = [new - old for new, old in zip(trainer.take_step.parameters, before, strict=True)]
    assert any(change.abs().max() > 1e-4 for change in moved[True])
    for ours, expected in zip(moved[True], moved[False], strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm() + 1e-7


def test_unequal_parts_count_by_their_images(tiny_config, tmp_path):
    """Three images in two parts: the loss is the mean over images."""
    trainer = new_trainer(tiny_config(**full_rate(accumulate=2)), tmp_path / "run")
    trainer.take_step._losses.forward = lambda part, measure: (
        {"red": part.images.float().mean() + 0 * next(trainer.model.parameters()).sum()},
        None,
    )
    trainer.take_step._shared_losses = trainer.take_step._losses
    whole = next(iter(make_loader(trainer.dataset)))
    three = replace(
        whole,
        images=torch.tensor([30, 60, 120], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 32, 32).clone(),
        sizes=whole.sizes[[0, 0, 0]],
        targets=type(whole.targets)(*(tensor[[0, 0, 0]] for tensor in whole.targets)),
    )
    assert trainer.take_step(three, learning_rate=0.1).values[0].item() == pytest.approx(70.0)


def test_sizes_beyond_what_is_compiled_run_without(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("libra_det.train_step.MOST_PROGRAMS", 2)
    torch._dynamo.reset()
    config = tiny_config(compile=True)
    trainer = new_trainer(replace(config, model=replace(config.model, norm="group_norm")), tmp_path / "run")
    batch = next(iter(make_loader(trainer.dataset)))
    for width in (64, 96, 128, 160, 64):
        images = torch.zeros(2, 3, 64, width, dtype=torch.uint8)
        values = trainer.take_step(replace(batch, images=images), learning_rate=0.0).values
        assert values.isfinite().all()
    assert capsys.readouterr().err.count("--compile: there are 2 programs") == 1


@pytest.mark.parametrize("before", [False, True])
def test_a_resumed_run_may_lie_otherwise_in_memory(tiny_config, tmp_path, before):
    """The momentum of a checkpoint goes to the weights that it belongs to, channels-last or not."""
    trainer = new_trainer(tiny_config(epochs=1, channels_last=before, ema_decay=0.0), tmp_path / "run")
    trainer.train()
    changed = []
    for channels_last in (False, True):
        config = tiny_config(epochs=2, channels_last=channels_last, ema_decay=0.0)
        again = resume(trainer.run, torch.device("cpu"), config)
        start = [parameter.detach().clone() for parameter in again.take_step.parameters]
        for parameter in again.take_step.parameters:  # a step of momentum alone
            parameter.grad = torch.zeros_like(parameter)
        again.optimizer.step()
        pairs = zip(again.take_step.parameters, start, strict=True)
        changed.append([(new - old).detach().contiguous() for new, old in pairs])
    assert any(change.abs().max() > 0 for change in changed[0])
    assert all(torch.equal(one, other) for one, other in zip(*changed, strict=True))


def test_a_step_s_samples_follow_from_its_seed(tiny_config, tmp_path):
    """However the step runs, its seeds come from the CPU's generator and go in with the batch, one pair a part."""
    trainer = new_trainer(tiny_config(), tmp_path / "run")
    batch = next(iter(make_loader(trainer.dataset)))
    torch.manual_seed(5)
    one, two = StepInputs.of(batch), StepInputs.of(batch, 4)
    torch.manual_seed(5)
    assert torch.equal(one.seeds, StepInputs.of(batch).seeds) and one.seeds.shape == (1, 2)
    assert two.seeds.shape == (2, 2) and len({*one.seeds.flatten().tolist(), *two.seeds.flatten().tolist()}) == 6
    assert [part.images.shape[0] for part in two.split()] == [1, 1]
    state = torch.get_rng_state()
    losses = [trainer.take_step._losses(one, False)[0] for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert losses[0] == losses[1]


def test_parts_that_do_not_divide_the_batch_are_refused(tiny_config):
    with pytest.raises(ValueError, match="accumulate: expected a divisor of batch_size 2, got 3"):
        tiny_config(accumulate=3)


def test_a_cuda_graph_needs_a_gpu(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="--cuda-graph: expected a CUDA device, got cpu"):
        new_trainer(tiny_config(cuda_graph=True), tmp_path / "run")
