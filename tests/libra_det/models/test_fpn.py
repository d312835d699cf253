"""The feature pyramid against the reference implementation."""

from __future__ import annotations

import pytest
import torch

from libra_det.models.fpn import FeaturePyramid


@pytest.mark.parametrize("size_name", ["even", "odd"])
def test_equals_the_reference(golden, size_name: str) -> None:
    case = next(c for c in golden("c_fpn")["cases"] if c["name"] == "faster" and c["size_name"] == size_name)
    pyramid = FeaturePyramid(case["cfg"]["in_channels"], case["cfg"]["out_channels"])
    pyramid.load_state_dict({key: value.float() for key, value in case["state_dict"].items()})
    with torch.no_grad():
        outputs = pyramid([x.float() for x in case["inputs"]])
    for output, wanted in zip(outputs, case["outputs"], strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=2e-4 * wanted.std().item())


def test_one_pixel_gives_five_levels() -> None:
    outputs = FeaturePyramid((4, 8), 6)([torch.ones(1, 4, 1, 1), torch.ones(1, 8, 1, 1)])
    assert [tuple(x.shape) for x in outputs] == [(1, 6, 1, 1)] * 3
