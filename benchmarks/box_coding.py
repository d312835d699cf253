"""decode_boxes: gather, decode and clip the boxes that topk_per_level chose. Bytes bind."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.case import COMPILED, EAGER, OURS, Case, Plan, Side, close, shown
from benchmarks.references import compiled
from libra_ops import decode_boxes, reference

TITLE = "decode_boxes"
AXIS = "boxes"
TEXT = (
    "The chosen anchors of each image, moved by their deltas and clipped to the image, forward. Bytes: 16 each for "
    "anchor, deltas and result, 8 for the index."
)


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(full=[(16, 268_569, 8000), (4, 19_200, 1800)], quick=[(4, 19_200, 1800)], tiny=[(2, 50, 20)])
    return [_case(*size) for size in sizes]


def _case(images: int, anchors: int, chosen: int) -> Case:
    def make(generator: torch.Generator) -> tuple:
        deltas = torch.randn(images, anchors, 4, generator=generator) * 0.5
        index = torch.randint(anchors, (images, chosen), generator=generator)
        return inputs.random_boxes(generator, anchors), deltas, index, torch.full((images, 2), 600.0)

    def agrees(ours: Tensor, theirs: Tensor) -> None:
        close(ours, theirs, "decode_boxes", atol=1e-3)

    def call(function, references: Tensor, deltas: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
        return function(references, deltas, index=index, sizes=sizes)

    sides = {
        OURS: Side(partial(call, decode_boxes)),
        EAGER: Side(partial(call, reference.decode_boxes), agrees=agrees),
        COMPILED: Side(compiled(partial(call, reference.decode_boxes)), agrees=agrees, compiled=True),
    }
    boxes = images * chosen
    return Case("box_coding", f"{images} x {shown(anchors, chosen)}", boxes, make, sides, 56 * boxes, training=True)
