"""Losses on several streams and in graphs at a time: sums whose last block counts the others in.

Which counter a launch uses: launch_ticket.h; tests/emulation/test_launch_ticket.py has the rules without a GPU. The
counters are each operation's own.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from libra_ops import balanced_l1_loss, box_regression_loss, sigmoid_focal_loss

HERE = Path(__file__).resolve()
pytestmark = pytest.mark.cuda


def errors(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 4, generator=generator).cuda() for _ in range(2))


def boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """[count, 4] xyxy of up to 64 pixels, and as many beside them."""
    generator = torch.Generator().manual_seed(seed)
    first, size, shift = (torch.rand(count, 2, generator=generator) * 64 for _ in range(3))
    pred = torch.cat([first, first + size], 1)
    return pred.cuda(), (pred + shift.repeat(1, 2) / 8).cuda()


def slots(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """logits [count, 4] and labels [count], 4 being the background."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator)
    return logits.cuda(), torch.randint(5, (count,), generator=generator).cuda()


LOSSES = {  # the function, and what makes its two arguments of so many rows; the first has the gradient
    "balanced_l1_loss": (balanced_l1_loss, errors),
    "box_regression_loss": (box_regression_loss, boxes),
    "sigmoid_focal_loss": (sigmoid_focal_loss, slots),
}


@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_streams_and_of_a_replayed_graph_do_not_meet(name):
    """Four streams sum 250,000 rows 200 times each while a graph of ten such sums is replayed on a fifth."""
    function, make = LOSSES[name]
    inputs = [make(250_000, seed) for seed in range(5)]
    expected = [function(*one, reduction="sum") for one in inputs]
    assert len({value.item() for value in expected}) == 5
    main = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(4)]
    graph, graph_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=graph_stream):
        captured = torch.stack([function(*inputs[4], reduction="sum") for _ in range(10)])
    sums, replays = [[] for _ in streams], []
    for stream in (*streams, graph_stream):
        stream.wait_stream(main)
    for turn in range(200):
        for stream, one, found in zip(streams, inputs, sums, strict=False):
            with torch.cuda.stream(stream):
                found.append(function(*one, reduction="sum"))
        if turn % 4 == 0:
            with torch.cuda.stream(graph_stream):
                graph.replay()
                replays.append(captured.clone())
    torch.cuda.synchronize()
    for found, wanted in zip((*sums, replays), expected, strict=True):
        assert (torch.stack(found) == wanted).all()


def capture_more_sums_than_there_are_counters(name: str, counters: int = 16_384) -> None:
    """Sums in a graph that takes all counters, and beyond; then on a stream that has no counter any more."""
    function, make = LOSSES[name]
    inputs = make(5000, seed=0)  # of several blocks: one block alone needs no counter
    expected = function(*inputs, reduction="sum")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums = [function(*inputs, reduction="sum") for _ in range(counters + 20)]
    for _ in range(3):
        graph.replay()
        assert (torch.stack(sums) == expected).all(), "in the graph"
    new = torch.cuda.Stream()
    new.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(new):
        later = torch.stack([function(*inputs, reduction="sum") for _ in range(20)])
    torch.cuda.synchronize()
    assert (later == expected).all(), "on a new stream"


@pytest.mark.parametrize("name", LOSSES)
def test_more_captured_sums_than_counters(name):
    """In a process of its own, since captured launches keep their counters for good."""
    program = f"import sys; sys.path.append({str(HERE.parent)!r}); import {HERE.stem} as tests; tests."
    program += f"{capture_more_sums_than_there_are_counters.__name__}({name!r})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_graphed_backward_twice_with_a_factor(name, reduction):
    """The graph of the backward pass runs twice on what one forward pass saved: it must not scale that in place."""
    function, make = LOSSES[name]
    leaf, other = make(1000, seed=0)
    samples = leaf.clone().requires_grad_(), other.clone()

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        return function(pred, target, reduction=reduction)

    def gradients(function) -> list[Tensor]:
        pred = leaf.clone().requires_grad_()
        value = (function(pred, other) * 2).sum()
        found = []
        for _ in range(2):
            pred.grad = None
            value.backward(retain_graph=True)
            found.append(pred.grad.clone())
        return found

    graphed = torch.cuda.make_graphed_callables(loss, samples)
    for _ in range(2):
        for got, expected in zip(gradients(graphed), gradients(loss), strict=True):
            assert torch.equal(got, expected)
