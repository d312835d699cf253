"""Regions: what they are matched to, which are drawn, what they cost, and what becomes of them in testing."""

from __future__ import annotations

import pytest
import torch

import libra_ops
from libra_det.models.roi_head import RoIHead
from libra_det.structures import Proposals, Targets


def _features(batch: int = 1, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    return [torch.randn(batch, 16, height // s, width // s) for s in (4, 8, 16, 32)]


def _proposals(*boxes: tuple[float, float, float, float], padding: int = 0) -> Proposals:
    boxes = torch.cat((torch.tensor(boxes).reshape(-1, 4), torch.zeros(padding, 4)))[None]
    valid = torch.arange(boxes.shape[1])[None] < boxes.shape[1] - padding
    return Proposals(boxes, valid.float() * 0.9, valid)


def _targets(boxes: list, labels: list[int], valid: list[bool], crowd: list[bool] | None = None) -> Targets:
    return Targets(
        torch.tensor([boxes], dtype=torch.float32),
        torch.tensor([labels]),
        torch.tensor([valid]),
        torch.tensor([crowd or [False] * len(labels)]),
    )


A, B = (10.0, 10.0, 50.0, 50.0), (60.0, 20.0, 100.0, 80.0)
NEAR_A, FAR = (12.0, 10.0, 50.0, 50.0), (100.0, 0.0, 120.0, 15.0)


def test_targets_are_their_own_matches(small_config) -> None:
    """Even a target that another one covers exactly; padding, crowds and targets without area are ignored."""
    targets = _targets([A, A, B, (5, 5, 5, 9), (0, 0, 0, 0)], [0, 1, 2, 0, 0], [True, True, True, True, False])
    boxes, matches = RoIHead(small_config(), 3).match(_proposals(NEAR_A, FAR, padding=2), targets)
    assert boxes.shape == (1, 9, 4)
    assert matches.index[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert matches.iou[0, :3].tolist() == [1, 1, 1]
    assert matches.state[0].tolist() == [1, 1, 1, -1, -1, 1, 0, -1, -1]
    assert matches.index[0, 5] == 0 and matches.iou[0, 5].item() == pytest.approx(0.95)


def test_proposals_inside_a_crowd_are_ignored(small_config) -> None:
    targets = _targets([B, (0, 0, 55, 55)], [0, 1], [True, False], [False, True])
    _, matches = RoIHead(small_config(), 3).match(_proposals(NEAR_A, FAR), targets)
    assert matches.state[0].tolist() == [1, -1, -1, 0]


def test_padding_is_never_sampled(small_config) -> None:
    head = RoIHead(small_config(roi_samples=16), 3)
    targets = _targets([A, (0, 0, 0, 0)], [1, 0], [True, False])
    for _ in range(20):
        boxes, matches = head.match(_proposals(NEAR_A, FAR, padding=30), targets)
        samples = head.sample(matches)
        drawn = boxes[0, samples.index[0]][samples.valid[0]]
        assert sorted(map(tuple, drawn.tolist())) == sorted([A, NEAR_A, FAR])


def test_loss_of_known_logits(small_config) -> None:
    """With all weights zero but the class biases, the class loss is the mean cross-entropy of those biases."""
    head = RoIHead(small_config(box_loss="l1", class_loss_weight=2.0, box_loss_weight=3.0), 3)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    biases = torch.tensor([1.0, 0.0, 0.0, 2.0])
    head.bbox_head.fc_cls.bias.data.copy_(biases)
    targets = _targets([A], [0], [True])
    losses = head.losses(_features(), _proposals(NEAR_A, FAR, padding=3), targets)
    log_probability = biases.log_softmax(0)
    # sampled: the target and NEAR_A of class 0, FAR as background
    wanted = -(2 * log_probability[0] + log_probability[3]) / 3
    torch.testing.assert_close(losses["roi_class"], 2 * wanted)
    # zero deltas are right for the target; NEAR_A is 38 wide, its centre 1 px too far right, for a target 40 wide
    wanted_box = (1 / 38 / 0.1 + torch.tensor(40 / 38).log() / 0.2) / 3
    torch.testing.assert_close(losses["roi_box"], 3 * wanted_box, rtol=1e-4, atol=0)


@pytest.mark.parametrize("specific", [True, False])
def test_only_the_target_class_learns_a_box(small_config, specific: bool) -> None:
    head = RoIHead(small_config(class_specific_boxes=specific), 3)
    assert head.bbox_head.fc_reg.out_features == (12 if specific else 4)
    losses = head.losses(_features(), _proposals(NEAR_A, FAR), _targets([A], [1], [True]))
    losses["roi_box"].backward()
    gradient = head.bbox_head.fc_reg.bias.grad.unflatten(0, (-1, 4)).abs().sum(1)
    assert (gradient > 0).tolist() == ([False, True, False] if specific else [True])


def test_ablation_of_the_sampler(small_config) -> None:
    """Of 200 negatives 10 are hard (IoU above 1/3); balanced sampling takes most of them, random sampling few."""
    iou = torch.cat((torch.full((190,), 0.02), torch.full((10,), 0.4)))[None]
    state = torch.zeros(1, 200, dtype=torch.int8)
    matches = libra_ops.Matches(torch.zeros(1, 200, dtype=torch.int64), iou, state)
    hard = {}
    for sampler in ("random", "iou_balanced"):
        head = RoIHead(small_config(sampler=sampler, roi_samples=30), 3)
        samples = [head.sample(matches) for _ in range(20)]
        hard[sampler] = sum((s.index[s.valid] >= 190).sum().item() for s in samples) / 20
    assert hard["random"] < 4 and hard["iou_balanced"] > 9


def test_ablation_of_the_box_loss(small_config) -> None:
    features, proposals, targets = _features(), _proposals(NEAR_A), _targets([A], [1], [True])
    values = set()
    for box_loss in ("l1", "smooth_l1", "balanced_l1"):
        torch.manual_seed(0)
        head = RoIHead(small_config(box_loss=box_loss), 3)
        values.add(round(head.losses(features, proposals, targets)["roi_box"].item(), 5))
    assert len(values) == 3


def _telling(head: RoIHead, label: int, logit: float = 10.0) -> None:
    """Make the head say `label` about everything, without moving boxes."""
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head.bbox_head.fc_cls.bias.data[label] = logit


def test_detections_are_in_original_pixels(small_config) -> None:
    head = RoIHead(small_config(), 3)
    _telling(head, 2)
    sizes, original = torch.tensor([[96.0, 128.0]]), torch.tensor([[48.0, 256.0]])
    found = head.detect(_features(), _proposals(B, FAR, padding=2), sizes, original)
    count = int(found.valid.sum())
    assert found.labels[0, :count].unique().tolist() == [2] and count == 2
    wanted = torch.tensor([B, FAR]) * torch.tensor([2.0, 0.5, 2.0, 0.5])
    order = found.boxes[0, :2, 0].argsort()
    torch.testing.assert_close(found.boxes[0, :2][order], wanted)
    assert not found.boxes[0, count:].any() and not found.scores[0, count:].any()


def test_boxes_leave_neither_the_resized_nor_the_original_image(small_config) -> None:
    head = RoIHead(small_config(), 3)
    _telling(head, 0)
    head.bbox_head.fc_reg.bias.data[:4] = torch.tensor([0.0, 0.0, 50.0, 50.0])  # as large as decoding allows
    sizes, original = torch.tensor([[90.0, 120.0]]), torch.tensor([[33.0, 47.0]])
    found = head.detect(_features(), _proposals(B), sizes, original)
    assert found.boxes[0, 0].tolist() == [0, 0, 47, 33]


def test_suppression_is_within_a_class_and_after_rescaling(small_config) -> None:
    head = RoIHead(small_config(score_threshold=0.2), 3)
    _telling(head, 1)
    head.bbox_head.fc_cls.bias.data[0] = 10.0  # two classes at one half each
    sizes = torch.tensor([[96.0, 128.0]])
    found = head.detect(_features(), _proposals(A, NEAR_A), sizes, sizes)
    assert found.labels[0][found.valid[0]].sort().values.tolist() == [0, 1]


def test_scores_that_are_not_numbers_are_dropped(small_config) -> None:
    head = RoIHead(small_config(), 3)
    _telling(head, 0)
    head.bbox_head.fc_cls.bias.data[0] = torch.nan
    sizes = torch.tensor([[96.0, 128.0]])
    assert not head.detect(_features(), _proposals(A, B), sizes, sizes).valid.any()
    _telling(head, 0)
    head.bbox_head.fc_reg.bias.data[:4] = torch.nan
    found = head.detect(_features(), _proposals(A, B), sizes, sizes)
    assert not found.valid.any() and found.boxes.isfinite().all()
