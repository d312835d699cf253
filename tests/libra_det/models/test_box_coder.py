"""Box deltas against the reference implementation."""

from __future__ import annotations

import pytest
import torch

from libra_det.models.box_coder import clip_boxes, decode_boxes, encode_boxes


@pytest.mark.parametrize("number", [0, 1])
def test_equals_the_reference(golden, number: int) -> None:
    case = golden("e_coder_anchors")["coder"][number]
    stds = torch.tensor(case["stds"])
    torch.testing.assert_close(encode_boxes(case["src"], case["dst"], stds), case["encoded"], rtol=1e-4, atol=1e-5)
    decoded = decode_boxes(case["src"], case["deltas"], stds)
    torch.testing.assert_close(decoded, case["decoded_noclip"], rtol=1e-5, atol=1e-3)
    clipped = clip_boxes(decoded[None], torch.tensor([[256.0, 320.0]]))[0]
    torch.testing.assert_close(clipped, case["decoded_clip"], rtol=1e-5, atol=1e-3)
    several = decode_boxes(case["src"][:20, None], case["deltas_multi"].unflatten(1, (-1, 4)), stds)
    several = clip_boxes(several[None], torch.tensor([[256.0, 320.0]]))[0]
    torch.testing.assert_close(several.flatten(1), case["decoded_multi"], rtol=1e-5, atol=1e-3)


def test_decode_undoes_encode() -> None:
    references = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 105.0, 25.0]])
    targets = torch.tensor([[3.0, -4.0, 18.0, 9.0], [50.0, 0.0, 60.0, 90.0]])
    stds = torch.tensor([0.1, 0.1, 0.2, 0.2])
    deltas = encode_boxes(references, targets, stds)
    torch.testing.assert_close(decode_boxes(references, deltas, stds), targets, rtol=0, atol=1e-4)


def test_huge_deltas_and_boxes_without_area_stay_finite() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode_boxes(box, torch.tensor([[0.0, 0.0, 1e4, 1e4]]))
    torch.testing.assert_close(grown[:, 2:] - grown[:, :2], torch.full((1, 2), 1000.0))
    assert encode_boxes(torch.zeros(1, 4), torch.zeros(1, 4)).isfinite().all()


def test_each_image_clips_to_its_own_size() -> None:
    boxes = torch.tensor([-5.0, -5.0, 500.0, 500.0]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[100.0, 200.0], [30.0, 40.0]]))
    assert clipped[0, 0].tolist() == [0, 0, 200, 100]
    assert clipped[1, 2].tolist() == [0, 0, 40, 30]
