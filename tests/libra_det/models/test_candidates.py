"""Box deltas against the reference implementation, and the best candidates of a dense head."""

from __future__ import annotations

import math

import pytest
import torch

import libra_ops
from libra_det.models.candidates import best_per_level, decode_boxes, levels_of_slots
from libra_det.models.postprocess import clip_boxes


@pytest.mark.parametrize("number", [0, 1])
def test_box_coding_equals_the_reference(golden, number: int) -> None:
    case = golden("e_coder_anchors")["coder"][number]
    stds, size = case["stds"], torch.tensor([[256.0, 320.0]])
    encoded = libra_ops.encode_boxes(case["src"], case["dst"], delta_stds=stds)
    torch.testing.assert_close(encoded, case["encoded"], rtol=1e-4, atol=1e-5)
    decoded = decode_boxes(case["src"], case["deltas"][None], delta_stds=stds)
    torch.testing.assert_close(decoded[0], case["decoded_noclip"], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(clip_boxes(decoded, size)[0], case["decoded_clip"], rtol=1e-5, atol=1e-3)
    clipped = decode_boxes(case["src"], case["deltas"][None], delta_stds=stds, sizes=size)
    torch.testing.assert_close(clipped[0], case["decoded_clip"], rtol=1e-5, atol=1e-3)
    several = case["deltas_multi"].unflatten(1, (-1, 4))[None]  # [1, N, C, 4]
    several = decode_boxes(case["src"][:20], several, delta_stds=stds, sizes=size)
    torch.testing.assert_close(several[0].flatten(1), case["decoded_multi"], rtol=1e-5, atol=1e-3)


def test_each_image_clips_to_its_own_size() -> None:
    boxes = torch.tensor([-5.0, -5.0, 500.0, 500.0]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[100.0, 200.0], [30.0, 40.0]]))
    assert clipped[0, 0].tolist() == [0, 0, 200, 100]
    assert clipped[1, 2].tolist() == [0, 0, 40, 30]


def test_the_best_of_each_level_and_their_levels() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, 9.0], [5.0, 4.0, 6.0, math.nan, 0.0, 1.0]])
    values, index = best_per_level(logits, (3, 1, 2), 2)
    assert index.tolist() == [[1, 2, 3, 5, 4], [2, 0, 3, 5, 4]]
    assert torch.equal(values.nan_to_num(7), logits.gather(1, index).nan_to_num(7))
    assert levels_of_slots(index, (3, 1, 2), 2).tolist() == [[0, 0, 1, 2, 2]] * 2


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.999, 1.0])
def test_a_score_threshold_leaves_out_none_that_pass_it(threshold: float) -> None:
    border = torch.tensor(min(threshold, 1 - 1e-6), dtype=torch.float64).logit().float()
    logits = torch.cat((border + torch.linspace(-1e-5, 1e-5, 200), torch.linspace(-20, 20, 300)))[None]
    values, _ = best_per_level(logits, (500,), 500, score_threshold=threshold)
    passes = logits.sigmoid() > threshold
    assert (values.sigmoid() > threshold).sum() == passes.sum()
    assert threshold == 0 or (values == -torch.inf).sum() > 50
