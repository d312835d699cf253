"""The numbers of a step, worked out by hand."""

import pytest
import torch

from libra_det.step import Step


@pytest.mark.parametrize("measured", [False, True])
def test_scalars_of_a_step(measured):
    values = torch.tensor([1.0, 3.0, 5.0, 2.0, 2.0] if measured else [1.0, 3.0, 5.0])
    scalars = Step.of(7, ["a.png"], 0.1, ["rpn_class", "roi_box"], values).read().scalars()
    wanted = {"loss/rpn_class": 1.0, "loss/roi_box": 3.0, "loss/total": 4.0, "gradient_norm": 5.0}
    wanted |= {"loss_share/rpn_class": 0.25, "loss_share/roi_box": 0.75}
    if measured:
        wanted |= {"gradient_share/rpn_class": 0.5, "gradient_share/roi_box": 0.5}
    assert scalars == wanted
