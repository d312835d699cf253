"""balanced_l1_loss, forward and backward. Bytes bind: both inputs are read, the gradient is written and scaled.

A training step adds several losses up with factors, so the backward pass of every side gets 0.5. On a CPU, ours does
not touch the gradient where the factor is 1, as in `loss.backward()` alone: that is measured too, in lines of its own.
"""

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
FACTOR = 0.5  # of the loss in what is differentiated
TEXT = (
    "The sum and its gradient, through autograd: `(loss * 0.5).backward()` on every side. Bytes: 20 for each delta "
    "(prediction and target read and the gradient written, 12; the gradient read again and written times the factor, "
    "8: a forward pass that leaves the gradient to the backward pass reads both inputs twice, which is as much). "
    "`factor 1`: `loss.backward()`, for which the CPU needs no second pass, so 12 bytes; a GPU does not look at the "
    "factor, so there it would be the same line. torchvision has no balanced L1; PyTorch's smooth L1, for scale, is "
    "another loss with less arithmetic."
)


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[200_000, 512, 2_048, 8_192, 32_768, 1_000_000, 4_000_000], quick=[200_000, 512], tiny=[64], cuda=[]
    )
    factor_one = [] if plan.cuda else [boxes for boxes in sizes if boxes in (200_000, 512, 64)]
    return [_case(plan, boxes, FACTOR) for boxes in sizes] + [_case(plan, boxes, 1.0) for boxes in factor_one]


def bytes_moved(boxes: int, factor: float = FACTOR) -> int:
    """Prediction, target, gradient and loss; with a factor other than 1 the gradient again, read and written."""
    return (12 if factor == 1 else 20) * 4 * boxes + 4


def _case(plan: Plan, boxes: int, factor: float) -> Case:
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
            forward_and_backward(function, factor),
            prepare=_leaf,
            agrees=agrees if name in (EAGER, COMPILED) else None,
            compiled=name == COMPILED,
            note="another loss, not compared" if name == SMOOTH_L1 else "",
        )
        for name, function in functions.items()
    }
    goal = boxes in ((200_000, 512) if not plan.cuda else (4_000_000, 512))
    main = factor == FACTOR
    return Case(
        "balanced_l1_loss",
        shown(boxes, 4) + ("" if main else f", factor {factor:g}"),
        boxes,
        make,
        sides,
        bytes_moved(boxes, factor),
        training=main and boxes in (512, 2_048, 8_192),
        goal=goal,
        memory=main and boxes in (200_000, 4_000_000),
        extra={"plot": main},
    )


def _leaf(tensors: tuple) -> tuple:
    pred, target = tensors
    return pred.detach().requires_grad_(), target


def forward_and_backward(function: Callable, factor: float) -> Callable:
    def run(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pred.grad = None
        loss = function(pred, target)
        (loss if factor == 1 else loss * factor).backward()
        return loss.detach(), pred.grad

    return run
