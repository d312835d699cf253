"""IoU-like losses of pairs of boxes, decoded inside if need be, with their gradients computed in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from libra_ops import _checks, _eager, _saved_gradient

_REDUCTIONS = ("none", "sum", "mean")
_KINDS = {"iou": 0, "giou": 2, "diou": 3, "ciou": 4}  # their numbers in box_iou_math.h


def box_regression_loss(
    pred: Tensor,
    target: Tensor,
    kind: Literal["iou", "giou", "diou", "ciou"] = "iou",
    weight: Tensor | None = None,
    *,
    reduction: Literal["none", "sum", "mean"] = "none",
    references: Tensor | None = None,
    delta_stds: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """1 - overlap of each predicted box with its target, the overlap being IoU, GIoU, DIoU or CIoU.

    The overlap is `libra_ops.box_iou`'s: widths and heights are clamped at 0, so that an inverted box has no area, and
    what is divided by is at least 1e-6 px^2.

    Args:
        pred: [..., 4] float16, bfloat16, float32 or float64; xyxy boxes in pixels, or with `references` deltas
            (dx, dy, dw, dh) that move each reference onto the predicted box: the centre by (dx, dy) of the reference's
            width and height, the sides by factors e^dw and e^dh.
        target: the shape and device of `pred`, any floating dtype; xyxy boxes in pixels, also with `references`.
        kind: "iou" (0 to 1), "giou" (0 to 2; it pulls boxes that do not overlap together), "diou" (0 to 2; and their
            centres) or "ciou" (and their aspect ratios).
        weight: floating or bool, one for each box: broadcastable to `pred.shape[:-1]`; none: 1. Where it is 0, loss and
            gradients are exactly 0 even if a box is not finite (and the incoming gradient is), so a mask of real boxes
            is a weight. It is a constant: it gets no gradient.
        reduction: "none", "sum" or "mean" (the sum over the number of boxes, weighted or not).
        references: [..., 4], broadcastable to `pred`, any floating dtype; xyxy boxes in pixels (anchors, proposals).
            Constants, too. The deltas are decoded inside, so that no array of boxes is made, and the gradient is that
            with respect to the deltas; dw and dh are clipped at ln(1000 / 16), beyond which they get none.
        delta_stds: the standard deviations that (dx, dy, dw, dh) were divided by, 4 numbers > 0 within float32's range;
            none: 1. Or a floating tensor [4] on the device of `pred`: its values are not checked, and a GPU is spared
            the launches that make one of the numbers.

    Returns:
        The loss: `pred.shape[:-1]` for "none", else a scalar; float64 if `pred` is float64, else float32. Loss and
        gradients are finite for boxes of up to 1e4 px, inverted and empty ones included, but for the gradients of
        float16: rounded from float32, they are infinite beyond 65,504, which those of boxes with next to no area are. A
        box that is not finite gives NaN or a limit. The sum is deterministic and does not depend on the number of
        threads. Differentiable once with respect to pred and target, through everything, CIoU's alpha included
        (torchvision keeps it constant); in reverse mode only, and the transforms of torch.func are not supported.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; the message names it.
        NotImplementedError: an argument with a tangent of forward-mode differentiation.

    Source: Rezatofighi et al., GIoU, CVPR 2019 (also 1 - IoU); Zheng et al., Distance-IoU loss, AAAI 2020, eq. 7, 10.

    Example:
        >>> box_regression_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([0.6667])
    """
    _checks.check_floating("pred", pred)
    if pred.dim() == 0 or pred.shape[-1] != 4:
        raise ValueError(f"pred: expected shape [..., 4], got {_checks.describe(pred)}")
    _checks.check_floating("target", target)
    _checks.check_same_device("target", target, pred, "pred")
    _checks.check_shape("target", target, pred.shape, "that of pred")
    _checks.check_no_tangent("pred", pred)
    _checks.check_no_tangent("target", target)
    _checks.check_choice("kind", kind, tuple(_KINDS))
    _checks.check_choice("reduction", reduction, _REDUCTIONS)
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    if weight is not None:
        weight = _weight(weight, pred, dtype)
    if references is not None:
        references = _references(references, pred, dtype)
    if delta_stds is not None:
        if references is None:
            raise ValueError("delta_stds: expected references beside it; without them pred is boxes, not deltas")
        delta_stds = _stds(delta_stds, pred, dtype)
    target_needs_it = target.requires_grad
    with_gradient = torch.is_grad_enabled() and (pred.requires_grad or target_needs_it)
    pred = pred if pred.dtype == dtype else pred.to(dtype)
    target = target if target.dtype == dtype else target.to(dtype)
    constants = (weight, references, delta_stds, _KINDS[kind], _REDUCTIONS.index(reduction))
    if torch.compiler.is_compiling():
        return _op(pred, target, *constants, with_gradient, with_gradient and target_needs_it)[0]
    if with_gradient:
        return _BoxRegressionLoss.apply(pred, target, constants)[0]
    with _eager.below_autograd():
        return _op(pred, target, *constants, False, False)[0]


def _check_constant(name: str, value: Tensor, pred: Tensor) -> None:
    _checks.check_same_device(name, value, pred, "pred")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected a tensor without requires_grad (it is a constant); pass {name}.detach()")


def _weight(weight: Tensor, pred: Tensor, dtype: torch.dtype) -> Tensor:
    _checks.check_tensor("weight", weight)
    if weight.dtype != torch.bool:
        _checks.check_floating("weight", weight)
    _check_constant("weight", weight, pred)
    try:
        return weight.to(dtype).expand(pred.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"weight: expected a shape that broadcasts to {list(pred.shape[:-1])}, one for each box of pred, got "
            f"{_checks.describe(weight)}"
        ) from None


def _references(references: Tensor, pred: Tensor, dtype: torch.dtype) -> Tensor:
    """In a shape that pred's ends with, so that those all images share are not repeated; else in pred's own."""
    _checks.check_floating("references", references)
    _check_constant("references", references, pred)
    references = references.to(dtype)
    shape = references.shape
    if 0 < len(shape) <= pred.dim() and shape == pred.shape[pred.dim() - len(shape) :]:
        return references
    if len(shape) == 0 or shape[-1] != 4:
        raise ValueError(f"references: expected xyxy boxes of shape [..., 4], got {_checks.describe(references)}")
    try:
        return references.expand(pred.shape)
    except RuntimeError:
        raise ValueError(
            f"references: expected a shape that broadcasts to pred's {list(pred.shape)}, got "
            f"{_checks.describe(references)}"
        ) from None


def _stds(stds: Tensor | Sequence[float], pred: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(stds, Tensor):
        _checks.check_floating("delta_stds", stds)
        _check_constant("delta_stds", stds, pred)
        _checks.check_shape("delta_stds", stds, (4,), "of dx, dy, dw, dh")
        return stds if stds.dtype == dtype else stds.to(dtype)
    numbers = _checks.check_stds(stds, "a tensor or 4 numbers")
    return torch.stack([pred.new_full((), number, dtype=dtype) for number in numbers])  # no copy from the host


_op = torch.ops.libra_ops.box_regression_loss.default


@torch.library.register_fake("libra_ops::box_regression_loss")
def _(pred, target, weight, references, delta_stds, kind, reduction, with_gradient, with_target_gradient):
    loss = pred.new_empty(pred.shape[:-1] if reduction == 0 else ())
    gradients = (pred.new_empty(pred.shape if wanted else (0,)) for wanted in (with_gradient, with_target_gradient))
    return loss, *gradients


class _BoxRegressionLoss(torch.autograd.Function):
    """The op in eager mode. Its gradients are outputs, so that a second derivative finds the way to pred."""

    @staticmethod
    def forward(ctx, pred, target, constants):
        with _eager.below_autograd():
            loss, *gradients = _op(pred, target, *constants, *ctx.needs_input_grad[:2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(gradient for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False) if needed)
        )
        ctx.saved_alone = _eager.saves_alone()
        return loss, *gradients

    @staticmethod
    def backward(ctx, grad_loss, grad_gradient, grad_target_gradient):
        if grad_loss is None:
            return None, None, None
        factor = grad_loss.unsqueeze(-1) if grad_loss.dim() else grad_loss
        scaled = iter(_saved_gradient.scale_in_eager(ctx, ctx.saved_tensors, factor, "box_regression_loss"))
        return *(next(scaled) if needed else None for needed in ctx.needs_input_grad[:2]), None


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.with_gradients = inputs[-2:]
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_loss, grad_gradient, grad_target_gradient):
    # The other two are not used: these outputs serve this function alone.
    rest = (None,) * 7  # weight, references, delta_stds, kind, reduction, with_gradient, with_target_gradient
    if grad_loss is None:
        return None, None, *rest
    if any(needed and not there for needed, there in zip(ctx.needs_input_grad[:2], ctx.with_gradients, strict=True)):
        raise RuntimeError("libra_ops::box_regression_loss: a gradient needs with_gradient and with_target_gradient")
    factor = grad_loss.unsqueeze(-1) if grad_loss.dim() else grad_loss
    gradients = (
        _saved_gradient.scale(gradient, factor, "box_regression_loss") if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return *gradients, *rest


torch.library.register_autograd("libra_ops::box_regression_loss", _backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::box_regression_loss", _device, torch.float32)
