"""Balanced L1 loss: the regression loss of Libra R-CNN, with its gradient computed in the forward pass."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from libra_ops import _checks, _eager, _saved_gradient

_REDUCTIONS = ("none", "sum", "mean")
_FORMULAS = ("paper", "published")


def balanced_l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1.0,
    formula: Literal["paper", "published"] = "paper",
    reduction: Literal["none", "sum", "mean"] = "none",
) -> Tensor:
    """Balanced L1 loss of encoded boxes, element by element.

    With x = pred - target and b = e^(gamma/alpha) - 1, the gradient is alpha ln(b|x|/beta + 1) for |x| < beta and gamma
    beyond: small errors weigh more, and outliers less, than with smooth L1.

    Args:
        pred: [..., 4] float16, bfloat16, float32 or float64; encoded boxes (deltas, no unit). Any shape is accepted.
        target: the shape and device of `pred`, any floating dtype.
        weight: broadcastable to `pred`; none: 1. Where it is 0, loss and gradient are exactly 0 even if `pred` or
            `target` is not finite (and the incoming gradient is), so a mask of real boxes is a weight. It is a
            constant: it gets no gradient.
        alpha: promotes the gradient of small errors; > 0.
        gamma: the largest gradient; > 0 and at most 80 alpha.
        beta: |x| from which the loss is linear; > 0, at least b / 3e38 and 1 / 3e38.
        formula: "paper" (the gradient is continuous for every beta) or "published" (mmdetection's generalisation to
            beta, which is discontinuous at 0 and beta unless beta is 1). At beta = 1 they are the same.
        reduction: "none", "sum" or "mean" (the sum over the number of elements, weighted or not).

    Returns:
        The loss: `pred`'s shape for "none", else a scalar; float64 if `pred` is float64, else float32. The sum is
        deterministic and does not depend on the number of threads. Differentiable once with respect to pred and target,
        in reverse mode only; the transforms of torch.func are not supported.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        NotImplementedError: an argument with a tangent of forward-mode differentiation.

    Source: Pang et al., Libra R-CNN, CVPR 2019, eq. 6-8; "published": mmdetection's BalancedL1Loss.

    Example:
        >>> balanced_l1_loss(torch.tensor([0.5]), torch.tensor([0.0]))
        tensor([0.4006])
    """
    _checks.check_floating("pred", pred)
    _checks.check_floating("target", target)
    _checks.check_same_device("target", target, pred, "pred")
    _checks.check_shape("target", target, pred.shape, "that of pred")
    _checks.check_no_tangent("pred", pred)
    _checks.check_no_tangent("target", target)
    alpha = _checks.check_number("alpha", alpha, 0, open_low=True)
    gamma = _checks.check_number("gamma", gamma, 0, open_low=True)
    beta = _checks.check_number("beta", beta, 0, open_low=True)
    if gamma / alpha > 80:  # e^80 is where b stops being a float32
        raise ValueError(f"gamma: expected at most 80 times alpha, got gamma {gamma:g} and alpha {alpha:g}")
    b = math.e ** (gamma / alpha)
    if b >= 3e38 * beta or 1 >= 3e38 * beta:
        raise ValueError(
            f"beta: expected at least {max(b, 1.0) / 3e38:g} with alpha {alpha:g} and gamma {gamma:g}, got {beta:g}"
        )
    _checks.check_choice("formula", formula, _FORMULAS)
    _checks.check_choice("reduction", reduction, _REDUCTIONS)
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    if weight is not None:
        _checks.check_floating("weight", weight)
        _checks.check_same_device("weight", weight, pred, "pred")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "weight: expected a tensor without requires_grad (it is a constant here); pass weight.detach()"
            )
        try:
            weight = weight.to(dtype).expand(pred.shape)
        except RuntimeError:
            raise ValueError(
                f"weight: expected a shape that broadcasts to pred's {list(pred.shape)}, got "
                f"{_checks.describe(weight)}; for one weight per box pass weight.unsqueeze(-1)"
            ) from None
    with_gradient = torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad)
    pred = pred if pred.dtype == dtype else pred.to(dtype)
    target = target if target.dtype == dtype else target.to(dtype)
    constants = (alpha, gamma, beta, formula == "published", _REDUCTIONS.index(reduction))
    if torch.compiler.is_compiling():
        return _op(pred, target, weight, *constants, with_gradient)[0]
    if with_gradient:
        return _BalancedL1Loss.apply(pred, target, weight, constants)[0]
    with _eager.below_autograd():
        return _op(pred, target, weight, *constants, False)[0]


_op = torch.ops.libra_ops.balanced_l1_loss.default


@torch.library.register_fake("libra_ops::balanced_l1_loss")
def _(pred, target, weight, alpha, gamma, beta, published, reduction, with_gradient):
    loss = torch.empty(pred.shape, dtype=pred.dtype, device=pred.device) if reduction == 0 else pred.new_empty(())
    gradient = torch.empty(pred.shape if with_gradient else (0,), dtype=pred.dtype, device=pred.device)
    return loss, gradient


class _BalancedL1Loss(torch.autograd.Function):
    """The op in eager mode. Its gradient is an output, so that a second derivative finds the way to pred."""

    @staticmethod
    def forward(ctx, pred, target, weight, constants):
        with _eager.below_autograd():
            loss, gradient = _op(pred, target, weight, *constants, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient)
        ctx.saved_alone = _eager.saves_alone()
        return loss, gradient

    @staticmethod
    def backward(ctx, grad_loss, grad_gradient):
        if grad_loss is None:
            return None, None, None, None
        (grad_pred,) = _saved_gradient.scale_in_eager(ctx, ctx.saved_tensors, grad_loss, "balanced_l1_loss")
        return grad_pred, -grad_pred if ctx.needs_input_grad[1] else None, None, None


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.with_gradient = inputs[-1]
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_loss, grad_gradient):
    # grad_gradient is not used: the second output serves this function alone.
    rest = (None,) * 7  # weight, alpha, gamma, beta, published, reduction, with_gradient
    if grad_loss is None:
        return None, None, *rest
    if not ctx.with_gradient:
        raise RuntimeError("libra_ops::balanced_l1_loss: a gradient needs with_gradient=True")
    # The caller of the op has `gradient` too: it stays as it is.
    grad_pred = _saved_gradient.scale(*ctx.saved_tensors, grad_loss, "balanced_l1_loss")
    return grad_pred, -grad_pred if ctx.needs_input_grad[1] else None, *rest


torch.library.register_autograd("libra_ops::balanced_l1_loss", _backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::balanced_l1_loss", _device, torch.float32)
