"""The CUDA kernels of match_boxes, run on the CPU in every order of threads, against its CPU kernel and its twin."""

import ctypes

import pytest
import torch
from torch import Tensor

from libra_ops import match_boxes, reference

from .harness import Kernels, empty, out

RULES = {
    "rpn": {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3},
    "retina": {"positive_iou": 0.5, "negative_iou": 0.4, "min_positive_iou": 0.0},
    "roi": {"positive_iou": 0.5, "negative_iou": 0.5, "min_positive_iou": None},
}
per_thread = pytest.mark.parametrize("each", [1, 4])  # boxes of a thread: one in small problems, four in large ones
every_rule = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def count_of(kernels: Kernels, function: str, *arguments: int) -> int:
    call = getattr(kernels.library, function)
    call.restype = ctypes.c_int64
    return call(*map(ctypes.c_int64, arguments))


def run(kernels: Kernels, boxes: Tensor, targets: Tensor, valid: Tensor, crowd: Tensor | None, rules: dict, each: int):
    """index, iou, state as the GPU's wrapper returns them; boxes [B, N, 4], or [N, 4] shared by all images."""
    batch, count = targets.shape[0], boxes.shape[-2]
    tops = empty(count_of(kernels, "match_boxes_tops", batch, count, targets.shape[1], each), dtype=torch.int32)
    result = empty(batch, count, dtype=torch.int64), empty(batch, count), empty(batch, count, dtype=torch.int8)
    low_quality = rules["min_positive_iou"] is not None
    kernels.run(
        "run_match_boxes",
        *(boxes, targets, valid, crowd, *map(out, result), out(tops) if low_quality else None),
        *(batch, count, targets.shape[1], 0 if crowd is None else crowd.shape[1], boxes.dim() == 2, each),
        *(rules["positive_iou"], rules["negative_iou"], rules["min_positive_iou"] or 0.0, low_quality),
    )
    return result


def random_boxes(batch: int, count: int, size: float, generator: torch.Generator) -> Tensor:
    corners = torch.rand(batch, count, 2, 2, generator=generator) * size
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def scene(batch: int, boxes: int, targets: int, seed: int = 0):
    """Random boxes and targets; the last image has no padding, so that a read past its end cannot hide there."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(batch, targets, generator=generator) < 0.7
    valid[-1] = True
    drawn = [random_boxes(batch, *kind, generator) for kind in ((boxes, 100), (targets, 100), (2, 50))]
    return drawn[0], drawn[1], valid, drawn[2]


def anchors(width: int, height: int, stride: int) -> Tensor:
    """[N, 4]: three shapes at each place of a grid, row after row, as an RPN has them: neighbours lie close."""
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    centres = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4).float()
    half = torch.tensor([[22.6, 11.3], [16, 16], [11.3, 22.6]])
    return (centres + torch.cat([-half, half], -1)).reshape(-1, 4)


def assert_equal(result, expected):
    for name, got, want in zip(("index", "iou", "state"), result, expected, strict=True):
        assert torch.equal(got, want), name


@every_rule
@per_thread
@pytest.mark.parametrize(("batch", "boxes", "targets"), [(1, 1, 1), (3, 511, 7), (2, 513, 130), (2, 1200, 0)])
def test_agrees_with_the_reference(emulate, batch, boxes, targets, each, rules):
    arguments = scene(batch, boxes, targets)
    expected = reference.match_boxes(*arguments[:3], *rules.values(), arguments[3])
    assert_equal(run(emulate("match_boxes"), *arguments, rules, each), expected)


@per_thread
def test_without_crowd_and_with_shared_boxes(emulate, each):
    boxes, targets, valid, _ = scene(3, 700, 9)
    expected = match_boxes(boxes[0], targets, valid, **RULES["rpn"])
    assert_equal(run(emulate("match_boxes"), boxes[0], targets, valid, None, RULES["rpn"], each), expected)


@every_rule
def test_anchors_whose_warps_lie_apart_from_most_targets(emulate, rules):
    boxes, generator = anchors(25, 20, 8) + 0.25, torch.Generator().manual_seed(5)
    targets, valid = random_boxes(2, 40, 180, generator), torch.ones(2, 40, dtype=torch.bool)
    crowd = random_boxes(2, 70, 60, generator)
    crowd[:, 3::4, 2:] = 0  # padding
    expected = match_boxes(boxes, targets, valid, crowd=crowd, **rules)
    assert -1 in expected.state and 1 in expected.state
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, crowd, rules, 4), expected)


@every_rule
@per_thread
def test_targets_that_are_almost_equal(emulate, each, rules):
    """IoUs that differ in their last bits or not at all: there only the exact quotients tell which is the higher."""
    boxes, targets, valid, _ = scene(2, 300, 60, seed=3)
    boxes = boxes.mul(8).round().div(8)
    targets[:, 20:40], targets[:, 40:] = targets[:, :20], targets[:, :20]
    nudge = torch.randint(-2, 3, (2, 40, 4), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    targets[:, 20:] = (targets[:, 20:].contiguous().view(torch.int32) + nudge).view(torch.float32)
    boxes[:, :20], boxes[:, 20:40] = targets[:, 20:40], targets[:, 40:]
    expected = match_boxes(boxes, targets, valid, **rules)
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, None, rules, each), expected)


@every_rule
@per_thread
@pytest.mark.parametrize("scale", [2.0**-21, 2.0**-16, 2.0**-9, 2.0**13, 2.0**16, 2.0**58])
def test_any_size_of_coordinates(emulate, scale, each, rules):
    """From where areas are below the formula's 1e-6, over the ends of the range of plain boxes, to huge ones."""
    boxes, targets, valid, crowd = scene(2, 200, 12, seed=6)
    boxes[:, ::3] = (boxes[:, ::3] * 8).round() / 8  # of others the differences round
    arguments = [boxes * scale, targets * scale, valid]
    expected = match_boxes(*arguments, crowd=crowd * scale, **rules)
    assert_equal(run(emulate("match_boxes"), *arguments, crowd * scale, rules, each), expected)


