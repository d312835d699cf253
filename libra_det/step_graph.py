"""A training step as CUDA graphs, one for each shape of the inputs: the host starts a step with a single call.

The first steps of a shape run as they are, on a stream of their own, so that whatever is set up at first use is there.
Then one is captured, and from there on each step copies its batch to where the graph reads it and replays. All are real
steps: none is taken for warming up only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

EAGER_STEPS = 3
"""Steps of each shape before it is captured."""
MOST_GRAPHS = 8
"""Shapes that are captured; each graph keeps its inputs. Steps of further shapes run as they are."""


class Inputs(Protocol):
    """What a step is computed from."""

    def tensors(self) -> list[Tensor]: ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any: ...


class StepGraphs:
    """Runs `compute(inputs)`, which returns a tensor, eagerly at first and then as a CUDA graph.

    The result is overwritten by the next step: whoever wants to keep it copies it in the same stream.

    Args:
        compute: a function of inputs that never waits for the device, and whose other effects (on weights, gradients,
            the optimizer) are on tensors that stay where they are.
        device: of the inputs.
    """

    def __init__(self, compute: Callable[..., Tensor], device: torch.device) -> None:
        self._compute, self._device = compute, device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()  # graphs take turns, so they can share their memory
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._steps: Counter[tuple] = Counter()

    def __call__(self, inputs: Inputs) -> Tensor:
        shape = tuple((*tensor.shape, tensor.dtype) for tensor in inputs.tensors())
        if shape not in self._graphs:
            self._steps[shape] += 1
            if self._steps[shape] <= EAGER_STEPS or len(self._graphs) == MOST_GRAPHS:
                self._say_once(shape)
                return self.eagerly(inputs)
            self._graphs[shape] = self._capture(inputs)
        graph, static, result = self._graphs[shape]
        for place, tensor in zip(static, inputs.tensors(), strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        return result

    def _say_once(self, shape: tuple) -> None:
        if self._steps[shape] == EAGER_STEPS + 1:
            print(
                f"libra: --cuda-graph: there are {MOST_GRAPHS} graphs; batches of images {list(shape[0][:4])} run "
                "without one. --size-buckets makes fewer padded sizes",
                file=sys.stderr,
            )

    def eagerly(self, inputs: Inputs, **options: Any) -> Tensor:
        """A step without a graph, on the stream that is captured later; `options` are for `compute`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._compute(inputs, **options)
        current.wait_stream(self._stream)
        for tensor in (*inputs.tensors(), result):  # made or read on the other stream than the one that frees it
            tensor.record_stream(self._stream)
            tensor.record_stream(current)
        return result

    def _capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        static = [tensor.clone() for tensor in inputs.tensors()]
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile is no part of it: a loader's pins the memory of the next batches.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = self._compute(inputs.with_tensors(static))
        return graph, static, result
