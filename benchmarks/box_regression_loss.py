"""box_regression_loss, forward and backward: of boxes against torchvision's losses, and of deltas decoded inside."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from benchmarks.balanced_l1_loss import FACTOR, forward_and_backward
from benchmarks.case import COMPILED, EAGER, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled, traceable
from libra_ops import box_regression_loss, reference

TITLE = "box_regression_loss"
AXIS = "pairs of boxes"
TORCHVISION = "torchvision"
THEIRS = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}
TEXT = (
    "The sum and its gradient with respect to the prediction, through autograd: `(loss * 0.5).backward()` on every "
    "side. Bytes: 80 for each pair (two boxes read, the gradient written, and that read and written again times "
    "the factor), 16 more with references. torchvision has no 1 - IoU; its CIoU keeps alpha constant, so "
    "its gradient is another."
)


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(full=[200_000, 512, 8_192], quick=[200_000, 512], tiny=[64], cuda=[4_000_000])
    kinds = ["giou"] if plan.sizes != "full" else ["giou", "iou", "diou", "ciou"]
    return [_case(pairs, kind, decoded) for kind in kinds for decoded in (False, True) for pairs in sizes]


def bytes_moved(pairs: int, decoded: bool) -> int:
    return (96 if decoded else 80) * pairs + 4


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    """[count, 4] of 20 to 120 pixels within some 800; the second set of them overlaps the first often."""
    corner = torch.rand(count, 2, generator=generator) * 600
    return torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=generator) * 100], -1)


def _case(pairs: int, kind: str, decoded: bool) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        target = _boxes(pairs, generator)
        near = target + torch.randn(pairs, 4, generator=generator) * 2  # and not inside out
        return torch.randn(pairs, 4, generator=generator) * 0.2 if decoded else near, target, near

    def agrees(ours: tuple, theirs: tuple) -> None:
        close(ours[0], theirs[0], "loss", rtol=1e-3)
        close(ours[1], theirs[1], "gradient", rtol=1e-2, atol=1e-3)

    def options(references: Tensor) -> dict[str, Tensor]:
        return {"references": references} if decoded else {}

    functions = {
        OURS: lambda p, t, r: box_regression_loss(p, t, kind, reduction="sum", **options(r)),
        EAGER: lambda p, t, r: reference.box_regression_loss(p, t, kind, reduction="sum", **options(r)),
        COMPILED: compiled(lambda p, t, r: traceable.box_regression_loss(p, t, kind, reduction="sum", **options(r))),
    }
    if kind in THEIRS:
        theirs = THEIRS[kind]
        functions[TORCHVISION] = lambda p, t, r: theirs(
            reference.decode_boxes(r, p[None])[0] if decoded else p, t, reduction="sum"
        )
    other = kind == "ciou"
    sides = {
        name: Side(
            _step(function),
            prepare=lambda tensors: (tensors[0].detach().requires_grad_(), *tensors[1:]),
            agrees=None if name == OURS or (name == TORCHVISION and other) else agrees,
            compiled=name == COMPILED,
            note="another gradient, not compared" if name == TORCHVISION and other else "",
        )
        for name, function in functions.items()
    }
    name = f"{kind}, {shown(pairs)}{', decoded' if decoded else ''}"
    return Case("box_regression_loss", name, pairs, make, sides, bytes_moved(pairs, decoded), training=pairs < 200_000)


def _step(function):
    def run(pred: Tensor, target: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        return forward_and_backward(lambda p, t: function(p, t, references), FACTOR)(pred, target)

    return run
