"""torch.compile of several ops together: one graph, whatever numbers come as arguments, and the same results."""

import pytest
import torch
from torch import Tensor

from libra_ops import (
    Matches,
    Samples,
    Survivors,
    balanced_l1_loss,
    box_iou,
    box_regression_loss,
    decode_boxes,
    encode_boxes,
    integrate_pyramid,
    match_boxes,
    multiscale_roi_align,
    nms_padded,
    sample_iou_balanced,
    scatter_pyramid,
    sigmoid_focal_loss,
    topk_per_level,
)

SIZE = 64.0


def random_boxes(*shape: int, seed: int) -> Tensor:
    """[*shape, 4] xyxy within 64 x 64 pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * SIZE
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """boxes [2, 40, 4], targets [2, 5, 4], valid [2, 5]."""
    return random_boxes(2, 40, seed=0), random_boxes(2, 5, seed=1), torch.ones(2, 5, dtype=torch.bool)


def train(boxes: Tensor, targets: Tensor, valid: Tensor, beta: float = 1.0) -> Tensor:
    """Matching, sampling and losses as a detector uses them: a loss with a gradient with respect to `boxes`."""
    matches = match_boxes(boxes, targets, valid, positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.1)
    samples = sample_iou_balanced(matches, num_samples=16, positive_fraction=0.5)
    corners = samples.index.unsqueeze(-1).expand(-1, -1, 4)  # [B, S, 4]
    own = matches.index.gather(1, samples.index).unsqueeze(-1).expand(-1, -1, 4)  # [B, S, 4]
    pred, target = boxes.gather(1, corners), targets.gather(1, own)
    weight = samples.positive.unsqueeze(-1).float()
    loss = balanced_l1_loss(pred / SIZE, target / SIZE, weight, beta=beta, reduction="sum")
    return loss + (1 - box_iou(pred, target, "giou")).mean()


def test_matching_and_sampling_with_the_default_backend():
    """Inductor's code gives the loss and the gradient of eager mode."""
    boxes, targets, valid = scene()
    results = []
    for function in (train, torch.compile(train, fullgraph=True)):
        torch.manual_seed(3)
        inputs = boxes.clone().requires_grad_()
        loss = function(inputs, targets, valid)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][1].any()


