"""The feature pyramid against the reference implementation."""

from __future__ import annotations

import pytest
import torch

from libra_det.models.fpn import FeaturePyramid

OPTIONS = {"faster": {}, "retina_on_input": {"start_level": 1, "extra_convs": 2}}


@pytest.mark.parametrize("size_name", ["even", "odd"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_reference(golden, name: str, size_name: str) -> None:
    case = next(c for c in golden("c_fpn")["cases"] if c["name"] == name and c["size_name"] == size_name)
    pyramid = FeaturePyramid(case["cfg"]["in_channels"], case["cfg"]["out_channels"], **OPTIONS[name])
    pyramid.load_state_dict({key: value.float() for key, value in case["state_dict"].items()})
    with torch.no_grad():
        outputs = pyramid([x.float() for x in case["inputs"]])
    for output, wanted in zip(outputs, case["outputs"], strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=2e-4 * wanted.std().item())


def test_one_pixel_gives_all_levels() -> None:
    maps = [torch.ones(1, 4, 1, 1), torch.ones(1, 8, 1, 1)]
    for options in ({}, {"start_level": 1, "extra_convs": 2}):
        outputs = FeaturePyramid((4, 8), 6, **options)(maps)
        assert [tuple(x.shape) for x in outputs] == [(1, 6, 1, 1)] * 3
