"""The CUDA kernels of box_iou, run on the CPU in every order of threads, against reference.py."""

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

KINDS = ("iou", "iof", "giou", "diou", "ciou")
# [B, N, M]: a single pair; just below, at and beyond a tile of 64 x 256; M a multiple of 4 and not.
SHAPES = [(1, 1, 1), (2, 63, 255), (1, 64, 256), (2, 65, 257), (1, 3, 260), (3, 130, 4)]


def random_boxes(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] xyxy within 50 x 50 px, all of them in use: an access beyond the last one meets no padding."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 50
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def box_iou(kernels: Kernels, boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    (batch, n, _), m = boxes1.shape, boxes2.shape[1]
    overlaps = empty(batch, n, m, dtype=boxes1.dtype)
    name = "float" if boxes1.dtype == torch.float32 else "double"
    kernels.run(f"run_box_iou_{name}", boxes1, boxes2, out(overlaps), batch, n, m, KINDS.index(kind))
    return overlaps


def backward(kernels: Kernels, gradient: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    batch, n, m = gradient.shape
    grad1, grad2 = empty(batch, n, 4, dtype=boxes1.dtype), empty(batch, m, 4, dtype=boxes1.dtype)
    name = "float" if boxes1.dtype == torch.float32 else "double"
    kernels.run(
        f"run_box_iou_backward_{name}", gradient, boxes1, boxes2, out(grad1), out(grad2), batch, n, m, KINDS.index(kind)
    )
    return grad1, grad2


def expected_gradients(gradient: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str) -> tuple[Tensor, ...]:
    inputs = [boxes.double().requires_grad_() for boxes in (boxes1, boxes2)]
    return torch.autograd.grad(reference.box_iou(*inputs, kind), inputs, gradient.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(emulate, shape, kind):
    batch, n, m = shape
    boxes1, boxes2 = random_boxes(batch, n, seed=1), random_boxes(batch, m, seed=2)
    boxes2[-1, -1] = boxes1[-1, -1]
    overlaps = box_iou(emulate("box_iou"), boxes1, boxes2, kind)
    if kind in ("iou", "iof"):
        torch.testing.assert_close(overlaps, reference.box_iou(boxes1, boxes2, kind), rtol=0, atol=0)
    torch.testing.assert_close(
        overlaps, reference.box_iou(boxes1.double(), boxes2.double(), kind).float(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 257), (2, 257, 33), (1, 8, 32)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_backward_agrees_with_the_reference(emulate, shape, kind):
    batch, n, m = shape
    boxes1, boxes2 = random_boxes(batch, n, seed=1), random_boxes(batch, m, seed=2)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    gradients = backward(emulate("box_iou"), gradient, boxes1, boxes2, kind)
    for got, expected in zip(gradients, expected_gradients(gradient, boxes1, boxes2, kind), strict=True):
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_float64(emulate, kind):
    boxes1, boxes2 = random_boxes(1, 5, seed=1, dtype=torch.float64), random_boxes(1, 9, seed=2, dtype=torch.float64)
    torch.testing.assert_close(
        box_iou(emulate("box_iou"), boxes1, boxes2, kind), reference.box_iou(boxes1, boxes2, kind)
    )
    gradient = torch.rand(1, 5, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = backward(emulate("box_iou"), gradient, boxes1, boxes2, kind)
    for got, expected in zip(gradients, expected_gradients(gradient, boxes1, boxes2, kind), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_and_not_finite_boxes(emulate, kind):
    boxes1, boxes2 = random_boxes(1, 70, seed=1), random_boxes(1, 6, seed=2)
    boxes1[0, 3] = torch.tensor([0.0, 0.0, 1e20, 1e20])
    boxes2[0, 4] = torch.tensor([0.0, 0.0, 1e20, 2e20])
    boxes1[0, 69], boxes2[0, 1] = float("nan"), torch.tensor([0.0, float("nan"), 9.0, 9.0])
    kernels = emulate("box_iou")
    overlaps = box_iou(kernels, boxes1, boxes2, kind)
    expected = reference.box_iou(boxes1, boxes2, kind)
    torch.testing.assert_close(overlaps, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert overlaps.isnan().sum() == 6 + 70 - 1
    gradient = torch.ones(1, 70, 6)
    gradient[overlaps.isnan()] = 0
    gradients = backward(kernels, gradient, boxes1, boxes2, kind)
    clean1, clean2 = boxes1.nan_to_num(), boxes2.nan_to_num()
    for got, expected in zip(gradients, expected_gradients(gradient, clean1, clean2, kind), strict=True):
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


def test_gradients_are_the_same_in_every_order():
    boxes1, boxes2 = random_boxes(1, 300, seed=1), random_boxes(1, 40, seed=2)
    gradient = torch.randn(1, 300, 40, generator=torch.Generator().manual_seed(3))
    driver = FOLDER / "box_iou_driver.cpp"
    first, *others = [backward(load(driver, order), gradient, boxes1, boxes2, "iou") for order in ORDERS]
    for other in others:
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 5), (2, 5, 0)], ids=str)
def test_empty(emulate, shape):
    batch, n, m = shape
    boxes1, boxes2 = random_boxes(batch, n, seed=1), random_boxes(batch, m, seed=2)
    kernels = emulate("box_iou")
    assert box_iou(kernels, boxes1, boxes2, "iou").shape == shape
    grad1, grad2 = backward(kernels, torch.zeros(shape), boxes1, boxes2, "iou")
    assert not grad1.any() and not grad2.any()  # without a partner a box has gradient 0


def test_places_beyond_32_bits(emulate):
    """Tiles of [3, 10^6, 10^6]: the last one of image 2 lies beyond 2^31 elements and 2^27 tiles."""
    n = m = 1_000_000
    row_tiles, column_tiles = -(-n // 64), -(-m // 256)
    place = torch.zeros(3, dtype=torch.int64)
    emulate("box_iou").run("run_iou_tile", out(place), 3 * row_tiles * column_tiles - 1, n, m)
    assert place.tolist() == [2, (row_tiles - 1) * 64, (column_tiles - 1) * 256]
    assert (place[0] * n + place[1]) * m + place[2] > 2**31
