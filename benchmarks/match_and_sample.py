"""match_boxes followed by sample_iou_balanced: from proposals to what the R-CNN head is trained on.

Beside the reference stands the published implementation's algorithm, in NumPy: it stores the IoU matrix and draws with
sets on the host. On a GPU the two operations are also captured in a CUDA graph, of which every replay draws anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks import match_boxes, published_numpy
from benchmarks import sample_iou_balanced as sampling
from benchmarks.case import COMPILED, EAGER, OURS, Case, Mismatch, Plan, Side, mostly_equal, shown
from benchmarks.references import compiled, numpy_door, numpy_sides, traceable
from libra_ops import match_boxes as match
from libra_ops import reference

TITLE = "match_boxes + sample_iou_balanced"
AXIS = "pairs of proposals and targets"
PUBLISHED = "published, NumPy"
GRAPH = "libra_ops, CUDA graph"
TEXT = (
    "R-CNN: 2,000 proposals of each image (the targets among them), 512 drawn. The published algorithm is "
    "benchmarks/published_numpy.py, written from its description; mmdetection 3.3.0 itself took 1.6, 2.9 and 4.1 ms "
    "for 10, 50 and 100 targets on two cores of such a machine. Compared are the matches, and how many positives and "
    "negatives each side draws. `CUDA graph`: both operations captured together; the time of one replay."
)
OPTIONS, RULES = sampling.RCNN, match_boxes.RCNN


def cases(plan: Plan) -> list[Case]:
    goals = [(1, 2000, 10), (1, 2000, 50), (1, 2000, 100)]
    sizes = plan.choose(
        full=[*goals, (4, 2000, 50), (16, 2000, 50)], quick=goals, tiny=[(1, 1500, 10), (2, 60, 5)], cuda=[]
    )
    return [_case(plan, *size) for size in sizes]


def bytes_moved(batch: int, n: int, g: int) -> int:
    """Both operations' inputs and outputs; what the second reads of the first's is not counted again."""
    return match_boxes.bytes_moved(batch, n, g, shared=False) + 10 * batch * OPTIONS["num_samples"]


def ours(*tensors: Tensor) -> tuple:
    matches = match(*tensors, **RULES)
    return matches, sampling.ours(matches, OPTIONS)


def eager(*tensors: Tensor) -> tuple:
    matches = reference.match_boxes(*tensors, **RULES)
    return matches, sampling.reference_samples(matches, OPTIONS)


def agrees(ours: tuple, theirs: tuple) -> None:
    match_boxes.agrees(ours[0], theirs[0])
    sampling.agrees(ours[1], theirs[1])


def agrees_when_compiled(ours: tuple, theirs: tuple) -> str | None:
    sampling.agrees(ours[1], theirs[1])
    return match_boxes.agrees_when_compiled(ours[0], theirs[0])


def _case(plan: Plan, batch: int, n: int, g: int) -> Case:
    sides = {OURS: Side(ours), EAGER: Side(eager, agrees=agrees), COMPILED: _compiled(batch, g)}
    if plan.cuda:
        sides[GRAPH] = Side(lambda replay: replay(), prepare=_capture, agrees=agrees)
    else:
        sides[PUBLISHED] = Side(_published, prepare=_images, agrees=_agrees_with_published)
    sides |= numpy_sides(plan, _numpy, agrees)
    return Case(
        "match_and_sample",
        f"R-CNN, {shown(batch, n, g)}",
        batch * n * g,
        lambda generator: match_boxes.make("R-CNN", batch, n, g, generator),
        sides,
        bytes_moved(batch, n, g),
        operations=batch * n * g * match_boxes.OPERATIONS_PER_PAIR,
        visits=match_boxes.visited_pairs if plan.cuda else None,
        visit_operations=match_boxes.VISIT_OPERATIONS,
        training=True,
        goal=(batch == 1 and not plan.cuda) or (plan.cuda and batch == 16),
    )


def _compiled(batch: int, g: int) -> Side:
    match_graph = compiled(lambda *tensors: traceable.match_boxes(*tensors, **RULES))
    sample_graph = compiled(lambda *matches: traceable.sample_iou_balanced(*matches, 7, **OPTIONS), fullgraph=False)

    def run(*tensors: Tensor) -> tuple:
        matches = match_graph(*tensors)
        with torch.device(tensors[0].device):
            return matches, sample_graph(*matches)

    alike = g in (10, 100)  # compiling takes long, and 50 targets tell enough
    reason = "left out: compiles for minutes" if batch > sampling.COMPILED_IMAGES or alike else ""
    return Side(run, agrees=agrees_when_compiled, compiled=True, one_set=True, not_run=reason)


def _images(tensors: tuple) -> tuple:
    """(boxes [B, N, 4], targets [B, G, 4], valid) -> the images as NumPy arrays, and their random generator."""
    boxes, targets, _ = tensors
    return list(zip(boxes.numpy(), targets.numpy(), strict=True)), np.random.default_rng(0)


def _published(images: list, rng: np.random.Generator) -> list:
    return [published_numpy.match_and_sample(boxes, targets, rng) for boxes, targets in images]


def _agrees_with_published(ours: tuple, theirs: list) -> None:
    (index, _, state), (_, valid, positive) = ours
    assignment = torch.from_numpy(np.stack([image[0] for image in theirs]))
    mostly_equal(torch.where(state == 1, index + 1, state.long()), assignment, "assignment")
    for image, (_, positives, negatives) in enumerate(theirs):
        counts = (int(positive[image].sum()), int(valid[image].sum()))
        if counts != (len(positives), len(positives) + len(negatives)):
            raise Mismatch(f"{counts} positives and samples here, {len(positives)} and {len(negatives)} more there")
        if (assignment[image, positives] <= 0).any() or (assignment[image, negatives] != 0).any():
            raise Mismatch("the published algorithm drew a candidate of the wrong state")


def _numpy(*arrays: np.ndarray) -> tuple:
    matches = numpy_door.match_boxes(*arrays, **RULES)
    rest = {name: value for name, value in OPTIONS.items() if name != "max_positives"}
    share = OPTIONS["max_positives"] / OPTIONS["num_samples"]
    return matches, numpy_door.sample_iou_balanced(matches, positive_fraction=share, seed=7, **rest)


def _capture(tensors: tuple) -> tuple:
    """A CUDA graph of both operations on these tensors; calling it replays it and returns what it wrote."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ours(*tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = ours(*tensors)

    def replay() -> tuple:
        graph.replay()
        return results

    first = replay()[1].index.clone()
    if torch.equal(replay()[1].index, first):
        raise Mismatch("two replays of the CUDA graph drew the same samples")
    return (replay,)
