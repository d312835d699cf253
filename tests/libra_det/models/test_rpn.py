"""Proposals and the losses that teach them."""

from __future__ import annotations

import math

import pytest
import torch

import libra_ops
from libra_det.models.rpn import AnchorPredictions, RPNHead
from libra_det.structures import Targets


def _pyramid(batch: int = 2, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    return [torch.randn(batch, 16, math.ceil(height / s), math.ceil(width / s)) for s in (4, 8, 16, 32, 64)]


def _sizes(*sizes: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(sizes)


def test_predictions_line_up_with_their_anchors(small_config) -> None:
    head = RPNHead(small_config())
    features = _pyramid()
    predictions = head(features)
    assert predictions.level_sizes == tuple(x.shape[2] * x.shape[3] * 3 for x in features)
    assert len(predictions.anchors) == sum(predictions.level_sizes) == predictions.logits.shape[1]
    # the second level's cell in row 3, column 5, and its last ratio
    level_logits = head.rpn_cls(head.rpn_conv(features[1]).relu())
    position = predictions.level_sizes[0] + (3 * features[1].shape[3] + 5) * 3 + 2
    torch.testing.assert_close(predictions.logits[:, position], level_logits[:, 2, 3, 5])
    assert predictions.cells[position].tolist() == [5 * 8, 3 * 8]
    centre = (predictions.anchors[position, :2] + predictions.anchors[position, 2:]) / 2
    torch.testing.assert_close(centre, predictions.cells[position])


def test_proposals_are_sorted_clipped_and_padded_with_zeros(small_config) -> None:
    head = RPNHead(small_config())
    sizes = _sizes((96, 128), (40, 50))
    proposals = head.propose(head(_pyramid()), sizes, per_level=30, limit=60)
    assert proposals.boxes.shape == (2, 60, 4)
    for image, (height, width) in enumerate(sizes.tolist()):
        boxes, scores, valid = (x[image] for x in proposals)
        count = int(valid.sum())
        assert 0 < count <= 60 and valid[:count].all()
        assert (scores[:count].diff() <= 0).all()
        assert (boxes >= 0).all() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (boxes[:count, 2:] > boxes[:count, :2]).all()
        assert not boxes[count:].any() and not scores[count:].any()
    assert not proposals.valid[1].all()  # the small image has fewer good anchors than slots


def test_predictions_that_are_not_finite_give_no_proposals(small_config) -> None:
    head = RPNHead(small_config())
    predictions = head(_pyramid())
    predictions.logits[0] = torch.nan
    predictions.deltas[1, ::2] = torch.inf
    proposals = head.propose(predictions, _sizes((96, 128), (96, 128)), per_level=30, limit=40)
    assert not proposals.valid[0].any()
    assert proposals.valid[1].any() and proposals.boxes.isfinite().all()


def _targets(*boxes: tuple[float, float, float, float], crowd: bool = False) -> Targets:
    boxes = torch.tensor(boxes).reshape(1, -1, 4)
    flags = torch.ones(boxes.shape[:2], dtype=torch.bool)
    return Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), flags & (not crowd), flags & crowd)


def _perfect(head: RPNHead, targets: Targets) -> AnchorPredictions:
    """Predictions for a 96 x 128 image that hit the target exactly from every anchor that overlaps it well."""
    predictions = head(_pyramid(1))
    iou = libra_ops.box_iou(predictions.anchors, targets.boxes[0])[:, 0]
    good = (iou >= 0.7) | ((iou == iou.max()) & (iou >= 0.3))
    deltas = libra_ops.encode_boxes(predictions.anchors, targets.boxes[0, :1].expand_as(predictions.anchors))
    return predictions._replace(logits=torch.where(good, 20.0, -20.0)[None], deltas=deltas[None])


