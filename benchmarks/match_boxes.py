"""match_boxes: IoU, maximum and thresholds of all pairs, without the matrix. Arithmetic binds from a few targets on.

Operations: what a pair takes by the formula, in float32 instructions for one number each, the division counted as one.
They are nominal, for all pairs: no implementation that skips pairs which lie apart does as many. Ours skips on a GPU
by the hulls of 128 boxes, so there the pairs that are left are counted too, times what each of them takes at least.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from benchmarks import inputs
from benchmarks.case import (
    COMPILED,
    EAGER,
    EAGER_BYTES_PER_PAIR,
    OURS,
    Case,
    Mismatch,
    Plan,
    Side,
    close,
    mostly_equal,
    shown,
    too_long,
)
from benchmarks.references import compiled, numpy_door, numpy_sides, traceable
from libra_ops import match_boxes, reference

TITLE = "match_boxes"
AXIS = "pairs of boxes and targets"
# 4 minima and maxima of corners, 2 differences and their 2 clamps, a product; a sum, a difference and a clamp for the
# union; the division; a comparison and 2 selections for the maximum and its index.
OPERATIONS_PER_PAIR = 16
OPERATIONS_LOW_QUALITY = 1  # a target's own maximum over the boxes
# Of a pair that the GPU visits, to see that the target is no better than the best so far: 4 minima and maxima of
# corners, 2 differences, a product, a multiply-add for the bound and a comparison; with the low-quality rule the bound
# is the lower of two, and the sum of the areas times it.
VISIT_OPERATIONS = 9
VISIT_OPERATIONS_LOW_QUALITY = 11
WARP_BOXES, TILE_BOXES, LARGE_TILES = 128, 512, 264  # csrc/match_boxes/match_boxes_shape.cuh
TEXT = (
    f"Nominal operations, of the formula for all pairs without culling: {OPERATIONS_PER_PAIR} float32 instructions for "
    "each (4 minima and maxima, 2 differences, 2 clamps and a product for the intersection; 2 sums and a clamp for the "
    "union; a division, counted as one; a comparison and 2 selections), and "
    f"{OPERATIONS_LOW_QUALITY} more with the low-quality rule. They are not the least that can be done: boxes that lie "
    "apart need none of it, and ours leaves them out. On a GPU, large problems visit only the targets that overlap the "
    "hull of 128 neighbouring boxes; those pairs are counted on the inputs, at "
    f"{VISIT_OPERATIONS} operations ({VISIT_OPERATIONS_LOW_QUALITY} with the low-quality rule), and the goal is judged "
    "by them. RPN: positive from IoU 0.7, negative below 0.3, low-quality from 0.3; R-CNN: 0.5, 0.5, without. "
    "torchvision is `box_iou` and the "
    "`Matcher` of its detectors, image by image; its low-quality rule has no least IoU and keeps a box's own target."
)

RPN = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
RCNN = {"positive_iou": 0.5, "negative_iou": 0.5, "min_positive_iou": None}


def cases(plan: Plan) -> list[Case]:
    anchors = inputs.ANCHORS
    goals = [("random", 1, 200_000, 100), ("random", 1, 200_000, 10_000)]
    sizes = plan.choose(
        full=[
            *goals,
            *(("RPN", batch, anchors, targets) for batch, targets in ((1, 1), (1, 10), (1, 50), (1, 500), (4, 50))),
            ("RPN", 16, anchors, 50),
            *(("R-CNN", batch, 2000, 50) for batch in (1, 4, 16)),
        ],
        quick=goals,
        tiny=[("random", 1, 300, 7), ("R-CNN", 2, 60, 5)],
        cuda=[("RPN", 16, anchors, 500)],
    )
    return [_case(plan, *size) for size in sizes]


def bytes_moved(batch: int, n: int, g: int, shared: bool) -> int:
    """Boxes (once where all images share them), targets and their flags; index, IoU and state."""
    return 16 * n * (1 if shared else batch) + batch * (17 * g + 13 * n)


def visited_pairs(boxes: Tensor, targets: Tensor, valid: Tensor) -> int:
    """Pairs that the GPU looks at one by one: boxes [N, 4] or [B, N, 4], targets [B, G, 4], valid [B, G].

    Large problems: those of a warp's 128 neighbours with the targets that overlap their hull. Small ones: all pairs.
    """
    if boxes.dim() == 2:
        boxes = boxes.expand(len(targets), -1, -1)
    count, padding = boxes.shape[1], -boxes.shape[1] % WARP_BOXES
    if len(boxes) * -(-count // TILE_BOXES) < LARGE_TILES:
        return count * valid.numel()
    pairs = 0
    for image, others in zip(boxes, targets, strict=True):
        warps = torch.cat([image, image[-1:].expand(padding, 4)]).reshape(-1, WARP_BOXES, 4)  # [W, 128, 4]
        low, high = warps[..., :2].amin(1), warps[..., 2:].amax(1)  # [W, 2] each: the hulls
        near = (low[:, None] < others[:, 2:]).all(-1) & (others[:, :2] < high[:, None]).all(-1)  # [W, G]
        pairs += WARP_BOXES * int(near.sum()) - padding * int(near[-1].sum())
    return pairs


def make(kind: str, batch: int, n: int, g: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """boxes [N, 4] or [B, N, 4], targets [B, G, 4], valid [B, G]."""
    targets = inputs.random_boxes(generator, batch, g)
    if kind == "RPN":
        boxes = inputs.anchors()
    elif kind == "R-CNN":
        boxes = inputs.proposals(generator, targets, n)
    else:
        boxes = inputs.random_boxes(generator, n)
    return boxes, targets, torch.ones(batch, g, dtype=torch.bool)


def agrees(ours: tuple, theirs: tuple) -> None:
    """(index, iou, state) of both. A box that overlaps no target has no index worth comparing."""
    close(ours[1], theirs[1], "highest IoU")
    overlaps = ours[1] > 0
    mostly_equal(ours[0][overlaps], theirs[0][overlaps], "index")
    mostly_equal(ours[2], theirs[2], "state")


def agrees_when_compiled(ours: tuple, theirs: tuple) -> str | None:
    """As `agrees`, but torch.compile's index may be wrong: it does the work, and finds the right maximum and state."""
    agrees(ours, (ours[0], *theirs[1:]))
    try:
        agrees(ours, theirs)
    except Mismatch:
        return "the index is wrong: torch.compile fuses max() with the IoU and returns 0 (pytorch/pytorch#178964)"
    return None


