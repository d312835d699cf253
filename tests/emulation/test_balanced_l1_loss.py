"""The CUDA kernels of balanced_l1_loss, run on the CPU in every order of threads, against reference.py."""

import ctypes

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

REDUCTIONS = ("none", "sum", "mean")
PUBLISHED = {"alpha": 0.5, "gamma": 1.5, "beta": 0.11, "formula": "published"}
PAPER = {"alpha": 0.5, "gamma": 1.5, "beta": 1.0, "formula": "paper"}


def balanced_l1(
    kernels: Kernels,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    parameters: dict,
    reduction: str,
    ticket: int = 3,
    per_box: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient as the GPU's wrapper returns them; all memory the kernels write starts as poison."""
    n = pred.numel()
    each = reduction == "none"
    count = 1 if each else blocks(kernels, n, pred.element_size())
    loss = empty(*(pred.shape if each else ()), dtype=pred.dtype)
    gradient = empty(*pred.shape, dtype=pred.dtype)
    partial = out(empty(count + 1, dtype=torch.float64)) if count > 1 else None
    kernels.run(
        f"run_balanced_l1_loss_{'float' if pred.dtype == torch.float32 else 'double'}",
        *(pred, target, weight, per_box, out(loss), out(gradient), partial, ticket, n),
        *(parameters["alpha"], parameters["gamma"], parameters["beta"], parameters["formula"] == "published"),
        REDUCTIONS.index(reduction),
    )
    return loss, gradient


def blocks(kernels: Kernels, n: int, bytes_per_element: int) -> int:
    function = kernels.library.balanced_l1_blocks
    function.restype = ctypes.c_int64
    return function(ctypes.c_int64(n), ctypes.c_int64(bytes_per_element))


def expected(pred: Tensor, target: Tensor, weight: Tensor | None, parameters: dict, reduction: str):
    pred = pred.double().requires_grad_()
    weight = None if weight is None else weight.double()
    loss = reference.balanced_l1_loss(pred, target.double(), weight, **parameters, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    return loss.detach(), gradient


def errors(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    pred = torch.randn(n, 4, generator=generator, dtype=dtype) * 2
    target = torch.randn(n, 4, generator=generator, dtype=dtype)
    target[0] = pred[0]  # zero error: no gradient
    return pred, target


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1000])  # 4 n elements: below, at and beyond what one block takes
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("parameters", [PAPER, PUBLISHED], ids=["paper", "published"])
def test_agrees_with_the_reference(emulate, n, reduction, parameters):
    for dtype in (torch.float32, torch.float64):
        pred, target = errors(n, dtype)
        loss, gradient = balanced_l1(emulate("balanced_l1_loss"), pred, target, None, parameters, reduction)
        loss_expected, gradient_expected = expected(pred, target, None, parameters, reduction)
        torch.testing.assert_close(loss, loss_expected.to(dtype))
        torch.testing.assert_close(gradient, gradient_expected.to(dtype))


@pytest.mark.parametrize("parameters", [PAPER, PUBLISHED], ids=["paper", "published"])
def test_small_errors_are_exact(emulate, parameters):
    target = torch.zeros(50, 4)
    pred = torch.logspace(-12, -1, 200).view(50, 4)
    loss, _ = balanced_l1(emulate("balanced_l1_loss"), pred, target, None, parameters, "none")
    double, _ = balanced_l1(emulate("balanced_l1_loss"), pred.double(), target.double(), None, parameters, "none")
    torch.testing.assert_close(loss.double(), double, rtol=2e-5, atol=0)
    torch.testing.assert_close(double, expected(pred, target, None, parameters, "none")[0], rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_elements_count_exactly_nothing(emulate, reduction):
    pred, target = errors(70, torch.float32)
    weight = torch.rand(70, 4, generator=torch.Generator().manual_seed(5))
    weight[::3] = 0
    clean = expected(pred, target, weight, PAPER, reduction)
    pred[::3], target[3::6] = float("nan"), float("inf")
    loss, gradient = balanced_l1(emulate("balanced_l1_loss"), pred, target, weight, PAPER, reduction)
    torch.testing.assert_close(loss, clean[0].float())
    torch.testing.assert_close(gradient, clean[1].float())
    assert (gradient[::3] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_memory_at_any_address(emulate, reduction):
    """The emulation's memory ends at a page, so 8,001 numbers do not begin at a multiple of 16 bytes."""
    for n in (8_001, 262_145):  # with one group of four in flight and with two
        pred, target = (tensor.flatten()[:n].clone() for tensor in errors(n // 4 + 1, torch.float32))
        weight = torch.rand(n, generator=torch.Generator().manual_seed(5))
        loss, gradient = balanced_l1(emulate("balanced_l1_loss"), pred, target, weight, PAPER, reduction)
        loss_expected, gradient_expected = expected(pred, target, weight, PAPER, reduction)
        torch.testing.assert_close(loss, loss_expected.float())
        torch.testing.assert_close(gradient, gradient_expected.float())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_weight_for_each_box(emulate, reduction):
    pred, target = errors(1000, torch.float32)
    weight = torch.rand(1000, 1, generator=torch.Generator().manual_seed(5))
    weight[::3] = 0
    pred[::3] = float("nan")
    kernels = emulate("balanced_l1_loss")
    loss, gradient = balanced_l1(kernels, pred, target, weight, PAPER, reduction, per_box=True)
    spread = weight.expand(-1, 4).contiguous()
    for got, wanted in zip((loss, gradient), balanced_l1(kernels, pred, target, spread, PAPER, reduction), strict=True):
        assert torch.equal(got, wanted)


def test_many_blocks_and_the_grid_stride(emulate):
    n = 2_100_000  # 8,400,000 elements: more than 4096 blocks with two groups of four for each of 256 threads
    pred, target = errors(n, torch.float32)
    loss, gradient = balanced_l1(emulate("balanced_l1_loss"), pred, target, None, PAPER, "sum")
    loss_expected, gradient_expected = expected(pred, target, None, PAPER, "sum")
    torch.testing.assert_close(loss, loss_expected.float())
    torch.testing.assert_close(gradient, gradient_expected.float())


@pytest.mark.parametrize("ticket", [0, 3, 16_383, -1])
def test_every_launch_leaves_its_counter_at_zero(emulate, ticket):
    """As a replayed graph needs it: nothing is reset between the launches."""
    pred, target = errors(3000, torch.float32)
    kernels = emulate("balanced_l1_loss")
    sums = {balanced_l1(kernels, pred, target, None, PAPER, "sum", ticket)[0].item() for _ in range(3)}
    assert len(sums) == 1
    torch.testing.assert_close(sums.pop(), expected(pred, target, None, PAPER, "sum")[0].item(), rtol=1e-6, atol=0)


def test_sum_is_the_same_in_every_order():
    pred, target = errors(3000, torch.float32)
    driver = FOLDER / "balanced_l1_loss_driver.cpp"
    runs = [load(driver, order, seed) for order in ORDERS for seed in (1, 2)]
    sums = {balanced_l1(kernels, pred, target, None, PAPER, "mean")[0].item() for kernels in runs}
    assert len(sums) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_elements(emulate, reduction):
    pred = torch.empty(0, 4)
    loss, gradient = balanced_l1(emulate("balanced_l1_loss"), pred, pred, None, PAPER, reduction)
    torch.testing.assert_close(loss, expected(pred, pred, None, PAPER, reduction)[0].float(), equal_nan=True)
    assert gradient.shape == (0, 4)
