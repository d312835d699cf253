"""Tensors of foreign memory, at any address and with bools of any bits; and images without anything in them."""

import numpy as np
import torch

from libra_ops import balanced_l1_loss, match_boxes, sample_iou_balanced

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30], [1, 1, 9, 12]])
OPTIONS = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}


def at_an_odd_address(tensor: torch.Tensor) -> torch.Tensor:
    bytes_ = np.zeros(tensor.numel() * tensor.element_size() + 1, np.uint8)
    array = bytes_[1:].view(tensor.numpy().dtype).reshape(tensor.shape)
    array[...] = tensor.numpy()
    moved = torch.from_numpy(array)
    assert moved.data_ptr() % 4
    return moved


def test_boxes_matches_and_deltas_at_odd_addresses():
    targets, valid = BOXES[None, [0, 3]], torch.ones(1, 2, dtype=torch.bool)
    matches = match_boxes(BOXES, targets, valid, **OPTIONS)
    moved = match_boxes(at_an_odd_address(BOXES), at_an_odd_address(targets), valid, **OPTIONS)
    assert all(map(torch.equal, matches, moved))
    samples = [
        sample_iou_balanced(each, num_samples=3, positive_fraction=0.5, generator=torch.Generator().manual_seed(1))
        for each in (matches, (at_an_odd_address(matches.index), at_an_odd_address(matches.iou), matches.state))
    ]
    assert all(map(torch.equal, *samples))
    loss = balanced_l1_loss(at_an_odd_address(BOXES), at_an_odd_address(BOXES * 0.9))
    assert torch.equal(loss, balanced_l1_loss(BOXES, BOXES * 0.9))


def test_a_bool_of_other_bits_is_true():
    flags = torch.from_numpy(np.array([[0, 2, 255]], np.uint8).view(bool))
    plain = torch.tensor([[False, True, True]])
    targets = BOXES[None, [0, 3, 2]]
    assert all(
        map(torch.equal, match_boxes(BOXES, targets, flags, **OPTIONS), match_boxes(BOXES, targets, plain, **OPTIONS))
    )


def test_a_multitude_of_empty_images():
    images = 2**31 - 1
    matches = match_boxes(
        torch.zeros(0, 4), torch.zeros(images, 0, 4), torch.zeros(images, 0, dtype=torch.bool), **OPTIONS
    )
    assert matches.index.shape == (images, 0)
    samples = sample_iou_balanced(matches, num_samples=0, positive_fraction=0.5)
    assert samples.index.shape == (images, 0)
