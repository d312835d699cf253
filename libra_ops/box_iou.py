"""Overlap of all pairs of boxes: IoU, IoF, GIoU, DIoU and CIoU, with their gradients."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from libra_ops import _checks, _eager

_KINDS = ("iou", "iof", "giou", "diou", "ciou")


def box_iou(boxes1: Tensor, boxes2: Tensor, kind: Literal["iou", "iof", "giou", "diou", "ciou"] = "iou") -> Tensor:
    """Overlap of every box of `boxes1` with every box of `boxes2`.

    Widths and heights are clamped at 0, so a box without extent, or an inverted one, has no area and an IoU of 0. What
    is divided by is at least 1e-6 px^2.

    Args:
        boxes1: [..., N, 4] float16, bfloat16, float32 or float64; xyxy in pixels.
        boxes2: [..., M, 4], likewise; the leading dimensions broadcast with those of `boxes1`.
        kind: "iou" intersection over union; "iof" intersection over the area of the box of `boxes1`; "giou" IoU less
            the share of the hull that neither box covers; "diou" IoU less the squared distance of the centres over that
            of the hull's corners; "ciou" diou less alpha v, v being how much the aspect ratios differ. "iou" and "iof"
            are in [0, 1], "giou" and "diou" in [-1, 1] unless a box is inverted.

    Returns:
        [..., N, M]; float64 if one of the boxes is float64, else float32. Boxes that are not inverted give finite
        results: in float32 of any finite size, in float64 with coordinates up to 1e150. (The centres of inverted ones
        can be so far apart, beside their hull, that "diou" and "ciou" are -inf.) A NaN in a box gives NaN in all its
        pairs; an infinite coordinate gives the limit, or NaN where there is none.

    Differentiable once with respect to both, through everything, CIoU's alpha included (torchvision keeps it constant);
    in reverse mode only, and the transforms of torch.func are not supported.
    The gradient is deterministic and does not depend on the number of threads. Where the incoming gradient is 0, a pair
    adds exactly 0 to it, even if its boxes are not finite.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; the message names it.
        NotImplementedError: boxes with a tangent of forward-mode differentiation.

    Source: Rezatofighi et al., GIoU, CVPR 2019, eq. 3; Zheng et al., Distance-IoU loss, AAAI 2020, eq. 7 and 10; the
    clamp is that of mmdetection's bbox_overlaps.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0]]))
        tensor([[0.3333, 1.0000]])
    """
    _checks.check_boxes("boxes1", boxes1, "[..., N, 4]")
    _checks.check_boxes("boxes2", boxes2, "[..., M, 4]")
    _checks.check_same_device("boxes2", boxes2, boxes1, "boxes1")
    _checks.check_no_tangent("boxes1", boxes1)
    _checks.check_no_tangent("boxes2", boxes2)
    _checks.check_choice("kind", kind, _KINDS)
    try:
        leading = boxes1.shape[:-2]
        if leading != boxes2.shape[:-2]:
            leading = torch.broadcast_shapes(leading, boxes2.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"boxes2: expected leading dimensions that broadcast with boxes1's {list(boxes1.shape[:-2])}, got "
            f"{_checks.describe(boxes2)}"
        ) from None
    dtype = torch.float64 if torch.float64 in (boxes1.dtype, boxes2.dtype) else torch.float32
    boxes1 = boxes1 if boxes1.dtype == dtype else boxes1.to(dtype)
    boxes2 = boxes2 if boxes2.dtype == dtype else boxes2.to(dtype)
    if boxes1.dim() == boxes2.dim() == 2:
        return _overlaps(boxes1.unsqueeze(0), boxes2.unsqueeze(0), kind).squeeze(0)
    n, m, batch = boxes1.shape[-2], boxes2.shape[-2], math.prod(leading)
    overlaps = _overlaps(
        boxes1.expand(*leading, n, 4).reshape(batch, n, 4), boxes2.expand(*leading, m, 4).reshape(batch, m, 4), kind
    )
    return overlaps.view(*leading, n, m)


def _overlaps(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """[B, N, 4] and [B, M, 4] of one dtype -> [B, N, M]."""
    number = _KINDS.index(kind)
    if torch.compiler.is_compiling():
        return _op(boxes1, boxes2, number)
    if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad):
        return _BoxIou.apply(boxes1, boxes2, number)
    with _eager.below_autograd():
        return _op(boxes1, boxes2, number)


_op = torch.ops.libra_ops.box_iou.default
_op_backward = torch.ops.libra_ops.box_iou_backward.default


@torch.library.register_fake("libra_ops::box_iou")
def _(boxes1, boxes2, kind):
    return boxes1.new_empty(boxes1.shape[0], boxes1.shape[1], boxes2.shape[1])


@torch.library.register_fake("libra_ops::box_iou_backward")
def _(grad, boxes1, boxes2, kind):
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _setup_context(ctx, inputs, output):
    boxes1, boxes2, ctx.kind = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx, grad):
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return *_op_backward(grad, *ctx.saved_tensors, ctx.kind), None
    with _eager.below_autograd():
        return *_op_backward(grad, *ctx.saved_tensors, ctx.kind), None


class _BoxIou(torch.autograd.Function):
    """The op in eager mode."""

    @staticmethod
    def forward(ctx, boxes1, boxes2, kind):
        _setup_context(ctx, (boxes1, boxes2, kind), None)
        with _eager.below_autograd():
            return _op(boxes1, boxes2, kind)

    backward = staticmethod(_backward)


def _second_backward(ctx, grad1, grad2):
    raise RuntimeError("box_iou: differentiable once only; a second derivative was asked for")


torch.library.register_autograd("libra_ops::box_iou", _backward, setup_context=_setup_context)
torch.library.register_autograd("libra_ops::box_iou_backward", _second_backward)
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::box_iou", _device, torch.float32)
