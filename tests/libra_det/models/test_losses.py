"""Masked loss sums: their values, and that nothing leaks through the mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from libra_det.config import ModelConfig
from libra_det.models.losses import binary_loss_sum, box_loss_sum, class_loss_sum


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
    logits = torch.zeros(2, 4, requires_grad=True)
    class_loss_sum(logits, torch.tensor([1, 3]), torch.tensor([True, False])).backward()
    assert logits.grad[1].tolist() == [0, 0, 0, 0]


def test_unknown_loss_names_the_choices() -> None:
    with pytest.raises(ValueError, match="l1, smooth_l1, balanced_l1; got 'l2'"):
        box_loss_sum(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([True]), "l2", ModelConfig())
