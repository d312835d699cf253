"""box_iou: the matrix of all pairs. Bytes bind: the boxes are read once, the matrix is written once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision

from benchmarks import inputs
from benchmarks.case import COMPILED, EAGER, EAGER_BYTES_PER_PAIR, OURS, Case, Plan, Side, close, shown, too_long
from benchmarks.references import compiled, traceable
from libra_ops import box_iou, reference

TITLE = "box_iou"
AXIS = "pairs of boxes"
TEXT = "Every box of one set with every box of another, forward. Bytes: 16 for each box, 4 for each pair."

TORCHVISION = {
    "iou": torchvision.ops.box_iou,
    "giou": torchvision.ops.generalized_box_iou,
    "diou": torchvision.ops.distance_box_iou,
    "ciou": torchvision.ops.complete_box_iou,
}


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[(1, 2000, 2000), (1, 128, 128), (1, 512, 512), (1, 8000, 8000), (1, inputs.ANCHORS, 50), (16, 2000, 50)],
        quick=[(1, 2000, 2000)],
        tiny=[(1, 40, 30), (2, 20, 10)],
        cuda=[(1, 16384, 16384)],
    )
    kinds = plan.choose(full=["giou", "ciou"], quick=[], tiny=["giou", "ciou"])
    found = [_case(plan, *size, "iou") for size in sizes]
    return found + [_case(plan, *(sizes[0] if plan.sizes == "tiny" else (1, 2000, 2000)), kind) for kind in kinds]


def bytes_moved(batch: int, n: int, m: int) -> int:
    return batch * (16 * (n + m) + 4 * n * m)


def _case(plan: Plan, batch: int, n: int, m: int, kind: str) -> Case:
    pairs = batch * n * m

    def make(generator: torch.Generator) -> tuple:
        shape = (batch,) if batch > 1 else ()
        return inputs.random_boxes(generator, *shape, n), inputs.random_boxes(generator, *shape, m)

    def agrees(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        close(ours, theirs, f"box_iou {kind}")

    needs = EAGER_BYTES_PER_PAIR * pairs
    sides = {
        OURS: Side(_of(box_iou, kind)),
        EAGER: Side(_of(reference.box_iou, kind), agrees=agrees, needs=needs, not_run=too_long(pairs, needs, plan)),
        COMPILED: Side(compiled(_of(traceable.box_iou, kind)), agrees=agrees, compiled=True),
        "torchvision": Side(
            TORCHVISION[kind],
            agrees=agrees,
            needs=needs,
            not_run="has no batches" if batch > 1 else too_long(pairs, needs, plan),
        ),
    }
    name = (f"{batch} x {shown(n, m)}" if batch > 1 else shown(n, m)) + ("" if kind == "iou" else f", {kind}")
    large = pairs in (2000 * 2000, 16384 * 16384) and kind == "iou"
    return Case(
        "box_iou",
        name,
        pairs,
        make,
        sides,
        bytes_moved(batch, n, m),
        training=(batch, n, m) in ((16, 2000, 50), (1, 2000, 2000)),
        goal=large,
        memory=large,
        extra={"plot": kind == "iou"},
    )


def _of(function: Callable, kind: str) -> Callable:
    return lambda boxes1, boxes2: function(boxes1, boxes2, kind)
