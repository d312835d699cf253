"""Steps as CUDA graphs: what is captured when, and on a GPU the same losses as without, and no wait for the device."""

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from libra_det.data import make_loader
from libra_det.step_graph import EAGER_STEPS, MOST_GRAPHS, StepGraphs
from libra_det.train import Trainer


class Numbers(NamedTuple):
    """Inputs of a step that adds them up."""

    values: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.values]

    def with_tensors(self, tensors) -> "Numbers":
        return Numbers(*tensors)


class Recorder:
    """Stands in for CUDA: while it captures, work is noted and not done; a replay does it."""

    def __init__(self, monkeypatch) -> None:
        self.tape: list | None = None
        self.computed = 0  # steps that Python went through
        recorder = self

        class Graph:
            def replay(self) -> None:
                for work in self.tape:
                    work()

        @contextmanager
        def capture(graph, pool, stream, capture_error_mode):
            recorder.tape = graph.tape = []
            yield
            recorder.tape = None

        class Stream:
            def wait_stream(self, other) -> None: ...

        @contextmanager
        def stream(_):
            yield

        for name, value in {
            "Stream": lambda device: Stream(),
            "current_stream": lambda device: Stream(),
            "graph_pool_handle": object,
            "CUDAGraph": Graph,
            "graph": capture,
            "stream": stream,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)

    def sum(self, inputs: Numbers) -> Tensor:
        self.computed += 1
        result = torch.zeros(())

        def work() -> None:
            result.copy_(inputs.values.sum())

        if self.tape is None:
            work()
        else:
            self.tape.append(work)
        return result


def test_each_shape_is_captured_once_and_every_step_sees_its_own_batch(monkeypatch):
    recorder = Recorder(monkeypatch)
    graphs = StepGraphs(recorder.sum, torch.device("cpu"))
    for step in range(10):
        for size in (2, 3):
            assert graphs(Numbers(torch.full((size,), float(step)))).item() == size * step
    assert recorder.computed == 2 * (EAGER_STEPS + 1)


def test_steps_of_too_many_shapes_run_without_a_graph(monkeypatch, capsys):
    recorder = Recorder(monkeypatch)
    graphs = StepGraphs(recorder.sum, torch.device("cpu"))
    for size in range(1, MOST_GRAPHS + 2):
        for _ in range(EAGER_STEPS + 3):
            assert graphs(Numbers(torch.ones(size))).item() == size
    assert recorder.computed == MOST_GRAPHS * (EAGER_STEPS + 1) + EAGER_STEPS + 3
    assert capsys.readouterr().err.count("--size-buckets") == 1


def trainer_on_gpu(tiny_config, run, detector: str, **changes) -> Trainer:
    config = tiny_config(log_gradient_share_every=0, **changes)
    model = replace(config.model, detector=detector, norm="group_norm")
    run.mkdir()
    return Trainer(replace(config, model=model), run, torch.device("cuda:0"))


@pytest.mark.cuda
def test_a_capture_does_not_mind_a_loader_at_work(tiny_config, tmp_path):
    """Whose thread pins the memory of the next batches meanwhile."""
    config = tiny_config(cuda_graph=True, epochs=6, log_gradient_share_every=0)
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(replace(config, data=replace(config.data, workers=2)), run, torch.device("cuda:0"))
    trainer.train()
    assert len(trainer.take_step._graphs._graphs) == 1


def losses_of(trainer: Trainer, batches, steps: int) -> list[list[float]]:
    values = []
    for step in range(steps):
        torch.manual_seed(step)
        values.append(trainer.take_step(batches[step % len(batches)], learning_rate=0.01).values.clone())
    return torch.stack(values).tolist()


@pytest.mark.cuda
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("changes", [{}, {"amp": True, "channels_last": True, "accumulate": 2}], ids=["plain", "all"])
def test_no_step_waits_for_the_gpu(tiny_config, tmp_path, detector, changes):
    """The whole of it: upload, learning rate, samples, losses, optimizer, moving average and the numbers' way back."""
    trainer = trainer_on_gpu(tiny_config, tmp_path / "run", detector, **changes)
    batch = next(iter(make_loader(trainer.dataset, device="cuda:0")))
    trainer._train_step(batch.to("cuda:0"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [trainer._train_step(batch.to("cuda:0")) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for step in steps for value in step.read().losses.values())


@pytest.mark.cuda
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("changes", [{}, {"amp": True, "channels_last": True}], ids=["plain", "all"])
def test_a_graphed_run_has_the_losses_of_an_eager_one(tiny_config, tmp_path, detector, changes):
    """Of two padded sizes in turns, with the learning rate, the samples and the weights of every step."""
    found = []
    for cuda_graph in (False, True):
        trainer = trainer_on_gpu(tiny_config, tmp_path / f"{cuda_graph}", detector, cuda_graph=cuda_graph, **changes)
        batches = [batch.to("cuda:0") for batch in make_loader(trainer.dataset)][:2]
        batches[1].images = torch.nn.functional.pad(batches[1].images, (0, 32, 0, 32))
        found.append(losses_of(trainer, batches, 2 * (EAGER_STEPS + 4)))
        if cuda_graph:
            assert len(trainer.take_step._graphs._graphs) == 2
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=2e-3, atol=1e-4)