def test_losses_vanish_for_perfect_predictions_only(small_config) -> None:
    head = RPNHead(small_config(rpn_samples=4096, rpn_max_negatives_per_positive=None))
    targets, sizes = _targets((30.0, 20.0, 61.0, 50.0)), _sizes((96, 128))
    perfect = _perfect(head, targets)
    losses = head.losses(perfect, sizes, targets)
    assert losses["rpn_class"] < 1e-6 and losses["rpn_box"] < 1e-6
    wrong = perfect._replace(logits=-perfect.logits)
    assert head.losses(wrong, sizes, targets)["rpn_class"].item() == pytest.approx(20, rel=1e-3)
    moved = perfect._replace(deltas=perfect.deltas + 1)
    losses = head.losses(moved, sizes, targets)
    positives = (perfect.logits > 0).sum().item()
    # L1 of 1 in four deltas of each positive, over all sampled anchors, which here are those of the image not ignored
    matches = libra_ops.match_boxes(
        perfect.anchors, targets.boxes, targets.valid, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3
    )
    sampled = (matches.state >= 0).sum().item()
    assert losses["rpn_box"].item() == pytest.approx(4 * positives / sampled, rel=1e-4)


def test_loss_weights_and_kinds(small_config) -> None:
    targets, sizes = _targets((30.0, 20.0, 61.0, 50.0)), _sizes((96, 128))
    head = RPNHead(small_config(rpn_samples=4096, rpn_max_negatives_per_positive=None))
    predictions = _perfect(head, targets)
    predictions = predictions._replace(deltas=predictions.deltas + 0.5, logits=predictions.logits * 0)
    plain = head.losses(predictions, sizes, targets)
    head.config = small_config(
        rpn_samples=4096,
        rpn_max_negatives_per_positive=None,
        rpn_class_loss_weight=2.0,
        rpn_box_loss_weight=3.0,
        rpn_box_loss="smooth_l1",
    )
    weighted = head.losses(predictions, sizes, targets)
    assert weighted["rpn_class"].item() == pytest.approx(2 * plain["rpn_class"].item(), rel=1e-5)
    assert weighted["rpn_box"].item() == pytest.approx(3 * plain["rpn_box"].item() / 4, rel=1e-4)  # .5^2 / 2 for .5


def test_anchors_in_the_batch_padding_are_not_trained(small_config) -> None:
    """The second image is 32 x 32 in a batch of 96 x 128: only its own anchors can get a gradient."""
    head = RPNHead(small_config(rpn_samples=4096, rpn_max_negatives_per_positive=None))
    predictions = head(_pyramid())
    logits = predictions.logits.detach().requires_grad_()
    targets = Targets(
        torch.tensor([[[4.0, 4, 28, 28]]]).repeat(2, 1, 1),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.bool),
        torch.zeros(2, 1, dtype=torch.bool),
    )
    losses = head.losses(predictions._replace(logits=logits), _sizes((96, 128), (32, 32)), targets)
    losses["rpn_class"].backward()
    beyond = (predictions.cells >= 32).any(1)
    assert not logits.grad[1, beyond].any()
    assert logits.grad[0, beyond].any() and logits.grad[1, ~beyond].any()


def test_anchors_in_a_crowd_are_not_negatives(small_config) -> None:
    head = RPNHead(small_config(rpn_samples=4096))
    predictions = head(_pyramid(1))
    logits = predictions.logits.detach().requires_grad_()
    targets = _targets((0.0, 0.0, 128.0, 96.0), crowd=True)
    head.losses(predictions._replace(logits=logits), _sizes((96, 128)), targets)["rpn_class"].backward()
    centres = (predictions.anchors[:, :2] + predictions.anchors[:, 2:]) / 2
    deep = ((centres > 32) & (centres < torch.tensor([96.0, 64.0]))).all(1)
    small = (predictions.anchors[:, 2] - predictions.anchors[:, 0]) < 32
    assert (deep & small).any() and not logits.grad[0, deep & small].any()


def test_sampled_positives_fit_their_slots(small_config) -> None:
    """The box loss looks at the first slots only; every positive has to be there, whatever the fraction."""
    for fraction, count in ((0.5, 64), (0.25, 30), (0.29, 100), (1.0, 16)):
        state = torch.ones(1, 400, dtype=torch.int8)
        matches = libra_ops.Matches(torch.zeros(1, 400, dtype=torch.int64), torch.ones(1, 400), state)
        samples = libra_ops.sample_iou_balanced(matches, num_samples=count, positive_fraction=fraction)
        assert samples.positive.sum() == int(count * fraction + 1e-6)
