"""Masked loss sums: their values, and that nothing leaks through the mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from libra_det.config import ModelConfig
from libra_det.models.losses import (
    BOX_LOSSES,
    OVERLAP_LOSSES,
    binary_loss_sum,
    box_loss_sum,
    class_loss_sum,
    focal_loss_sum,
    regression_loss_sum,
)
from libra_ops import box_iou, decode_boxes, encode_boxes


def test_class_losses_equal_the_reference(golden) -> None:
    cases = golden("x_ops_losses")
    case = cases["ce"]
    logits = case["logits"].clone().requires_grad_()
    loss = class_loss_sum(logits, case["labels"], case["weight"] > 0) / case["avg_factor"]
    torch.testing.assert_close(loss, case["loss"])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], case["grad"])
    case = cases["bce"]
    logits = case["logits"].clone().requires_grad_()
    # in the golden label 0 is the object
    loss = binary_loss_sum(logits[:, 0], case["labels"] == 0, case["weight"] > 0) / case["avg_factor"]
    torch.testing.assert_close(loss, case["loss"])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], case["grad"])


def test_focal_loss_equals_the_reference(golden) -> None:
    case = golden("x_ops_losses")["focal"]
    logits = case["logits"].clone().requires_grad_()
    loss = focal_loss_sum(logits, case["labels"], case["weight"] > 0, 0.25, 2.0) / case["avg_factor"]
    torch.testing.assert_close(loss, case["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], case["grad"], rtol=1e-4, atol=1e-7)


def test_focal_loss_without_focus_is_the_binary_cross_entropy() -> None:
    logits, labels = torch.randn(2, 5, 4), torch.randint(0, 5, (2, 5))
    mask = torch.rand(2, 5) < 0.7
    own = torch.nn.functional.one_hot(labels, 5)[..., :4].float()  # the fifth is the background
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, own, reduction="none")[mask].sum()
    torch.testing.assert_close(2 * focal_loss_sum(logits, labels, mask, alpha=0.5, gamma=0.0), wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_extreme_logits_is_finite(gamma: float) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [300.0, -90.0]], requires_grad=True)
    loss = focal_loss_sum(logits, torch.tensor([0, 0, 2]), torch.ones(3, dtype=torch.bool), 0.25, gamma)
    loss.backward()
    # wrong by 1e4 twice and by 300 once, each with full weight: 0.25 of its own class, 0.75 of another
    assert loss.item() == pytest.approx(0.25 * 1e4 + 0.75 * 1e4 + 0.75 * 300, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[0, 0], [-0.25, 0.75], [0.75, 0]]), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    # errors of 0.5 and 2 at beta 1; balanced L1 by the paper's equation 11 with alpha 0.5, gamma 1.5
    [("l1", 2.5), ("smooth_l1", 0.125 + 1.5), ("balanced_l1", 0.40057 + 2.57859)],
)
def test_box_losses(kind: str, wanted: float) -> None:
    predicted = torch.tensor([[0.5, 2.0, 0.0, 0.0]])
    loss = box_loss_sum(predicted, torch.zeros(1, 4), torch.tensor([True]), kind, ModelConfig())
    assert loss.item() == pytest.approx(wanted, abs=1e-3)


def test_beta_moves_the_linear_part() -> None:
    config = dataclasses.replace(ModelConfig(), box_loss_beta=0.25)
    predicted, wanted, mask = torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1, 4), torch.tensor([True])
    assert box_loss_sum(predicted, wanted, mask, "smooth_l1", config).item() == pytest.approx(1 - 0.125)
    assert box_loss_sum(predicted, wanted, mask, "l1", config).item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "balanced_l1"])
def test_masked_slots_give_neither_loss_nor_gradient(kind: str) -> None:
    predicted = torch.tensor([[1.0, 1, 1, 1], [torch.nan, torch.inf, 1, 1]], requires_grad=True)
    wanted = torch.tensor([[0.0, 0, 0, 0], [0, 0, torch.nan, -torch.inf]])
    mask = torch.tensor([True, False])
    loss = box_loss_sum(predicted, wanted, mask, kind, ModelConfig())
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad[0].abs().min() > 0
    assert predicted.grad[1].tolist() == [0, 0, 0, 0]


def test_masked_logits_give_neither_loss_nor_gradient() -> None:
    logits = torch.tensor([0.0, torch.nan], requires_grad=True)
    loss = binary_loss_sum(logits, torch.tensor([True, True]), torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    assert logits.grad.tolist() == [-0.5, 0]
    logits = torch.tensor([[0.0, 1.0], [torch.nan, torch.inf]], requires_grad=True)
    loss = focal_loss_sum(logits, torch.tensor([0, 1]), torch.tensor([True, False]), 0.25, 2.0)
    loss.backward()
    assert loss.isfinite() and logits.grad[0].abs().min() > 0 and logits.grad[1].tolist() == [0, 0]
    logits = torch.zeros(2, 4, requires_grad=True)
    class_loss_sum(logits, torch.tensor([1, 3]), torch.tensor([True, False])).backward()
    assert logits.grad[1].tolist() == [0, 0, 0, 0]


def _regions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """deltas [2, 5, 4], references [5, 4], targets [2, 5, 4], stds."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 5, 2, 2, generator=generator) * 100
    boxes = torch.cat([corners.amin(-2), corners.amax(-2)], -1)
    return torch.randn(2, 5, 4, generator=generator), boxes[0], boxes[1:], (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize("kind", OVERLAP_LOSSES)
def test_overlap_losses_are_of_the_decoded_boxes(kind: str) -> None:
    deltas, references, targets, stds = _regions()
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    loss = regression_loss_sum(deltas, references, targets, mask, kind, ModelConfig(), stds)
    overlaps = box_iou(decode_boxes(references, deltas, delta_stds=stds), targets, kind).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(loss, (1 - overlaps)[mask].sum())


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_no_error_and_no_positive_slot_cost_nothing(kind: str) -> None:
    deltas, references, targets, stds = _regions()
    perfect = encode_boxes(references, targets, delta_stds=stds)
    everyone, nobody = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    loss = regression_loss_sum(perfect, references, targets, everyone, kind, ModelConfig(), stds)
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=0, atol=2e-5)
    deltas.requires_grad_()
    loss = regression_loss_sum(deltas, references, targets, nobody, kind, ModelConfig(), stds)
    loss.backward()
    assert loss == 0 and not deltas.grad.any()


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_steps_along_the_gradient_bring_boxes_together(kind: str) -> None:
    _, references, _, stds = _regions()
    targets = references + torch.tensor([3.0, -3.0, 6.0, 2.0])
    deltas = torch.zeros(5, 4, requires_grad=True)
    mask = torch.ones(5, dtype=torch.bool)
    losses = []
    for _ in range(30):
        loss = regression_loss_sum(deltas, references, targets, mask, kind, ModelConfig(), stds)
        losses.append(loss.item())
        deltas.data -= 0.1 * torch.autograd.grad(loss, deltas)[0]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", OVERLAP_LOSSES)
def test_masked_regions_give_neither_loss_nor_gradient(kind: str) -> None:
    deltas, references, targets, stds = _regions()
    mask = torch.tensor([True, False, True, True, False]).expand(2, 5)
    deltas[~mask], targets[~mask] = torch.nan, torch.inf
    deltas.requires_grad_()
    loss = regression_loss_sum(deltas, references, targets, mask, kind, ModelConfig(), stds)
    loss.backward()
    assert loss.isfinite() and deltas.grad.isfinite().all() and not deltas.grad[~mask].any()


def test_unknown_loss_names_the_choices() -> None:
    with pytest.raises(ValueError, match="l1, smooth_l1, balanced_l1, iou, giou, diou, ciou; got 'l2'"):
        box_loss_sum(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([True]), "l2", ModelConfig())