def two_stages(
    maps: list[Tensor], anchors: Tensor, sizes: Tensor, targets: Tensor, index: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A loss from maps [B, 8, H_l, W_l] whose first channel is scores, the next four deltas of anchors [N, 4]."""
    maps = scatter_pyramid(maps, torch.relu(integrate_pyramid(maps, level=1)), level=1)
    cells = torch.cat([x.flatten(2) for x in maps], 2).mT  # [B, 8, H_l, W_l] -> [B, N, 8]
    scores, best = topk_per_level(cells[..., 0], [x.shape[2] * x.shape[3] for x in maps], 20, threshold=0.0)
    boxes = decode_boxes(anchors, cells[..., 1:5], index=best, sizes=sizes)
    index_kept, valid = nms_padded(boxes, scores, iou_threshold=0.5, max_output=16, valid=scores > 0)
    proposals = boxes.detach().gather(1, index_kept.unsqueeze(-1).expand(-1, -1, 4))  # [B, 16, 4]
    pooled = multiscale_roi_align(
        maps, proposals, valid, strides=(4, 8, 16), output_size=2, sampling_ratio=2, finest_scale=8.0
    )
    outputs = pooled.flatten(2)  # [B, 16, 8, 2, 2] -> [B, 16, 32]
    stds, own = (0.1, 0.1, 0.2, 0.2), targets.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))  # [B, 16, 4]
    deltas = encode_boxes(proposals, targets, target_index=index, delta_stds=stds)
    loss = sigmoid_focal_loss(outputs[..., :5], labels, valid, reduction="sum")
    loss = loss + balanced_l1_loss(outputs[..., 5:9], deltas, valid.unsqueeze(-1).float(), reduction="mean")
    options = {"references": proposals, "delta_stds": stds, "reduction": "mean"}
    loss = loss + box_regression_loss(outputs[..., 9:13], own, "giou", valid, **options)
    return loss + (boxes / SIZE).square().mean(), proposals


def test_a_detector_of_two_stages_with_the_default_backend():
    """The ops that the test before leaves out: the loss, the boxes that were kept, and the gradients of eager mode."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 8, side, side, generator=generator) for side in (16, 8, 4)]
    anchors = random_boxes(sum(x[0, 0].numel() for x in maps), seed=2)
    index, labels = torch.randint(5, (2, 2, 16), generator=generator)
    rest = anchors, torch.tensor([[64.0, 60.0], [50.0, 64.0]]), random_boxes(2, 5, seed=1), index, labels
    results = []
    for function in (two_stages, torch.compile(two_stages, fullgraph=True)):
        inputs = [x.clone().requires_grad_() for x in maps]
        loss, proposals = function(inputs, *rest)
        results.append((loss.detach(), proposals, *torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(results[1], results[0])
    assert all(x.any() for x in results[0])


def overlap(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Tensor:
    return box_iou(boxes * number, targets)


def match(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Matches:
    return match_boxes(boxes, targets, valid, positive_iou=number, negative_iou=number / 2, min_positive_iou=number / 4)


def sample(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Samples:
    matches = match_boxes(boxes, targets, valid, positive_iou=0.3, negative_iou=0.3)
    return sample_iou_balanced(
        matches,
        num_samples=16,
        positive_fraction=number,
        interval=(0.0, number),
        max_negatives_per_positive=10 * number,
    )


def loss(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Tensor:
    return balanced_l1_loss(boxes[:, :5] / SIZE, targets / SIZE, alpha=number, gamma=3 * number, beta=number)


def suppress(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Survivors:
    return nms_padded(boxes, boxes[..., 0], iou_threshold=number, max_output=20, score_threshold=40 * number)


def best(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> tuple[Tensor, Tensor]:
    return topk_per_level(boxes.flatten(1), [100, 60], 80, threshold=100 * number)


def pool(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Tensor:
    maps = [boxes.mT.reshape(2, 4, 8, 5), targets.mT.reshape(2, 4, 1, 5)]  # as if coordinates were channels
    strides = (80 * number, 160 * number)
    return multiscale_roi_align(
        maps, targets, valid, strides=strides, output_size=2, sampling_ratio=2, finest_scale=70 * number
    )


def code(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> tuple[Tensor, Tensor]:
    stds = (number, number, 2 * number, 2 * number)
    deltas = encode_boxes(boxes[:, :5], targets, delta_stds=stds)
    return deltas, decode_boxes(boxes[:, 5:10], targets / SIZE, delta_stds=stds)


def focal(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Tensor:
    labels = boxes[..., 0].long() % 5
    return sigmoid_focal_loss(boxes / SIZE, labels, alpha=number, gamma=4 * number)


def regress(boxes: Tensor, targets: Tensor, valid: Tensor, number: float) -> Tensor:
    stds = (number, number, 2 * number, 2 * number)
    return box_regression_loss(
        targets / SIZE, targets, "giou", valid, references=boxes[:, :5], delta_stds=stds, reduction="sum"
    )


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("function", [overlap, match, sample, loss, suppress, best, pool, code, focal, regress])
def test_a_number_that_changes(function, dynamic):
    """The second value makes torch.compile treat the number as unknown."""
    torch._dynamo.reset()
    arguments = scene()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for number in (0.1, 0.2, 0.5):
        results = []
        for run in (compiled, function):
            torch.manual_seed(3)
            results.append(run(*arguments, number))
        torch.testing.assert_close(results[0], results[1])


def test_a_number_of_samples_that_changes():
    torch._dynamo.reset()

    def draw(index: Tensor, iou: Tensor, state: Tensor, count: int) -> Samples:
        return sample_iou_balanced((index, iou, state), num_samples=count, positive_fraction=0.5, num_bins=count // 8)

    boxes, targets, valid = scene()
    matches = match_boxes(boxes, targets, valid, positive_iou=0.3, negative_iou=0.3)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (8, 16, 24):
        results = []
        for run in (compiled, draw):
            torch.manual_seed(3)
            results.append(run(*matches, count))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("function", "number"),
    [(loss, -0.1), (suppress, 1.5), (best, float("nan")), (pool, -0.1), (code, -0.1), (focal, 1.5), (regress, -0.1)],
)
def test_an_unusable_number_is_an_error_when_compiled_too(function, number):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"expected (a finite number >|4 numbers > 0 within)"):
        compiled(*scene(), number)
