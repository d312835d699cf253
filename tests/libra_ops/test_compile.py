"""torch.compile of the four ops together: one graph, whatever numbers come as arguments, and the same results."""

import pytest
import torch
from torch import Tensor

from libra_ops import Matches, Samples, balanced_l1_loss, box_iou, match_boxes, sample_iou_balanced

SIZE = 64.0


def random_boxes(*shape: int, seed: int) -> Tensor:
    """[*shape, 4] xyxy within 64 x 64 pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * SIZE
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """boxes [2, 40, 4], targets [2, 5, 4], valid [2, 5]."""
    return random_boxes(2, 40, seed=0), random_boxes(2, 5, seed=1), torch.ones(2, 5, dtype=torch.bool)


def train(boxes: Tensor, targets: Tensor, valid: Tensor, beta: float = 1.0) -> Tensor:
    """The four ops as a detector uses them: a loss with a gradient with respect to `boxes`."""
    matches = match_boxes(boxes, targets, valid, positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.1)
    samples = sample_iou_balanced(matches, num_samples=16, positive_fraction=0.5)
    corners = samples.index.unsqueeze(-1).expand(-1, -1, 4)  # [B, S, 4]
    own = matches.index.gather(1, samples.index).unsqueeze(-1).expand(-1, -1, 4)  # [B, S, 4]
    pred, target = boxes.gather(1, corners), targets.gather(1, own)
    weight = samples.positive.unsqueeze(-1).float()
    loss = balanced_l1_loss(pred / SIZE, target / SIZE, weight, beta=beta, reduction="sum")
    return loss + (1 - box_iou(pred, target, "giou")).mean()


def test_all_ops_with_the_default_backend():
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


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("function", [overlap, match, sample, loss])
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


def test_an_unusable_number_is_an_error_when_compiled_too():
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="expected a finite number > 0"):
        compiled(*scene(), -0.1)
