"""integrate_pyramid and scatter_pyramid, forward and backward, as the balanced pyramid takes them. Bytes bind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import COMPILED, EAGER, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled
from libra_ops import integrate_pyramid, reference, scatter_pyramid

TITLE = "integrate_pyramid + scatter_pyramid"
AXIS = "elements of all levels"
LEVEL = 2
TEXT = (
    "Five levels of strides 4 to 64 to their mean at the third one's size, and that mean added to each of them again: "
    "the balanced pyramid without its refinement, forward and backward. Eager and torch.compile are PyTorch's "
    "adaptive max pooling and nearest interpolation, as published. Bytes: forward the levels are read twice and "
    "written once, backward the same of their gradients; the map between is written and read once each way."
)


def cases(plan: Plan) -> list[Case]:
    small, large = (4, 64, 240, 320), (2, 256, 800, 1344)
    sizes = plan.choose(full=[small, large], quick=[small], tiny=[(2, 3, 64, 96)], cuda=[(16, 256, 800, 1344)])
    orders = plan.choose(full=[False, True], quick=[False, True], tiny=[False, True])
    return [_case(plan, *size, channels_last) for size in sizes for channels_last in orders]


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Of strides 4 to 64, each rounded up as convolutions of stride 2 do."""
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]


def bytes_moved(batch: int, channels: int, height: int, width: int, itemsize: int) -> int:
    cells = [h * w for h, w in level_sizes(height, width)]
    return batch * channels * itemsize * (6 * sum(cells) + 4 * cells[LEVEL])


def _case(plan: Plan, batch: int, channels: int, height: int, width: int, channels_last: bool) -> Case:
    order = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.bfloat16 if plan.cuda else torch.float32

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        """The levels and the gradients that come back for each."""
        maps = [torch.randn(batch, channels, *size, generator=generator) for size in level_sizes(height, width) * 2]
        return tuple(x.to(dtype).contiguous(memory_format=order) for x in maps)

    def agrees(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        tolerance = 4 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-5
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            close(one, other, f"output {number}", rtol=tolerance, atol=8 * tolerance)

    eager = partial(balance, reference.integrate_pyramid, reference.scatter_pyramid)
    sides = {
        OURS: Side(_both(partial(balance, integrate_pyramid, scatter_pyramid)), prepare=_leaves),
        EAGER: Side(_both(eager), prepare=_leaves, agrees=agrees),
        COMPILED: Side(_both(compiled(eager)), prepare=_leaves, agrees=agrees, compiled=True),
    }
    return Case(
        "pyramid",
        f"{batch} x {channels} x {shown(height, width)}" + (", channels last" if channels_last else ""),
        batch * channels * sum(h * w for h, w in level_sizes(height, width)),
        make,
        sides,
        bytes_moved(batch, channels, height, width, dtype.itemsize),
        training=not channels_last,
        extra={"plot": not channels_last},
    )


def balance(integrate: Callable, scatter: Callable, maps: list[Tensor]) -> list[Tensor]:
    return scatter(maps, integrate(maps, level=LEVEL), level=LEVEL)


def _leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    levels = len(tensors) // 2
    return *(x.detach().requires_grad_() for x in tensors[:levels]), *tensors[levels:]


def _both(function: Callable[[list[Tensor]], list[Tensor]]) -> Callable:
    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        levels = len(tensors) // 2
        maps = list(tensors[:levels])
        outputs = function(maps)
        return *(x.detach() for x in outputs), *torch.autograd.grad(outputs, maps, tensors[levels:])

    return run
