"""The CUDA kernels of box_iou, run on the CPU in every order of threads, against reference.py."""

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

KINDS = ("iou", "iof", "giou", "diou", "ciou")
# [B, N, M]: a single pair; M a multiple of 4 and not, below and beyond the columns of a block; rows of one thread and
# of many side by side; more rows than one chunk of 256, and more than one block has.
SHAPES = [(1, 1, 1), (2, 63, 255), (1, 64, 256), (2, 65, 257), (1, 3, 1028), (3, 130, 4), (2, 1100, 3), (2, 700, 100)]


def random_boxes(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] xyxy within 50 x 50 px, all of them in use: an access beyond the last one meets no padding."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 50
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def box_iou(kernels: Kernels, boxes1: Tensor, boxes2: Tensor, kind: str, multiprocessors: int = 2) -> Tensor:
    (batch, n, _), m = boxes1.shape, boxes2.shape[1]
    overlaps = empty(batch, n, m, dtype=boxes1.dtype)
    name = "float" if boxes1.dtype == torch.float32 else "double"
    kernels.run(f"run_box_iou_{name}", boxes1, boxes2, out(overlaps), batch, n, m, KINDS.index(kind), multiprocessors)
    return overlaps


def backward(kernels: Kernels, gradient: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    batch, n, m = gradient.shape
    grad1, grad2 = empty(batch, n, 4, dtype=boxes1.dtype), empty(batch, m, 4, dtype=boxes1.dtype)
    counts = torch.zeros(2, dtype=torch.int64)
    kernels.run("slope_partials", out(counts), batch, n, m, boxes1.element_size())
    partials = [out(empty(count, 4, dtype=boxes1.dtype)) if count else None for count in counts.tolist()]
    name = "float" if boxes1.dtype == torch.float32 else "double"
    kernels.run(
        f"run_box_iou_backward_{name}",
        *(gradient, boxes1, boxes2, out(grad1), out(grad2), *partials, batch, n, m, KINDS.index(kind)),
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


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 9, 257), (2, 257, 33), (1, 8, 32), (1, 300, 260), (2, 70, 100)], ids=str
)
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
    boxes1, boxes2 = random_boxes(1, 300, seed=1), random_boxes(1, 140, seed=2)
    gradient = torch.randn(1, 300, 140, generator=torch.Generator().manual_seed(3))
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
    """Lines of [3, 10^6, 10^6]: the last one lies beyond 2^31 elements."""
    n = m = 1_000_000
    place, share = torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    emulate("box_iou").run("run_iou_line", out(place), out(share), -1, 3, n, m)
    image, row, column = place.tolist()
    assert (image, row) == (2, n - 1) and m - 1024 <= column < m
    assert (image * n + row) * m + column > 2**31


@pytest.mark.parametrize("m", [1, 4, 50, 100, 101, 500, 516, 1028, 2000, 10_000])
def test_few_threads_idle(emulate, m):
    place, share = torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    emulate("box_iou").run("run_iou_line", out(place), out(share), 0, 1, 2000, m)
    assert 0.89 < share <= 1


def test_hard_quotients():
    """For every divisor, all that is almost in the middle between two floats is rounded as `/` rounds it."""
    kernels = load(FOLDER / "quotient_driver.cpp", "forward")
    tried, wrong = torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    kernels.run("run_hard_quotients", out(tried), out(wrong), 2**23, 2**24)
    assert tried.item() > 10_000_000
    # 1 / (2 - 2^-23) and one more need the right estimate, as the compiler's own division does.
    assert wrong.tolist() == [1, 0, 2]


def test_quotients_at_the_ends_of_the_range():
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(300_000, generator=generator) + 1
    b = torch.rand(300_000, generator=generator) + 1
    exponents = torch.randint(-102, 43, (2, 300_000), generator=generator)
    a, b = torch.ldexp(a, exponents[0]), torch.ldexp(b, exponents[1].clamp_min(-20))
    keep = a.double() / b.double() >= 2.0**-125
    a, b = a[keep], b[keep]
    a[::1000] = 0
    kernels = load(FOLDER / "quotient_driver.cpp", "forward")
    tried, wrong = torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    kernels.run("run_quotients", a, b, out(tried), out(wrong), len(a))
    assert tried.item() > 100_000 and wrong.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_are_not_plain_change_no_other_pair(emulate, kind):
    """Coordinates below 2^-16 and beyond 2^20 px take the slow path: the same results, and those of the others stay."""
    boxes1, boxes2 = random_boxes(2, 300, seed=1), random_boxes(2, 9, seed=2)
    kernels = emulate("box_iou")
    before = box_iou(kernels, boxes1, boxes2, kind)
    boxes1[0, 7], boxes2[1, 3] = torch.tensor([1e-7, 0.0, 3e-6, 2.0]), torch.tensor([0.0, 0.0, 2e6, 3e6])
    overlaps = box_iou(kernels, boxes1, boxes2, kind)
    expected = reference.box_iou(boxes1.double(), boxes2.double(), kind).float()
    torch.testing.assert_close(overlaps, expected, rtol=1e-5, atol=1e-5)
    overlaps[0, 7], overlaps[1, :, 3] = before[0, 7], before[1, :, 3]
    assert torch.equal(overlaps, before)
    gradient = torch.randn(2, 300, 9, generator=torch.Generator().manual_seed(3))
    gradients = backward(kernels, gradient, boxes1, boxes2, kind)
    for got, expected in zip(gradients, expected_gradients(gradient, boxes1, boxes2, kind), strict=True):
        torch.testing.assert_close(got, expected.float(), rtol=2e-4, atol=1e-5 * float(expected.abs().max()))
