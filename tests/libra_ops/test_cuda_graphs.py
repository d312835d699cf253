"""On a GPU no op waits for the device, and each can be captured in a CUDA graph, its backward too.

For sample_iou_balanced, which draws anew at every replay: test_sample_iou_balanced.py.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from libra_ops import (
    balanced_l1_loss,
    box_iou,
    box_regression_loss,
    decode_boxes,
    encode_boxes,
    integrate_pyramid,
    match_boxes,
    multiscale_roi_align,
    nms_padded,
    scatter_pyramid,
    sigmoid_focal_loss,
    topk_per_level,
)

pytestmark = pytest.mark.cuda


def random_boxes(*shape: int, seed: int) -> Tensor:
    """[*shape, 4] xyxy within 100 x 100 pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def match(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """With every rule: shared boxes, low-quality matches and crowds, of which the last target is one."""
    valid = torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device)
    crowd = torch.zeros_like(valid)
    crowd[:, -1:].fill_(True)
    rules = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
    return match_boxes(boxes, targets, valid, crowd=crowd, **rules)


def suppress(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Two images of 150 boxes in three groups; the boxes' first coordinates are their scores."""
    boxes = boxes.view(2, 150, 4)
    groups = (torch.arange(150, device=boxes.device) % 3).expand(2, -1)
    return nms_padded(boxes, boxes[..., 0], groups, iou_threshold=0.5, max_output=40, score_threshold=5.0)


def overlap(kind: str) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    def run(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        inputs = [boxes.detach().requires_grad_(), targets.detach().requires_grad_()]
        overlaps = box_iou(*inputs, kind)
        return overlaps.detach(), *torch.autograd.grad(overlaps.sum(), inputs)

    return run


def loss(reduction: str) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    def run(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        pred, target = boxes.detach().expand(2, -1, -1)[:, :8].requires_grad_(), targets
        value = balanced_l1_loss(pred, target, (target > 50).float(), reduction=reduction)
        return value.detach(), *torch.autograd.grad(value.sum(), pred)

    return run


def pool(sampling_ratio: int) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """The boxes come from one tensor, the maps' values from the other."""

    def run(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        maps = [
            (targets.flatten()[:, None] * torch.linspace(-1, 1, size * size, device=targets.device))
            .view(2, -1, size, size)
            .requires_grad_()
            for size in (25, 13)
        ]
        pooled = multiscale_roi_align(
            maps, boxes.expand(2, -1, -1), strides=(4, 8), sampling_ratio=sampling_ratio, finest_scale=20.0
        )
        return pooled.detach(), *torch.autograd.grad(pooled.square().sum(), maps)

    return run


def best(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return topk_per_level(boxes.flatten()[None], [1000, boxes.numel() - 1000], 20)


def code(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    deltas = encode_boxes(boxes[:8], targets).requires_grad_()
    moved = decode_boxes(boxes[:8], deltas, sizes=targets[:, 0, 2:])
    return deltas.detach(), moved.detach(), *torch.autograd.grad(moved.sum(), deltas)


def focal(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logits = (boxes / 50 - 1).detach().requires_grad_()
    value = sigmoid_focal_loss(
        logits, targets[0, :1, 0].long() % 4 + boxes[:, 0].long() % 2, boxes[:, 1] > 10, reduction="sum"
    )
    return value.detach(), *torch.autograd.grad(value, logits)


def decoded(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    references, deltas = boxes[:8], (targets / 100).detach().requires_grad_()
    stds = torch.full((4,), 0.1, device=boxes.device)
    mask = targets[..., 0] > 20
    value = box_regression_loss(deltas, targets, "giou", mask, reduction="mean", references=references, delta_stds=stds)
    return value.detach(), *torch.autograd.grad(value, deltas)


def pyramid(level: int) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    def run(boxes: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        maps = [targets[:, :, :1, None].expand(-1, -1, size, size) * boxes[:size, :1] for size in (24, 12, 5)]
        maps = [x.detach().requires_grad_() for x in maps]
        mean = integrate_pyramid(maps, level=level)
        outputs = scatter_pyramid(maps, mean, level=level)
        return *(x.detach() for x in outputs), *torch.autograd.grad(sum(x.square().sum() for x in outputs), maps)

    return run


FUNCTIONS = {
    "balanced pyramid": pyramid(1),
    "match_boxes": match,
    "nms_padded": suppress,
    "box_iou": overlap("iou"),
    "box_iou ciou": overlap("ciou"),
    "topk_per_level": best,
    "box coding": code,
    "balanced_l1_loss": loss("none"),
    "balanced_l1_loss mean": loss("mean"),
    "multiscale_roi_align": pool(0),
    "multiscale_roi_align of two points": pool(2),
    "sigmoid_focal_loss": focal,
    "box_regression_loss": decoded,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_op_waits_for_the_device(name):
    boxes, targets = random_boxes(300, seed=0).cuda(), random_boxes(2, 8, seed=1).cuda()
    FUNCTIONS[name](boxes, targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        FUNCTIONS[name](boxes, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_captured_in_a_cuda_graph(name):
    """A replay computes the results of what the inputs hold then."""
    boxes, targets = random_boxes(300, seed=0).cuda(), random_boxes(2, 8, seed=1).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a run before the capture, as torch asks for
        FUNCTIONS[name](boxes, targets)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = FUNCTIONS[name](boxes, targets)
    boxes.copy_(random_boxes(300, seed=2))
    targets.copy_(random_boxes(2, 8, seed=3))
    graph.replay()
    for got, expected in zip(results, FUNCTIONS[name](boxes, targets), strict=True):
        assert torch.equal(got, expected)
