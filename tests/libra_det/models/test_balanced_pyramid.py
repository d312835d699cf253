"""The balanced pyramid against the reference implementation, forward and backward."""

from __future__ import annotations

import pytest
import torch

from libra_det.models.balanced_pyramid import BalancedPyramid


@pytest.mark.parametrize("number", range(16))
def test_equals_the_reference(golden, detdata, number: int) -> None:
    case = golden("b_bfp")["cases"][number]
    pyramid = BalancedPyramid(case["in_channels"], case["refine_type"] or "mean", case["refine_level"])
    pyramid.load_state_dict({key: value.float() for key, value in case["state_dict"].items()})
    inputs = [x.float().requires_grad_() for x in case["inputs"]]
    outputs = pyramid(inputs)
    for output, wanted in zip(outputs, case["outputs"], strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=2e-4 * wanted.std().item())
    cotangents = [detdata.uni(seed, x.shape, -1, 1) for seed, x in zip(case["cotangent_seed"], outputs, strict=True)]
    sum((x * y).sum() for x, y in zip(outputs, cotangents, strict=True)).backward()
    for x, norm, crop in zip(inputs, case["grad_input_norms"], case["grad_input_crops"], strict=True):
        assert x.grad.norm().item() == pytest.approx(norm, rel=1e-4)
        torch.testing.assert_close(x.grad[:, : crop.shape[1]], crop, rtol=1e-3, atol=1e-3)
    for name, parameter in pyramid.named_parameters():
        if name != "refine.phi.conv.bias":  # shifts all affinities of a pixel alike: mathematically without gradient
            assert parameter.grad.norm().item() == pytest.approx(case["grad_param_norms"][name], rel=1e-4), name


def test_non_local_starts_as_the_plain_mean() -> None:
    features = [torch.randn(2, 8, size, size) for size in (16, 8, 4, 2, 1)]
    plain, refined = BalancedPyramid(8, "mean"), BalancedPyramid(8, "non_local")
    for a, b in zip(plain(features), refined(features), strict=True):
        assert torch.equal(a, b)


def test_every_level_hears_every_other() -> None:
    features = [torch.randn(1, 8, size, size, requires_grad=True) for size in (16, 8, 4, 2, 1)]
    for output in BalancedPyramid(8, "mean")(features):
        gradients = torch.autograd.grad(output.sum(), features, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_one_pixel() -> None:
    outputs = BalancedPyramid(8)([torch.ones(1, 8, 1, 1)] * 5)
    assert all(torch.equal(x, torch.full((1, 8, 1, 1), 2.0)) for x in outputs)


def test_wrong_arguments_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"pyramid: .*mean, conv, non_local; got 'sum'"):
        BalancedPyramid(8, "sum")
    with pytest.raises(ValueError, match=r"refine_level: .*got 5"):
        BalancedPyramid(8, refine_level=5)
