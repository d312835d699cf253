"""The short ways of eager mode: a saved gradient is scaled in place only where nobody else can see it."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

from libra_ops import balanced_l1_loss


@pytest.fixture
def pred() -> torch.Tensor:
    return torch.tensor([0.2, -0.7, 3.0], requires_grad=True)


def loss_of(pred: torch.Tensor) -> torch.Tensor:
    return balanced_l1_loss(pred, torch.zeros_like(pred), reduction="sum")


def test_what_a_hook_keeps_stays_as_it_is(pred):
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = 2 * loss_of(pred)
    (gradient,) = (tensor for tensor in kept if tensor.shape == pred.shape)
    before = gradient.clone()
    loss.backward()
    assert torch.equal(gradient, before)
    assert torch.equal(pred.grad, 2 * before)
    assert pred.grad.data_ptr() != gradient.data_ptr()


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_gradients_add_up_over_two_losses(pred, factor):
    (once,) = torch.autograd.grad(loss_of(pred), pred)
    (factor * loss_of(pred)).backward()
    first = pred.grad.clone()
    (factor * loss_of(pred)).backward()
    assert torch.equal(first, factor * once)
    assert torch.equal(pred.grad, 2 * factor * once)


def test_the_backward_can_be_traced(pred):
    def gradient(pred: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(3 * loss_of(pred), pred)[0]

    traced = make_fx(gradient)(pred)
    assert torch.equal(traced(pred), gradient(pred))


def test_gradients_may_be_accumulated_in_another_order(pred):
    """Two losses on one graph node: what one backward returned is not changed by the next."""
    losses = [loss_of(pred), loss_of(2 * pred)]
    gradients = [torch.autograd.grad(0.5 * loss, pred, retain_graph=True)[0] for loss in losses]
    copies = [gradient.clone() for gradient in gradients]
    for loss in losses:
        loss.backward()
    assert all(torch.equal(gradient, copy) for gradient, copy in zip(gradients, copies, strict=True))
    assert torch.equal(pred.grad, 2 * sum(copies))
