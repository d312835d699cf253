"""Sigmoid focal loss of many classes against class numbers, with its gradient computed in the forward pass."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from libra_ops import _checks, _eager, _saved_gradient

_REDUCTIONS = ("none", "sum", "mean")
_HALF_GRADIENT_SCALE = 1024  # kHalfGradientScale of sigmoid_focal_loss_math.h


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Literal["none", "sum", "mean"] = "none",
) -> Tensor:
    """Sigmoid focal loss of slots (anchors, points) whose class is known by its number.

    Each class is a question of its own: yes for the slot's label, no for the others. With p the probability of the
    right answer, the loss of a logit is -w (1 - p)^gamma ln(p), w = alpha where the answer is yes and 1 - alpha where
    it is no: confident right answers count little, however many they are.

    Args:
        logits: [..., C] float16, bfloat16, float32 or float64; C >= 0 classes. float16 and bfloat16 are read and their
            gradient is written as they are; the arithmetic between is float32's.
        labels: [...] int64 in 0..C; C, the background, is no for every class, and so is any number outside of 0..C.
        mask: [...] bool, the slots that count; none: all. Where it is False, the loss and the gradient of all C logits
            are exactly 0 even if they are not finite (and the incoming gradient is).
        alpha: weight of a slot's own class, 0 to 1; the others have 1 - alpha.
        gamma: how much less a confident right answer counts; >= 0 and below 1e30. 0 is the cross-entropy, 2 the
            fastest.
        reduction: "none", "sum" or "mean" (the sum over the number of logits, masked or not).

    Returns:
        The loss: the shape of `logits` for "none", else a scalar; float64 if `logits` is float64, else float32. Finite
        for finite logits, however large. An infinite logit costs nothing where its answer is right and infinity where
        it is wrong (NaN where its weight is 0), with the gradient of the limit; a NaN gives NaN. The sum is
        deterministic and does not depend on the number of threads. Differentiable once with respect to logits, in
        reverse mode only; the transforms of torch.func are not supported.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        NotImplementedError: logits with a tangent of forward-mode differentiation.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5; the values of torchvision's
    sigmoid_focal_loss with one-hot targets, where that is finite.

    Example:
        >>> sigmoid_focal_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
        tensor([[0.0433, 1.2376]])
    """
    _checks.check_floating("logits", logits)
    if logits.dim() == 0:
        raise ValueError(f"logits: expected shape [..., C], got {_checks.describe(logits)}")
    slots = logits.shape[:-1]
    _checks.check_dtype("labels", labels, torch.int64)
    _checks.check_same_device("labels", labels, logits, "logits")
    _checks.check_shape("labels", labels, slots, "that of logits without its last dimension")
    if mask is not None:
        _checks.check_dtype("mask", mask, torch.bool)
        _checks.check_same_device("mask", mask, logits, "logits")
        _checks.check_shape("mask", mask, slots, "that of logits without its last dimension")
    _checks.check_no_tangent("logits", logits)
    alpha = _checks.check_number("alpha", alpha, 0, 1)
    gamma = _checks.check_number("gamma", gamma, 0, 9.9e29)
    _checks.check_choice("reduction", reduction, _REDUCTIONS)
    constants = (alpha, gamma, _REDUCTIONS.index(reduction))
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    if torch.compiler.is_compiling():
        return _op(logits, labels, mask, *constants, with_gradient)[0]
    if with_gradient:
        return _SigmoidFocalLoss.apply(logits, labels, mask, constants)[0]
    with _eager.below_autograd():
        return _op(logits, labels, mask, *constants, False)[0]


_op = torch.ops.libra_ops.sigmoid_focal_loss.default


@torch.library.register_fake("libra_ops::sigmoid_focal_loss")
def _(logits, labels, mask, alpha, gamma, reduction, with_gradient):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = torch.empty(logits.shape if reduction == 0 else (), dtype=dtype, device=logits.device)
    gradient = torch.empty(logits.shape if with_gradient else (0,), dtype=logits.dtype, device=logits.device)
    return loss, gradient


def _factor(grad_loss: Tensor, gradient: Tensor, reduction: int) -> Tensor:
    """What the saved gradient is multiplied by; that of float16 is saved larger than it is."""
    if gradient.dtype != torch.float16:
        return grad_loss
    count = max(gradient.numel(), 1) if _REDUCTIONS[reduction] == "mean" else 1
    return grad_loss / (_HALF_GRADIENT_SCALE * count)


class _SigmoidFocalLoss(torch.autograd.Function):
    """The op in eager mode. Its gradient is an output, so that a second derivative finds the way to logits."""

    @staticmethod
    def forward(ctx, logits, labels, mask, constants):
        with _eager.below_autograd():
            loss, gradient = _op(logits, labels, mask, *constants, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient)
        ctx.saved_alone = _eager.saves_alone()
        ctx.reduction = constants[-1]
        return loss, gradient

    @staticmethod
    def backward(ctx, grad_loss, grad_gradient):
        if grad_loss is None:
            return None, None, None, None
        gradients = ctx.saved_tensors
        factor = _factor(grad_loss, *gradients, ctx.reduction)
        return *_saved_gradient.scale_in_eager(ctx, gradients, factor, "sigmoid_focal_loss"), None, None, None


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.reduction, ctx.with_gradient = inputs[-2:]
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_loss, grad_gradient):
    # grad_gradient is not used: the second output serves this function alone.
    rest = (None,) * 6  # labels, mask, alpha, gamma, reduction, with_gradient
    if grad_loss is None:
        return None, *rest
    if not ctx.with_gradient:
        raise RuntimeError("libra_ops::sigmoid_focal_loss: a gradient needs with_gradient=True")
    (gradient,) = ctx.saved_tensors  # the caller of the op has it too: it stays as it is
    factor = _factor(grad_loss, gradient, ctx.reduction)
    return _saved_gradient.scale(gradient, factor, "sigmoid_focal_loss"), *rest


torch.library.register_autograd("libra_ops::sigmoid_focal_loss", _backward, setup_context=_setup_context)
