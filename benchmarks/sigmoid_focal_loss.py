"""sigmoid_focal_loss, forward and backward, from class numbers; torchvision's takes one-hot targets, made outside."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from benchmarks.balanced_l1_loss import FACTOR, forward_and_backward
from benchmarks.case import COMPILED, EAGER, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled, traceable
from libra_ops import reference, sigmoid_focal_loss

TITLE = "sigmoid_focal_loss"
AXIS = "slots of 80 classes"
CLASSES = 80
TORCHVISION = "torchvision, one-hot"
TEXT = (
    "The sum and its gradient, through autograd: `(loss * 0.5).backward()` on every side. Bytes: 16 for each logit "
    "(read, its gradient written, and that read and written again times the factor). torchvision's function gets its "
    "one-hot targets ready made, outside of the clock."
)


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(full=[20_160, 1_024, 100_800], quick=[20_160, 1_024], tiny=[16], cuda=[403_200])
    return [_case(slots) for slots in sizes]


def bytes_moved(slots: int) -> int:
    return 16 * CLASSES * slots + 8 * slots + 4


def _case(slots: int) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, CLASSES, (slots,), generator=generator)
        background = torch.rand(slots, generator=generator) < 0.99
        return torch.randn(slots, CLASSES, generator=generator) * 2 - 4, labels.masked_fill(background, CLASSES)

    def agrees(ours: tuple, theirs: tuple) -> None:
        close(ours[0], theirs[0], "loss")
        close(ours[1], theirs[1], "gradient")

    def leaf(tensors: tuple) -> tuple:
        return tensors[0].detach().requires_grad_(), tensors[1]

    def one_hot(tensors: tuple) -> tuple:
        logits, labels = leaf(tensors)
        return logits, torch.nn.functional.one_hot(labels, CLASSES + 1)[:, :CLASSES].to(logits.dtype)

    functions = {
        OURS: lambda logits, labels: sigmoid_focal_loss(logits, labels, reduction="sum"),
        EAGER: lambda logits, labels: reference.sigmoid_focal_loss(logits, labels, reduction="sum"),
        COMPILED: compiled(lambda logits, labels: traceable.sigmoid_focal_loss(logits, labels, reduction="sum")),
        TORCHVISION: lambda logits, targets: torchvision.ops.sigmoid_focal_loss(logits, targets, reduction="sum"),
    }
    sides = {
        name: Side(
            forward_and_backward(function, FACTOR),
            prepare=one_hot if name == TORCHVISION else leaf,
            agrees=None if name == OURS else agrees,
            compiled=name == COMPILED,
        )
        for name, function in functions.items()
    }
    return Case("sigmoid_focal_loss", shown(slots, CLASSES), slots, make, sides, bytes_moved(slots), training=True)
