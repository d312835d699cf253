"""Tensors of foreign memory, at any address and with bools of any bits; and images without anything in them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from libra_ops import (
    balanced_l1_loss,
    box_regression_loss,
    decode_boxes,
    encode_boxes,
    integrate_pyramid,
    match_boxes,
    multiscale_roi_align,
    nms_padded,
    sample_iou_balanced,
    scatter_pyramid,
    sigmoid_focal_loss,
    topk_per_level,
)

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30], [1, 1, 9, 12]])
OPTIONS = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
STDS = (0.1, 0.1, 0.2, 0.2)
FORMATS = (torch.contiguous_format, torch.channels_last)


def at_an_odd_address(tensor: Tensor) -> Tensor:
    """A copy with the same strides, of a tensor without gaps."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.detach().permute(order)
    bytes_ = np.zeros(dense.numel() * dense.element_size() + 1, np.uint8)
    array = bytes_[1:].view(dense.numpy().dtype).reshape(dense.shape)
    array[...] = dense.numpy()
    moved = torch.from_numpy(array).permute(np.argsort(order).tolist())
    assert moved.data_ptr() % 2 and moved.stride() == tensor.stride()
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


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] xyxy within 64 x 64 pixels."""
    corners = uniform(*shape, 2, 2, seed=seed) * 64
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1).to(dtype)


def numbers(*shape: int, high: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def maps(dtype: torch.dtype, order: torch.memory_format) -> list[Tensor]:
    """Of 37 channels: whole vectors and a rest."""
    shapes = [(2, 37, 16, 17), (2, 37, 8, 9), (2, 37, 3, 4)]
    return [(uniform(*shape, dtype=dtype) - 0.5).contiguous(memory_format=order) for shape in shapes]


def pool(boxes: Tensor, valid: Tensor, *features: Tensor) -> Tensor:
    options = {"strides": (4, 8, 16), "sampling_ratio": 2, "output_size": 3, "finest_scale": 5.0}
    return multiscale_roi_align(features, boxes, valid, **options)


def integrate(*features: Tensor) -> Tensor:
    return integrate_pyramid(features, level=1)


def scatter(refined: Tensor, *features: Tensor) -> list[Tensor]:
    return scatter_pyramid(features, refined, level=1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    return nms_padded(boxes, scores, groups, iou_threshold=0.3, max_output=40, valid=valid)


def focal(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return tuple(sigmoid_focal_loss(logits, labels, mask, reduction=reduction) for reduction in ("none", "sum"))


def regress(pred: Tensor, target: Tensor, weight: Tensor, references: Tensor, stds: Tensor) -> tuple[Tensor, ...]:
    decoded = {"references": references, "delta_stds": stds}
    return (
        box_regression_loss(pred, target, "ciou", weight, **decoded),
        box_regression_loss(pred, target, "giou", weight, reduction="sum"),
    )


def encode(references: Tensor, targets: Tensor, index: Tensor, target_index: Tensor) -> Tensor:
    return encode_boxes(references, targets, index=index, target_index=target_index, delta_stds=STDS)


def decode(references: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    return decode_boxes(references, deltas, delta_stds=STDS, sizes=sizes)


def choose(references: Tensor, deltas: Tensor, index: Tensor) -> Tensor:
    return decode_boxes(references, deltas, index=index)


def best(scores: Tensor) -> tuple[Tensor, Tensor]:
    return topk_per_level(scores, [900, 100, 3], 50, threshold=0.25)


def some_flags(*shape: int) -> Tensor:
    return numbers(*shape, high=4, seed=9) > 0


FUNCTIONS = {  # function, its arguments, and for which of them it has a gradient
    "nms_padded": (suppress, [random_boxes(2, 90), uniform(2, 90), numbers(2, 90, high=3), some_flags(2, 90)], []),
    "box_regression_loss": (
        regress,
        [uniform(3, 41, 4) - 0.5, random_boxes(3, 41), some_flags(3, 41), random_boxes(41, seed=2), torch.tensor(STDS)],
        [0, 1],
    ),
    "encode_boxes": (
        encode,
        [random_boxes(50), random_boxes(2, 9, seed=1), numbers(2, 33, high=50), numbers(2, 33, high=9, seed=1)],
        [],
    ),
    "decode_boxes": (decode, [random_boxes(51), uniform(2, 51, 4) - 0.5, torch.tensor([[50.0, 40], [30, 64]])], [1]),
    "decode_boxes of float64": (
        decode,
        [
            random_boxes(2, 51, dtype=torch.float64),
            uniform(2, 51, 3, 4, dtype=torch.float64) - 0.5,
            numbers(2, 2, high=64),
        ],
        [1],
    ),
    "decode_boxes with an index": (choose, [random_boxes(51), uniform(2, 51, 4), numbers(2, 33, high=51)], []),
}
FUNCTIONS |= {
    f"sigmoid_focal_loss {dtype}": (
        focal,
        [uniform(3, 41, 21, dtype=dtype) * 8 - 4, numbers(3, 41, high=22), some_flags(3, 41)],
        [0],
    )
    for dtype in (torch.float16, torch.float32, torch.float64)
}
FUNCTIONS |= {
    f"topk_per_level {dtype}": (best, [uniform(2, 1003, dtype=dtype)], []) for dtype in (torch.float16, torch.float32)
}
for features in (maps(dtype, order) for dtype in (torch.float16, torch.float32, torch.float64) for order in FORMATS):
    kind = f"{features[0].dtype} {'contiguous' if features[0].is_contiguous() else 'channels-last'}"
    FUNCTIONS |= {
        f"multiscale_roi_align {kind}": (pool, [random_boxes(2, 30), some_flags(2, 30), *features], [2, 3, 4]),
        f"integrate_pyramid {kind}": (integrate, features, [0, 1, 2]),
        f"scatter_pyramid {kind}": (scatter, [features[1].flip(0), *features], [0, 1, 2, 3]),
    }


def run(name: str, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Results and gradients with `change` made to all arguments and to the incoming gradients."""
    function, arguments, with_gradient = FUNCTIONS[name]
    arguments = [change(x).requires_grad_(number in with_gradient) for number, x in enumerate(arguments)]
    results = function(*arguments)
    results = [results] if isinstance(results, Tensor) else list(results)
    if not with_gradient:
        return results
    incoming = [change(x.detach().cos()) for x in results]
    return [x.detach() for x in results] + list(
        torch.autograd.grad(results, [arguments[number] for number in with_gradient], incoming)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_everything_at_odd_addresses(name):
    expected = run(name, Tensor.clone)
    assert all(x.any() for x in expected)
    for got, wanted in zip(run(name, at_an_odd_address), expected, strict=True):
        assert torch.equal(got, wanted) and got.stride() == wanted.stride()


def with_other_bits(tensor: Tensor) -> Tensor:
    """A copy, of which each True is a byte of 2 to 255 where it was one of 1."""
    if tensor.dtype != torch.bool:
        return tensor.clone()
    bytes_ = numbers(*tensor.shape, high=254).to(torch.uint8) + 2
    bytes_.view(-1)[::2] = 2
    return torch.from_numpy((bytes_ * tensor).numpy().view(bool))


def test_a_bool_of_other_bits_is_true():
    flags = torch.from_numpy(np.array([[0, 2, 255]], np.uint8).view(bool))
    plain = torch.tensor([[False, True, True]])
    targets = BOXES[None, [0, 3, 2]]
    for crowd in (plain, plain.flip(1)):
        given = with_other_bits(crowd)
        matches = match_boxes(BOXES, targets, flags, crowd=given, **OPTIONS)
        assert all(map(torch.equal, matches, match_boxes(BOXES, targets, plain, crowd=crowd, **OPTIONS)))
    assert all(
        map(torch.equal, match_boxes(BOXES, targets, flags, **OPTIONS), match_boxes(BOXES, targets, plain, **OPTIONS))
    )


@pytest.mark.parametrize(
    "name", [name for name, (_, arguments, _) in FUNCTIONS.items() if any(x.dtype == torch.bool for x in arguments)]
)
def test_a_flag_of_other_bits_is_true(name):
    assert all(map(torch.equal, run(name, with_other_bits), run(name, Tensor.clone)))


def test_a_multitude_of_empty_images():
    images = 2**31 - 1
    matches = match_boxes(
        torch.zeros(0, 4), torch.zeros(images, 0, 4), torch.zeros(images, 0, dtype=torch.bool), **OPTIONS
    )
    assert matches.index.shape == (images, 0)
    samples = sample_iou_balanced(matches, num_samples=0, positive_fraction=0.5)
    assert samples.index.shape == (images, 0)
