"""sample_iou_balanced alone: drawing from matched candidates. Bytes bind, or the latency of a few dependent passes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, match_boxes
from benchmarks.case import COMPILED, EAGER, OURS, Case, Mismatch, Plan, Side, shown
from benchmarks.references import compiled, traceable
from libra_ops import match_boxes as match
from libra_ops import reference, sample_iou_balanced

TITLE = "sample_iou_balanced"
AXIS = "candidates of all images"
TEXT = (
    "R-CNN: 512 of 2,000, a quarter positive, three IoU bins, instance-balanced positives; RPN: 256 anchors, half "
    "positive, at random. Bytes: 5 for each candidate (IoU and state), 10 for each sample. The reference draws image "
    "by image with shapes that depend on the data, so torch.compile breaks it into many graphs."
)
COMPILED_IMAGES = 1  # four images already take 20 s to compile, and run slower than eagerly

RPN = {
    "num_samples": 256,
    "max_positives": 128,
    "num_bins": 1,
    "positives": "random",
    "max_negatives_per_positive": 5.0,
}
RCNN = {"num_samples": 512, "max_positives": 128, "num_bins": 3, "positives": "instance_balanced"}


def cases(plan: Plan) -> list[Case]:
    sizes = plan.choose(
        full=[
            *(("R-CNN", batch, 2000, 50) for batch in (1, 4, 16)),
            *(("RPN", batch, inputs.ANCHORS, 50) for batch in (1, 16)),
        ],
        quick=[],
        tiny=[("R-CNN", 2, 60, 5)],
    )
    return [_case(plan, *size) for size in sizes]


def bytes_moved(batch: int, n: int, samples: int) -> int:
    return batch * (5 * n + 10 * samples)


def ours(matches: tuple, options: dict) -> tuple:
    """`options` are those of the reference, which counts positives; the public function takes their share."""
    rest = {name: value for name, value in options.items() if name != "max_positives"}
    share = options["max_positives"] / options["num_samples"]
    return sample_iou_balanced(matches, positive_fraction=share, **rest)


def reference_samples(matches: tuple, options: dict, module=reference) -> tuple:
    with torch.device(matches[0].device):  # the reference makes its tensors without naming a device
        return module.sample_iou_balanced(*matches, 7, **options)


def agrees(ours: tuple, theirs: tuple) -> None:
    """As many positives and negatives in every image. Which ones depends on the seed."""
    for what, mine, other in (("samples", ours[1], theirs[1]), ("positives", ours[2], theirs[2])):
        counts, others = mine.sum(1).tolist(), other.sum(1).tolist()
        if counts != others:
            raise Mismatch(f"{what} per image: {counts} here, {others} there")


def _case(plan: Plan, kind: str, batch: int, n: int, g: int) -> Case:
    options, rules = (RPN, match_boxes.RPN) if kind == "RPN" else (RCNN, match_boxes.RCNN)

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(match(*match_boxes.make(kind, batch, n, g, generator), **rules))

    many = batch > COMPILED_IMAGES
    graph = compiled(lambda *matches: traceable.sample_iou_balanced(*matches, 7, **options), fullgraph=False)

    def run_compiled(*matches: Tensor) -> tuple:
        with torch.device(matches[0].device):
            return graph(*matches)

    sides = {
        OURS: Side(lambda *matches: ours(matches, options)),
        EAGER: Side(lambda *matches: reference_samples(matches, options), agrees=agrees),
        COMPILED: Side(
            run_compiled,
            agrees=agrees,
            compiled=True,
            one_set=True,  # other numbers of positives would be compiled anew
            not_run="left out: compiles for minutes" if many else "",
        ),
    }
    return Case(
        "sample_iou_balanced",
        f"{kind}, {shown(batch, n)}",
        batch * n,
        make,
        sides,
        bytes_moved(batch, n, options["num_samples"]),
        training=True,
    )
