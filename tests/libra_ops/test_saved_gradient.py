"""A saved gradient is multiplied in the wider dtype of the two and rounded once, whichever way the product goes."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from libra_ops import _eager, _saved_gradient, sigmoid_focal_loss

HALVES = (torch.float16, torch.bfloat16)


class Products(TorchFunctionMode):
    """The dtypes that torch multiplies in. On CUDA it rounds both factors to them first, on the CPU not always."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("mul", "__mul__", "multiply"):
            self.dtypes.append(torch.result_type(*args[:2]))
        return function(*args, **(kwargs or {}))


def saved(dtype: torch.dtype) -> Tensor:
    """[99, 7] as sigmoid_focal_loss saves it for a mean: 1024 times as large as it is."""
    return (1024 * torch.randn(99, 7, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("plain", [True, False], ids=["written", "traced"])
@pytest.mark.parametrize("factor", [2.0**-37, 3e-9, 0.7, 900.0])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_factor_of_no_dimension_is_not_rounded(dtype, factor, plain, monkeypatch):
    """2^-37 and 3e-9 are 0 in float16, though their products with a gradient are not all."""
    gradient, factor = saved(dtype), torch.tensor(factor)
    if not plain:
        monkeypatch.setattr(_eager, "may_overwrite", lambda grad: False)
    with torch.no_grad(), Products() as products:
        found = _saved_gradient.scale(gradient, factor, "op")
    assert products.dtypes == [torch.float32]
    assert found.dtype == dtype and found.data_ptr() != gradient.data_ptr()
    assert torch.equal(found, (gradient.float() * factor).to(dtype))


def test_a_factor_of_each_element_is_not_rounded_either():
    gradient, factors = saved(torch.float16), torch.linspace(1e-9, 1e-3, 99)[:, None]
    with torch.no_grad(), Products() as products:
        found = _saved_gradient.scale(gradient, factors, "op")
    assert products.dtypes == [torch.float32]
    assert torch.equal(found, (gradient.float() * factors).half())


@pytest.mark.parametrize("shape", [(1, 1), (99, 7), (0, 7)], ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_in_place_the_product_is_the_same(dtype, shape):
    class Saved:
        saved_alone = True

    gradient, factor = saved(dtype)[: shape[0], : shape[1]].clone(), torch.tensor(3e-9)
    expected = (gradient.float() * factor).to(dtype)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(_eager, "may_overwrite_saved", lambda grad: True)
        (found,) = _saved_gradient.scale_in_eager(Saved, (gradient,), factor, "op")
    assert found.data_ptr() == gradient.data_ptr() and torch.equal(found, expected)


def test_float32_is_multiplied_as_it_is():
    gradient, factor = saved(torch.float32), torch.tensor(3e-9)
    with torch.no_grad(), Products() as products:
        found = _saved_gradient.scale(gradient, factor, "op")
    assert products.dtypes == [torch.float32] and torch.equal(found, gradient * factor)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_batch_of_incoming_gradients(dtype):
    logits = saved(dtype).div(512).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.arange(99) % 8, reduction="mean")
    factors = torch.tensor([1.0, 1e-3, 1e4])
    (found,) = torch.autograd.grad(loss, logits, factors, is_grads_batched=True, retain_graph=True)
    for got, factor in zip(found, factors, strict=True):
        assert torch.equal(got, torch.autograd.grad(loss, logits, factor, retain_graph=True)[0])


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_cuda_of_many_logits(reduction, dtype, compiled):
    """1 / (1024 * 120,000) is 0 in float16. The loss is scaled, as a GradScaler does, so that gradients are not."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1500, 80, generator=generator) * 3).to(dtype)
    labels = torch.randint(0, 81, (1500,), generator=generator)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels, reduction=reduction)

    torch._dynamo.reset()
    of_half = torch.compile(loss, fullgraph=True) if compiled else loss
    scale = 65536.0 if reduction == "mean" else 1.0
    leaf, wide = logits.cuda().requires_grad_(), logits.float().requires_grad_()
    (found,) = torch.autograd.grad(of_half(leaf, labels.cuda()), leaf, torch.tensor(scale, device="cuda"))
    (expected,) = torch.autograd.grad(loss(wide, labels), wide, torch.tensor(scale))
    assert found.any()
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}  # what is saved and the product are rounded once each
    torch.testing.assert_close(found.cpu().float(), expected.to(dtype).float(), **close)