def _case(plan: Plan, kind: str, batch: int, n: int, g: int) -> Case:
    rules = RCNN if kind == "R-CNN" else RPN
    pairs = batch * n * g
    low_quality = rules["min_positive_iou"] is not None
    needs = EAGER_BYTES_PER_PAIR * pairs
    sides = {
        OURS: Side(lambda *arguments: match_boxes(*arguments, **rules)),
        EAGER: Side(
            lambda *arguments: reference.match_boxes(*arguments, **rules),
            agrees=agrees,
            needs=needs,
            not_run=too_long(pairs, needs, plan),
        ),
        COMPILED: Side(
            compiled(lambda *arguments: traceable.match_boxes(*arguments, **rules)),
            agrees=agrees_when_compiled,
            needs=4 * pairs,  # the IoU of all pairs, which the low-quality rule reads again
            not_run=too_long(pairs, 4 * pairs, plan, 150_000_000),
            compiled=True,
        ),
        "torchvision": _torchvision(rules, needs, too_long(pairs, needs, plan)),
    }
    threads = torch.get_num_threads()
    sides |= numpy_sides(plan, lambda *arrays: numpy_door.match_boxes(*arrays, threads=threads, **rules), agrees)
    goal = (n, g) in ((200_000, 100), (200_000, 10_000)) or (kind, batch, g) == ("RPN", 16, 500)
    return Case(
        "match_boxes",
        shown(n, g) if kind == "random" else f"{kind}, {shown(batch, n, g)}",
        pairs,
        lambda generator: make(kind, batch, n, g, generator),
        sides,
        bytes_moved(batch, n, g, shared=kind != "R-CNN"),
        operations=pairs * (OPERATIONS_PER_PAIR + low_quality * OPERATIONS_LOW_QUALITY),
        visits=visited_pairs if plan.cuda else None,
        visit_operations=VISIT_OPERATIONS_LOW_QUALITY if low_quality else VISIT_OPERATIONS,
        training=kind != "random" and g == 50 and batch in (1, 4, 16),
        goal=goal,
        memory=goal,
    )


def _torchvision(rules: dict, needs: int, not_run: str) -> Side:
    low_quality = rules["min_positive_iou"] is not None
    matcher = Matcher(rules["positive_iou"], rules["negative_iou"], allow_low_quality_matches=low_quality)

    def run(boxes: Tensor, targets: Tensor, valid: Tensor) -> list[Tensor]:
        images = boxes if boxes.dim() == 3 else boxes.expand(len(targets), -1, -1)
        return [matcher(torchvision.ops.box_iou(each, one)) for one, each in zip(images, targets, strict=True)]

    def agrees(ours: tuple, theirs: list[Tensor]) -> None:
        """Where the rules are the same: boxes above the threshold, and those that no target can have claimed."""
        found = torch.stack(theirs)  # the target, -1 for a negative, -2 in between
        index, iou, state = ours
        above = (iou >= rules["positive_iou"]) & (state == 1)
        if not low_quality:
            mostly_equal(index[above], found[above], "index of positives")
        mostly_equal(above & (found < 0), torch.zeros_like(above), "positives")
        negative = found == Matcher.BELOW_LOW_THRESHOLD
        mostly_equal(state[negative], torch.zeros_like(state[negative]), "negatives")

    return Side(run, agrees=agrees, needs=needs, not_run=not_run)
