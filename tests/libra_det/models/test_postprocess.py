"""Suppression of padded batches."""

from __future__ import annotations

import torch
from torchvision.ops import nms

from libra_det.models.postprocess import non_maximum_suppression, usable


def test_suppression_equals_the_reference(golden) -> None:
    case = golden("x_ops_losses")["nms"]
    boxes, scores = case["boxes"][None], case["scores"][None]
    valid = torch.ones_like(scores, dtype=torch.bool)
    for groups, threshold, kept in (
        (torch.zeros_like(case["idxs"]), 0.5, case["thr05_keep"]),
        (case["idxs"], 0.7, case["batched07_keep"]),
    ):
        index, found = non_maximum_suppression(boxes, scores, groups[None], valid, threshold, len(scores[0]))
        assert torch.equal(index[found], kept)


def test_classwise_suppression_equals_the_reference(golden) -> None:
    case = golden("x_ops_losses")["multiclass_nms"]
    scores = case["scores"][:, :-1]  # [200, 5], without the background
    boxes = case["boxes"].reshape(1, -1, 4)  # [1, 200 * 5, 4]
    labels = torch.arange(scores.shape[1]).expand_as(scores).reshape(1, -1)
    scores = scores.reshape(1, -1)
    valid = scores > case["score_thr"]
    index, valid = non_maximum_suppression(boxes, scores, labels, valid, case["iou"], case["max"])
    assert valid.all()
    torch.testing.assert_close(boxes[0, index[0]], case["dets"][:, :4])
    torch.testing.assert_close(scores[0, index[0]], case["dets"][:, 4])
    assert torch.equal(labels[0, index[0]], case["labels"])


def test_images_do_not_suppress_each_other_and_invalid_slots_do_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]]).repeat(2, 1, 1)
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1]])
    valid = torch.tensor([[True, True, True], [False, True, True]])
    groups = torch.zeros(2, 3, dtype=torch.int64)
    index, found = non_maximum_suppression(boxes, scores, groups, valid, 0.5, 10)
    assert index[0, :2].tolist() == [0, 2] and index[1, :2].tolist() == [1, 2]
    assert found.tolist() == [[True, True, False], [True, True, False]]


def test_nothing_to_keep() -> None:
    boxes, scores = torch.zeros(2, 4, 4), torch.zeros(2, 4)
    groups = torch.zeros(2, 4, dtype=torch.int64)
    index, valid = non_maximum_suppression(boxes, scores, groups, scores > 0, 0.5, 3)
    assert index.shape == (2, 3) and not valid.any()


def test_usable_boxes_are_finite_and_have_an_area() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 5], [3, 3, 2, 4], [0, torch.nan, 1, 1], [0, 0, torch.inf, 1]])
    assert usable(boxes).tolist() == [True, False, False, False, False]


def test_what_else_is_in_a_batch_does_not_matter() -> None:
    """80 classes in images of 6000 px, alone (few boxes) and in a batch of 16 (many), against class by class."""
    generator = torch.Generator().manual_seed(0)
    batch, count, classes = 16, 600, 80
    corner = torch.rand(batch, count // 6, 1, 2, generator=generator) * 5980
    corner = corner + torch.rand(batch, count // 6, 6, 2, generator=generator) * 2  # six boxes about one place
    boxes = torch.cat((corner, corner + 4 + torch.rand(batch, count // 6, 6, 2, generator=generator)), -1)
    boxes = boxes.flatten(1, 2)  # [B, T, 4]
    scores = torch.rand(batch, count, generator=generator)
    labels = torch.randint(classes - 4, classes, (batch, count // 6), generator=generator).repeat_interleave(6, 1)
    valid = torch.rand(batch, count, generator=generator) < 0.9
    together, found = non_maximum_suppression(boxes, scores, labels, valid, 0.5, count)
    for image in range(batch):
        one = slice(image, image + 1)
        alone, alone_found = non_maximum_suppression(boxes[one], scores[one], labels[one], valid[one], 0.5, count)
        wanted = torch.zeros(count, dtype=torch.bool)
        for label in range(classes):
            index = (valid[image] & (labels[image] == label)).nonzero().squeeze(1)
            wanted[index[nms(boxes[image, index].double(), scores[image, index].double(), 0.5)]] = True
        assert torch.equal(alone[0], together[image]) and torch.equal(alone_found[0], found[image])
        assert torch.equal(together[image, found[image]].sort().values, wanted.nonzero().squeeze(1))
    assert 0 < int(found.sum()) < int(valid.sum())
