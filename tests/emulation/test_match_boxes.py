"""The CUDA kernels of match_boxes, run on the CPU in every order of threads, against its CPU kernel and its twin."""

import ctypes

import pytest
import torch
from torch import Tensor

from libra_ops import match_boxes, reference

from .harness import Kernels, empty, out

RULES = {
    "rpn": {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3},
    "roi": {"positive_iou": 0.5, "negative_iou": 0.5, "min_positive_iou": None},
}


def run(kernels: Kernels, boxes: Tensor, targets: Tensor, valid: Tensor, crowd: Tensor | None, rules: dict):
    """index, iou, state as the GPU's wrapper returns them; boxes [B, N, 4], or [N, 4] shared by all images."""
    batch, count = targets.shape[0], boxes.shape[-2]
    size = kernels.library.match_boxes_tops
    size.restype = ctypes.c_int64
    tops = torch.zeros(size(*map(ctypes.c_int64, (batch, count, targets.shape[1]))), dtype=torch.int32)
    result = empty(batch, count, dtype=torch.int64), empty(batch, count), empty(batch, count, dtype=torch.int8)
    low_quality = rules["min_positive_iou"] is not None
    kernels.run(
        "run_match_boxes",
        *(boxes, targets, valid, crowd, *map(out, result), out(tops) if low_quality else None),
        *(batch, count, targets.shape[1], 0 if crowd is None else crowd.shape[1], boxes.dim() == 2),
        *(rules["positive_iou"], rules["negative_iou"], rules["min_positive_iou"] or 0.0, low_quality),
    )
    return result


def scene(batch: int, boxes: int, targets: int, seed: int = 0):
    """Random boxes and targets; the last image has no padding, so that a read past its end cannot hide there."""
    generator = torch.Generator().manual_seed(seed)

    def random_boxes(count: int, size: float) -> Tensor:
        corners = torch.rand(batch, count, 2, 2, generator=generator) * size
        return torch.cat([corners.amin(-2), corners.amax(-2)], -1)

    valid = torch.rand(batch, targets, generator=generator) < 0.7
    valid[-1] = True
    return random_boxes(boxes, 100), random_boxes(targets, 100), valid, random_boxes(2, 50)


def assert_equal(result, expected):
    for name, got, want in zip(("index", "iou", "state"), result, expected, strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("batch", "boxes", "targets"), [(1, 1, 1), (3, 511, 7), (2, 513, 130), (2, 1200, 0)])
def test_agrees_with_the_reference(emulate, batch, boxes, targets, rules):
    arguments = scene(batch, boxes, targets)
    expected = reference.match_boxes(*arguments[:3], *rules.values(), arguments[3])
    assert_equal(run(emulate("match_boxes"), *arguments, rules), expected)


def test_without_crowd_and_with_shared_boxes(emulate):
    boxes, targets, valid, _ = scene(3, 700, 9)
    expected = match_boxes(boxes[0], targets, valid, **RULES["rpn"])
    assert_equal(run(emulate("match_boxes"), boxes[0], targets, valid, None, RULES["rpn"]), expected)


def test_odd_boxes(emulate):
    boxes, targets, valid, crowd = scene(2, 600, 5)
    boxes[1, -1, 0], boxes[0, 3, 2], boxes[1, 0] = float("nan"), float("inf"), torch.tensor([0, 0, 1e20, 1e20])
    targets[1, -1], targets[0, 0, 1] = torch.tensor([0, 0, 1e20, 0.9e20]), float("nan")
    targets[1, 0] = torch.tensor([5.0, 5, 5, 9])
    expected = match_boxes(boxes, targets, valid, crowd=crowd, **RULES["rpn"])
    assert expected.state[1, 0] == 1
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, crowd, RULES["rpn"]), expected)


def test_ties_over_many_chunks(emulate):
    """More tiles than chunks, and boxes that tie with a target's best in all of them."""
    boxes, targets, valid, _ = scene(1, 512 * 257 + 3, 3)
    boxes[0, ::1000] = torch.tensor([10.0, 10, 40, 30])
    targets[0, 1] = torch.tensor([12.0, 10, 40, 30])
    targets[0, 2] = torch.tensor([12.0, 10, 40, 30])
    expected = match_boxes(boxes, targets, valid, **RULES["rpn"])
    assert (expected.index[0, ::1000] == 2).all()
    assert_equal(run(emulate("match_boxes"), boxes, targets, valid, None, RULES["rpn"]), expected)
