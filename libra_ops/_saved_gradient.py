"""The backward of ops whose forward computes the gradient of the loss and saves it: it has only to be scaled."""

from __future__ import annotations

import torch
from torch import Tensor

from libra_ops import _eager


class _DifferentiableOnce(torch.autograd.Function):
    """The gradient as it is; a second derivative that runs through it is an error."""

    @staticmethod
    def forward(ctx, gradient, op):
        ctx.op = op
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(f"{ctx.op}: differentiable once only; a second derivative was asked for")


def scale(gradient: Tensor, factor: Tensor, op: str) -> Tensor:
    """gradient times factor, in a new tensor of the gradient's dtype: the product is the wider one's, rounded once."""
    if torch.is_grad_enabled():  # create_graph=True
        gradient = _DifferentiableOnce.apply(gradient, op)
    if gradient.dtype == factor.dtype:
        return gradient * factor
    if factor.dim() == 0:  # torch rounds a scalar to the other's dtype first, where a mean's may be 0
        factor = factor.view((1,) * gradient.dim())
    if _eager.may_overwrite(factor):  # one pass, without a wider array between
        return torch.mul(gradient, factor, out=torch.empty_like(gradient))
    return (gradient * factor).to(gradient.dtype)


def scale_in_eager(ctx, gradients: tuple[Tensor, ...], factor: Tensor, op: str) -> list[Tensor]:
    """In the backward of an autograd.Function whose forward set `ctx.saved_alone`: where they lie, if nobody minds."""
    if not (ctx.saved_alone and _eager.may_overwrite_saved(factor)):
        return [scale(gradient, factor, op) for gradient in gradients]
    own = [gradient.detach() for gradient in gradients]
    if factor.dim() > 0 or factor.item() != 1:  # 1 in loss.backward()
        for gradient in own:
            gradient.mul_(factor)
    return own
