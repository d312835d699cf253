"""balanced_l1_loss, forward and backward. Bytes bind: prediction and target are read, the gradient is written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.case import COMPILED, EAGER, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled, traceable
from libra_ops import balanced_l1_loss, reference

TITLE = "balanced_l1_loss"
AXIS = "boxes of four deltas"
SMOOTH_L1 = "smooth L1 (another loss)"
TEXT = (
    "The sum and its gradient, through autograd. Bytes: 12 for each delta (prediction and target read, gradient "
    "written). torchvision has no balanced L1; PyTorch's smooth L1, for scale, is another loss with less arithmetic."
)


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[200_000, 512, 2_048, 8_192, 32_768, 1_000_000, 4_000_000], quick=[200_000, 512], tiny=[64], cuda=[]
    )
    return [_case(plan, boxes) for boxes in sizes]


def bytes_moved(boxes: int) -> int:
    return 12 * 4 * boxes + 4


def _case(plan: Plan, boxes: int) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(boxes, 4, generator=generator), torch.randn(boxes, 4, generator=generator)

    def agrees(ours: tuple, theirs: tuple) -> None:
        close(ours[0], theirs[0], "loss")
        close(ours[1], theirs[1], "gradient")

    functions = {
        OURS: lambda pred, target: balanced_l1_loss(pred, target, reduction="sum"),
        EAGER: lambda pred, target: reference.balanced_l1_loss(pred, target, reduction="sum"),
        COMPILED: compiled(lambda pred, target: traceable.balanced_l1_loss(pred, target, reduction="sum")),
        SMOOTH_L1: lambda pred, target: torch.nn.functional.smooth_l1_loss(pred, target, reduction="sum"),
    }
    sides = {
        name: Side(
            _forward_and_backward(function),
            prepare=_leaf,
            agrees=agrees if name in (EAGER, COMPILED) else None,
            compiled=name == COMPILED,
            note="another loss, not compared" if name == SMOOTH_L1 else "",
        )
        for name, function in functions.items()
    }
    goal = boxes in ((200_000, 512) if not plan.cuda else (4_000_000, 512))
    return Case(
        "balanced_l1_loss",
        shown(boxes, 4),
        boxes,
        make,
        sides,
        bytes_moved(boxes),
        training=boxes in (512, 2_048, 8_192),
        goal=goal,
        memory=boxes in (200_000, 4_000_000),
    )


def _leaf(tensors: tuple) -> tuple:
    pred, target = tensors
    return pred.detach().requires_grad_(), target


def _forward_and_backward(function: Callable) -> Callable:
    def run(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pred.grad = None
        loss = function(pred, target)
        loss.backward()
        return loss.detach(), pred.grad

    return run
