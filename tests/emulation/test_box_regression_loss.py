"""The CUDA kernels of box_regression_loss, run on the CPU in every order of threads, against reference.py."""

from ctypes import c_int64

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

REDUCTIONS = ("none", "sum", "mean")
KINDS = {"iou": 0, "giou": 2, "diou": 3, "ciou": 4}
CLOSE = {torch.float32: {"rtol": 2e-4, "atol": 2e-6}, torch.float64: {"rtol": 1e-9, "atol": 1e-12}}


def run(
    kernels: Kernels,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    kind: str,
    reduction: str,
    ticket: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients as the GPU's wrapper returns them; all memory the kernels write starts as poison."""
    pred, target, weight, references, stds = inputs
    each, n = reduction == "none", len(pred)
    count = 1 if each else kernels.library.box_loss_blocks(c_int64(n))
    loss = empty(*((n,) if each else ()), dtype=pred.dtype)
    gradients = [empty(n, 4, dtype=pred.dtype) for _ in range(2)]
    partial = out(empty(count + 1, dtype=torch.float64)) if count > 1 else None
    kernels.run(
        f"run_box_regression_loss_{str(pred.dtype).removeprefix('torch.')}",
        *(pred, target, weight, references, 0 if references is None else len(references), stds, out(loss)),
        *(*map(out, gradients), partial, ticket, n, KINDS[kind], REDUCTIONS.index(reduction)),
    )
    return loss, *gradients


def expected(inputs: tuple, kind: str, reduction: str) -> tuple[Tensor, ...]:
    pred, target, weight, references, stds = (None if x is None else x.double() for x in inputs)
    leaves = [pred.requires_grad_(), target.requires_grad_()]
    if references is not None:
        references = references.repeat(len(pred) // len(references), 1)
    loss = reference.box_regression_loss(*leaves, kind, weight, reduction, references, stds)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


def boxes(n: int, seed: int, dtype: torch.dtype) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1).to(dtype)


def pairs(n: int, decoded: bool, dtype: torch.dtype = torch.float32) -> tuple:
    weight = torch.rand(n, generator=torch.Generator().manual_seed(n)).to(dtype)
    weight[::3] = 0
    if not decoded:
        return boxes(n, 0, dtype), boxes(n, 1, dtype), weight, None, None
    deltas = torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 3
    stds = torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=dtype)
    return deltas.to(dtype), boxes(n, 1, dtype), weight, boxes(n // 3, 2, dtype), stds


@pytest.mark.parametrize("n", [3, 255, 600])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(emulate, n, reduction, decoded, kind):
    for dtype in CLOSE:
        inputs = pairs(n, decoded, dtype)
        for got, wanted in zip(
            run(emulate("box_regression_loss"), inputs, kind, reduction), expected(inputs, kind, reduction), strict=True
        ):
            torch.testing.assert_close(got.double(), wanted, **CLOSE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_masked_pairs_count_exactly_nothing(emulate, kind):
    inputs = pairs(90, True)
    clean = expected(inputs, kind, "sum")
    pred, target, weight, _, _ = inputs
    pred[weight == 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    target[weight == 0] = float("nan")
    for got, wanted in zip(run(emulate("box_regression_loss"), inputs, kind, "sum"), clean, strict=True):
        torch.testing.assert_close(got.double(), wanted, **CLOSE[torch.float32])
        assert got.dim() == 0 or not got[weight == 0].any()


def test_the_grid_stride_and_huge_boxes(emulate):
    n = 4096 * 256 + 300
    pred, target = boxes(n, 0, torch.float32), boxes(n, 1, torch.float32)
    inputs = (pred, target, None, None, None)
    pred[7], target[7] = torch.tensor([0, 0, 1e25, 1e25]), torch.tensor([0, 0, 2e25, 1e25])
    for got, wanted in zip(
        run(emulate("box_regression_loss"), inputs, "giou", "sum"), expected(inputs, "giou", "sum"), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, **CLOSE[torch.float32])


@pytest.mark.parametrize("ticket", [0, 16_383, -1])
def test_every_launch_leaves_its_counter_at_zero(emulate, ticket):
    kernels = emulate("box_regression_loss")
    assert len({run(kernels, pairs(900, True), "giou", "sum", ticket)[0].item() for _ in range(3)}) == 1


def test_sum_is_the_same_in_every_order():
    driver = FOLDER / "box_regression_loss_driver.cpp"
    runs = [load(driver, order, seed) for order in ORDERS for seed in (1, 2)]
    assert len({run(kernels, pairs(900, True), "ciou", "mean")[0].item() for kernels in runs}) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_boxes(emulate, reduction):
    empty_boxes = torch.empty(0, 4)
    loss = run(emulate("box_regression_loss"), (empty_boxes, empty_boxes, None, None, None), "iou", reduction)[0]
    assert loss.numel() == 0 if reduction == "none" else loss.isnan() if reduction == "mean" else loss == 0
