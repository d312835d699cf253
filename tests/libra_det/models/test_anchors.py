"""Anchors against the reference implementation."""

from __future__ import annotations

import pytest
import torch

from libra_det.models.anchors import base_anchors, grid_cells, inside_padding, place_anchors

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("name", "strides", "scale", "scales_per_octave"),
    [("rpn", STRIDES, 8.0, 1), ("retina", (8, 16, 32, 64, 128), 4.0, 3)],
)
def test_equal_the_reference(golden, name: str, strides: tuple[int, ...], scale: float, scales_per_octave: int) -> None:
    case = golden("e_coder_anchors")[name]
    for level, stride in enumerate(strides):
        base = base_anchors(stride, scale, RATIOS, scales_per_octave)
        torch.testing.assert_close(base, case["base_anchors"][level], rtol=1e-6, atol=0)
        cells = grid_cells(*case["featmap_sizes"][level], stride, torch.device("cpu"))
        torch.testing.assert_close(place_anchors(base, cells), case["grid_priors"][level], rtol=1e-6, atol=1e-5)


def test_cells_in_the_batch_padding_equal_the_reference(golden, monkeypatch) -> None:
    """The golden image is padded to 41 x 53 pixels, which is no multiple of 32; so the rounding is switched off."""
    monkeypatch.setattr("libra_det.models.anchors.PADDING_STRIDE", 1)
    case = golden("e_coder_anchors")["rpn"]
    size = torch.tensor([case["valid_flags_pad"]], dtype=torch.float32)
    for level, stride in enumerate(STRIDES):
        cells = grid_cells(*case["featmap_sizes"][level], stride, torch.device("cpu"))
        inside = inside_padding(cells.repeat_interleave(3, dim=0), size)
        assert torch.equal(inside[0], case["valid_flags"][level])


def test_an_image_owns_its_padding_to_32() -> None:
    cells = torch.tensor([[0.0, 0.0], [63.0, 31.0], [64.0, 0.0], [0.0, 32.0]])
    inside = inside_padding(cells, torch.tensor([[20.0, 40.0], [33.0, 65.0]]))
    assert inside.tolist() == [[True, True, False, False], [True, True, True, True]]


def test_anchor_shapes() -> None:
    boxes = base_anchors(16, 4.0, (0.25, 1.0, 4.0))
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor([0.25, 1.0, 4.0]))
    torch.testing.assert_close(height * width, torch.full((3,), 64.0**2))
    torch.testing.assert_close(boxes[:, :2], -boxes[:, 2:])
