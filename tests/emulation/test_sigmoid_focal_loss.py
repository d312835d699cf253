"""The CUDA kernels of sigmoid_focal_loss, run on the CPU in every order of threads, against reference.py."""

from ctypes import c_int64

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

REDUCTIONS = ("none", "sum", "mean")
CLOSE = {
    torch.float32: {"rtol": 5e-6, "atol": 1e-10},
    torch.float64: {"rtol": 1e-9, "atol": 1e-14},
    torch.float16: {"rtol": 2e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-6},
}


def focal(
    kernels: Kernels, logits: Tensor, labels: Tensor, mask: Tensor | None, gamma: float, reduction: str, ticket: int = 3
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of [N, C] as the GPU's wrapper returns them; all memory the kernels write starts as poison."""
    each, n = reduction == "none", logits.numel()
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    count = 1 if each else kernels.library.focal_blocks(c_int64(n), c_int64(logits.element_size()))
    loss, gradient = empty(*(logits.shape if each else ()), dtype=dtype), empty(*logits.shape, dtype=logits.dtype)
    partial = out(empty(count + 1, dtype=torch.float64)) if count > 1 else None
    kernels.run(
        f"run_sigmoid_focal_loss_{str(logits.dtype).removeprefix('torch.')}",
        *(logits, labels, mask, out(loss), out(gradient), partial, ticket, n, logits.shape[1]),
        *(0.25, gamma, REDUCTIONS.index(reduction)),
    )
    if logits.dtype == torch.float16:  # kept larger until the backward pass
        gradient = gradient.double() / (1024 * (n if reduction == "mean" else 1))
    return loss, gradient


def expected(logits: Tensor, labels: Tensor, mask: Tensor | None, gamma: float, reduction: str):
    logits = logits.double().requires_grad_()
    loss = reference.sigmoid_focal_loss(logits, labels, mask, gamma=gamma, reduction=reduction)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def slots(n: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    logits = (torch.randn(n, classes, generator=generator, dtype=torch.float64) * 4).to(dtype)
    labels = torch.randint(-1, classes + 2, (n,), generator=generator)
    return logits, labels, torch.rand(n, generator=generator) < 0.8


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1500, 1), (333, 3), (40, 80), (9, 257), (128, 16)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_agrees_with_the_reference(emulate, n, classes, reduction, gamma):
    for dtype, close in CLOSE.items():
        logits, labels, mask = slots(n, classes, dtype)
        loss, gradient = focal(emulate("sigmoid_focal_loss"), logits, labels, mask, gamma, reduction)
        wanted_loss, wanted_gradient = expected(logits, labels, mask, gamma, reduction)
        of_loss = CLOSE[torch.float64 if dtype == torch.float64 else torch.float32]
        torch.testing.assert_close(loss.double(), wanted_loss, **of_loss)
        torch.testing.assert_close(gradient.double(), wanted_gradient, **close)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_slots_count_exactly_nothing(emulate, reduction):
    logits, labels, mask = slots(70, 6)
    clean = expected(logits, labels, mask, 2.0, reduction)
    logits[~mask] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, 0, 1])
    loss, gradient = focal(emulate("sigmoid_focal_loss"), logits, labels, mask, 2.0, reduction)
    torch.testing.assert_close(loss.double(), clean[0], **CLOSE[torch.float32])
    assert not gradient[~mask].any()
    everywhere = focal(emulate("sigmoid_focal_loss"), logits[mask], labels[mask], None, 2.0, "none")[1]
    assert everywhere.isfinite().all()


def test_the_grid_stride_passes_over_rows(emulate):
    """More than 4096 blocks of 1024 elements, in rows that no step is a multiple of."""
    logits, labels, mask = slots(52_000, 83)
    loss, gradient = focal(emulate("sigmoid_focal_loss"), logits, labels, mask, 2.0, "sum")
    wanted_loss, wanted_gradient = expected(logits, labels, mask, 2.0, "sum")
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), wanted_gradient, **CLOSE[torch.float32])


@pytest.mark.parametrize("ticket", [0, 16_383, -1])
def test_every_launch_leaves_its_counter_at_zero(emulate, ticket):
    logits, labels, mask = slots(900, 7)
    kernels = emulate("sigmoid_focal_loss")
    sums = {focal(kernels, logits, labels, mask, 2.0, "sum", ticket)[0].item() for _ in range(3)}
    assert len(sums) == 1


def test_sum_is_the_same_in_every_order():
    logits, labels, mask = slots(900, 7)
    driver = FOLDER / "sigmoid_focal_loss_driver.cpp"
    runs = [load(driver, order, seed) for order in ORDERS for seed in (1, 2)]
    assert len({focal(kernels, logits, labels, mask, 2.0, "mean")[0].item() for kernels in runs}) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_elements(emulate, reduction, shape):
    labels = torch.zeros(shape[0], dtype=torch.int64)
    loss, _ = focal(emulate("sigmoid_focal_loss"), torch.empty(shape), labels, None, 2.0, reduction)
    wanted = expected(torch.empty(shape), labels, None, 2.0, reduction)[0]
    torch.testing.assert_close(loss.double(), wanted, equal_nan=True)
