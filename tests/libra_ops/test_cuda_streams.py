"""balanced_l1_loss on several streams and in graphs at a time: sums whose last block counts the others in.

Which counter a launch uses: launch_ticket.h; tests/emulation/test_launch_ticket.py has the rules without a GPU.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from libra_ops import balanced_l1_loss

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.cuda


def errors(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, generator=generator).cuda() for _ in range(2))


def total(pred: Tensor, target: Tensor) -> Tensor:
    return balanced_l1_loss(pred, target, reduction="sum")


def test_sums_of_streams_and_of_a_replayed_graph_do_not_meet():
    """Four streams sum a million elements 200 times each while a graph of ten such sums is replayed on a fifth."""
    inputs = [errors(1_000_000, seed) for seed in range(5)]
    expected = [total(*one) for one in inputs]
    main = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(4)]
    graph, graph_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=graph_stream):
        captured = torch.stack([total(*inputs[4]) for _ in range(10)])
    sums, replays = [[] for _ in streams], []
    for stream in (*streams, graph_stream):
        stream.wait_stream(main)
    for turn in range(200):
        for stream, one, found in zip(streams, inputs, sums, strict=False):
            with torch.cuda.stream(stream):
                found.append(total(*one))
        if turn % 4 == 0:
            with torch.cuda.stream(graph_stream):
                graph.replay()
                replays.append(captured.clone())
    torch.cuda.synchronize()
    for found, wanted in zip((*sums, replays), expected, strict=True):
        assert (torch.stack(found) == wanted).all()


MORE_THAN_THERE_ARE = """
import torch
from libra_ops import balanced_l1_loss

generator = torch.Generator().manual_seed(0)
pred, target = (torch.randn(20_000, generator=generator).cuda() for _ in range(2))
expected = balanced_l1_loss(pred, target, reduction="sum")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    sums = [balanced_l1_loss(pred, target, reduction="sum") for _ in range(16_384 + 20)]
for _ in range(3):
    graph.replay()
    assert (torch.stack(sums) == expected).all(), "in the graph"
new = torch.cuda.Stream()
new.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(new):
    later = torch.stack([balanced_l1_loss(pred, target, reduction="sum") for _ in range(20)])
torch.cuda.synchronize()
assert (later == expected).all(), "on a new stream"
"""


def test_more_captured_sums_than_counters():
    """In a process of its own, since captured launches keep their counters for good."""
    command = [sys.executable, "-c", MORE_THAN_THERE_ARE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_graphed_backward_twice_with_a_factor(reduction):
    """The graph of the backward pass runs twice on what one forward pass saved: it must not scale that in place."""
    inputs = [value.view(-1, 4) for value in errors(4000, seed=0)]
    samples = inputs[0].clone().requires_grad_(), inputs[1].clone()

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        return balanced_l1_loss(pred, target, reduction=reduction)

    def gradients(function) -> list[Tensor]:
        pred, target = inputs[0].clone().requires_grad_(), inputs[1]
        value = (function(pred, target) * 2).sum()
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