@every_rule
@per_thread
def test_odd_boxes_among_plain_ones(emulate, each, rules):
    boxes, targets, valid, crowd = scene(2, 600, 7)
    boxes[1, -1, 0], boxes[0, 3, 2], boxes[1, 0] = float("nan"), float("inf"), torch.tensor([0, 0, 1e20, 1e20])
    boxes[1, 30], boxes[0, 40, 0] = torch.tensor([5.0, 5, 5 + 3e6, 9]), 1e-9
    targets[1, -1], targets[0, 0, 1] = torch.tensor([0, 0, 1e20, 0.9e20]), float("nan")
    targets[1, 0], targets[1, 1] = torch.tensor([5.0, 5, 5, 9]), torch.tensor([20.0, 20, 20.001, 20.001])
    targets[1, 2], targets[1, 3] = targets[1, 4], torch.tensor([0, 0, 1e-3, 1e-3])
    boxes[1, 50], boxes[1, 51] = targets[1, 1], targets[1, 3]
    valid[1, :] = True
    expected = match_boxes(boxes, targets, valid, crowd=crowd, **rules)
    assert expected.state[1, 0] == 1
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, crowd, rules, each), expected)


@per_thread
def test_odd_crowd_regions(emulate, each):
    boxes, targets, valid, crowd = scene(2, 300, 5)
    crowd[0, 1], crowd[1, 0] = torch.tensor([-1e19, 20, 1e19, 1e19]), torch.tensor([1e-12, 0, 50, 50])
    crowd[1, 1, 0] = float("nan")
    expected = match_boxes(boxes, targets, valid, crowd=crowd, **RULES["rpn"])
    assert (expected.state == -1).any(1).all()
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, crowd, RULES["rpn"], each), expected)


def test_half_inside_a_crowd_region(emulate):
    """A share of exactly a half is not more than a half; the next number up is."""
    generator = torch.Generator().manual_seed(8)
    corner, size = (torch.randint(low, 64, (1, 400, 2), generator=generator) for low in (0, 1))
    boxes = torch.cat([corner, corner + size], -1).float()
    crowd = torch.tensor([[[0.0, 0, 40, 128], [70, 50, 128, 128]]])
    targets, valid = boxes[:, :4].contiguous(), torch.ones(1, 4, dtype=torch.bool)
    share = reference.box_iou(boxes, crowd, "iof")
    assert (share == 0.5).any()
    expected = match_boxes(boxes, targets, valid, crowd=crowd, **RULES["rpn"])
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, crowd, RULES["rpn"], 4), expected)


def test_more_than_a_stage_of_targets(emulate):
    arguments = scene(1, 200, 300)
    expected = match_boxes(*arguments[:3], crowd=arguments[3], **RULES["rpn"])
    for each in (1, 4):
        assert_equal(run(emulate("match_boxes"), *arguments, RULES["rpn"], each), expected)


def test_a_thread_takes_four_boxes_where_there_are_many(emulate):
    kernels = emulate("match_boxes")
    sizes = {(16, 2000): 1, (1, 2000): 1, (1, 268_569): 4, (16, 268_569): 4}
    assert {size: count_of(kernels, "boxes_per_thread", *size) for size in sizes} == sizes


def test_ties_over_many_chunks(emulate):
    """More tiles than chunks, and boxes that tie with a target's best in all of them."""
    boxes, targets, valid, _ = scene(1, 128 * 1025 + 3, 3)
    boxes[0, ::1000] = torch.tensor([10.0, 10, 40, 30])
    targets[0, 1] = torch.tensor([12.0, 10, 40, 30])
    targets[0, 2] = torch.tensor([12.0, 10, 40, 30])
    expected = match_boxes(boxes, targets, valid, **RULES["rpn"])
    assert (expected.index[0, ::1000] == 2).all()
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, None, RULES["rpn"], 1), expected)
