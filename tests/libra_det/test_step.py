"""The numbers of a step, worked out by hand."""

import math

import pytest
import torch

from libra_det.step import Step, gradient_norms


def test_gradient_norms_by_hand():
    features = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
    elsewhere = torch.ones(1, requires_grad=True)
    losses = [3 * features[0].sum(), features[0].sum() + 2 * features[1].sum(), elsewhere.sum() * 5]
    norms = gradient_norms(losses, features)
    assert [norm.item() for norm in norms] == pytest.approx([math.sqrt(18), math.sqrt(6), 0.0])
    sum(losses).backward()  # the graph is still there, and nothing was added to what it gives
    assert features[0].grad.tolist() == [4.0, 4.0] and elsewhere.grad.tolist() == [5.0]


@pytest.mark.parametrize("measured", [False, True])
def test_scalars_of_a_step(measured):
    losses = {"rpn_class": torch.tensor(1.0, requires_grad=True), "roi_box": torch.tensor(3.0)}
    norms = [torch.tensor(2.0), torch.tensor(2.0)] if measured else []
    scalars = Step.of(7, ["a.png"], 0.1, losses, torch.tensor(5.0), norms).read().scalars()
    wanted = {"loss/rpn_class": 1.0, "loss/roi_box": 3.0, "loss/total": 4.0, "gradient_norm": 5.0}
    wanted |= {"loss_share/rpn_class": 0.25, "loss_share/roi_box": 0.75}
    if measured:
        wanted |= {"gradient_share/rpn_class": 0.5, "gradient_share/roi_box": 0.5}
    assert scalars == wanted
