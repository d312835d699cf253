"""Boxes as offsets from reference boxes, there and back, gathered and clipped in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libra_ops import _checks, _eager

_ONES = (1.0, 1.0, 1.0, 1.0)
_SIZE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)


def encode_boxes(
    references: Tensor,
    targets: Tensor,
    *,
    index: Tensor | None = None,
    target_index: Tensor | None = None,
    delta_stds: Sequence[float] | None = None,
) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move reference boxes onto targets.

    (dx, dy) is the shift of the centre in widths and heights of the reference, (dw, dh) the logarithm of the change of
    the sides. Sides below 1e-6 px count as 1e-6 px, so slots without area give finite, meaningless deltas.

    Args:
        references: [N, 4], the same for all images, or [B, N, 4]; xyxy in pixels, floating.
        targets: [B, G, 4], likewise; or [G, 4] with references [N, 4], of one image.
        index: [B, S] int64 ([S] of one image), 0..N-1: which reference slot s is of; none: reference s, and S is N.
        target_index: [B, S] int64 ([S] of one image), 0..G-1: which target slot s is of; none: target s, and S is G.
        delta_stds: 4 numbers > 0 within float32's range, which (dx, dy, dw, dh) are divided by; none: ones.

    Returns:
        [B, S, 4] ([S, 4] of one image); float64 if one of the boxes is float64, else float32. Has no gradient. An index
        out of range is an error on the CPU; on CUDA, which is not waited for, its slot is NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; the message names it.
        RuntimeError: on CUDA, more than 2^31 - 1 blocks of up to 256 boxes of an image.

    Source: Girshick et al., R-CNN, CVPR 2014, appendix C; mmdetection's DeltaXYWHBBoxCoder.

    Example:
        >>> encode_boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 0.0, 15.0, 20.0]]))
        tensor([[0.5000, 0.5000, 0.0000, 0.6931]])
    """
    _checks.check_boxes("references", references, "[N, 4] or [B, N, 4]", (2, 3))
    _checks.check_boxes("targets", targets, "[G, 4] or [B, G, 4]", (2, 3))
    _check_constant("references", references)
    _check_constant("targets", targets)
    _check_references(references, targets, "targets")
    stds = _ONES if delta_stds is None else _checks.check_stds(delta_stds)
    one_image = targets.dim() == 2
    index, target_index = (
        _check_index(name, value, targets, "targets", one_image)
        for name, value in (("index", index), ("target_index", target_index))
    )
    slots = references.shape[-2] if index is None else index.shape[1]
    target_slots = targets.shape[-2] if target_index is None else target_index.shape[1]
    if slots != target_slots:
        raise ValueError(
            f"targets: expected as many slots as references ({slots}), got {target_slots}; choose among them with "
            "index and target_index"
        )
    references, targets = _of_one_dtype(references, targets)
    deltas = _run(_encode, references, targets[None] if one_image else targets, index, target_index, stds)
    return deltas[0] if one_image else deltas


def decode_boxes(
    references: Tensor,
    deltas: Tensor,
    *,
    index: Tensor | None = None,
    delta_stds: Sequence[float] | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Boxes that deltas, as `encode_boxes` makes them, move reference boxes to.

    (dw, dh) are clipped to +-ln(1000 / 16) first, so that an untrained network gives finite boxes.

    Args:
        references: [N, 4], the same for all images, or [B, N, 4]; xyxy in pixels, floating. A constant.
        deltas: [B, N, 4], or [B, N, C, 4] for C boxes of each reference; or [N, 4] with references [N, 4], of one
            image. Floating.
        index: [B, S] int64 ([S] of one image), 0..N-1: the rows that are wanted; none: all, and S is N.
        delta_stds: 4 numbers > 0 within float32's range, which (dx, dy, dw, dh) are multiplied with; none: ones.
        sizes: [B, 2] ([2] of one image) floating or integer, height and width in pixels that the boxes are clipped to;
            none: they are not. A constant.

    Returns:
        [B, S, 4], [B, S, C, 4] or [S, 4], xyxy; float64 if references or deltas are float64, else float32. A NaN stays
        one. An index out of range is an error on the CPU; on CUDA, which is not waited for, its box is NaN.

    Differentiable once with respect to `deltas`, in reverse mode; not for use with torch.func. A coordinate that was
    clipped, to the image or the largest change of a side, passes no gradient. A row gets the sum over the slots that
    `index` gave it to, in their order: it is deterministic.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a constant that requires a
            gradient; the message names it.
        NotImplementedError: an argument with a tangent of forward-mode differentiation.
        RuntimeError: on CUDA, more than 2^31 - 1 blocks of up to 256 boxes of an image.

    Source: Girshick et al., R-CNN, CVPR 2014, appendix C; mmdetection's DeltaXYWHBBoxCoder.

    Example:
        >>> decode_boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
        tensor([[ 5.,  5., 15., 15.]])
    """
    _checks.check_boxes("references", references, "[N, 4] or [B, N, 4]", (2, 3))
    _checks.check_boxes("deltas", deltas, "[N, 4], [B, N, 4] or [B, N, C, 4]", (2, 3, 4))
    _check_constant("references", references)
    _checks.check_no_tangent("deltas", deltas)
    _check_references(references, deltas, "deltas")
    one_image, one_class = deltas.dim() == 2, deltas.dim() < 4
    rows = deltas.shape[0 if one_image else 1]
    if references.shape[-2] != rows:
        raise ValueError(f"references: expected {rows} rows like deltas, got {_checks.describe(references)}")
    stds = _ONES if delta_stds is None else _checks.check_stds(delta_stds)
    index = _check_index("index", index, deltas, "deltas", one_image)
    references, deltas = _of_one_dtype(references, deltas)
    if sizes is not None:
        sizes = _check_sizes(sizes, deltas, one_image)
    if one_image:
        deltas = deltas[None]
    if one_class:
        deltas = deltas.unsqueeze(2)
    with_gradient = torch.is_grad_enabled() and deltas.requires_grad
    if with_gradient and not torch.compiler.is_compiling():
        boxes = _DecodeBoxes.apply(references, deltas, index, stds, sizes)
    else:
        boxes = _run(_decode, references, deltas, index, stds, sizes)
    if one_class:
        boxes = boxes.squeeze(2)
    return boxes[0] if one_image else boxes


_encode = torch.ops.libra_ops.encode_boxes.default
_decode = torch.ops.libra_ops.decode_boxes.default
_decode_backward = torch.ops.libra_ops.decode_boxes_backward.default


def _run(op, *arguments) -> Tensor:
    if torch.compiler.is_compiling():
        return op(*arguments)
    with _eager.below_autograd():
        return op(*arguments)


def _check_constant(name: str, value: Tensor) -> None:
    _checks.check_no_tangent(name, value)
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: expected a tensor without requires_grad (it is a constant here); pass {name}.detach()"
        )


def _check_references(references: Tensor, other: Tensor, name: str) -> None:
    """The two go together: references of all images, or of as many images as `other` has."""
    _checks.check_same_device(name, other, references, "references")
    if references.dim() == 3 and (other.dim() == 2 or other.shape[0] != references.shape[0]):
        raise ValueError(
            f"{name}: expected {references.shape[0]} images like references, {_checks.describe(references)}; got "
            f"{_checks.describe(other)}"
        )


def _check_index(name: str, index: Tensor | None, other: Tensor, other_name: str, one_image: bool) -> Tensor | None:
    if index is None:
        return None
    _checks.check_dtype(name, index, torch.int64)
    _checks.check_same_device(name, index, other, other_name)
    wanted = "[S]" if one_image else f"[{other.shape[0]}, S]"
    if index.dim() != (1 if one_image else 2) or (not one_image and index.shape[0] != other.shape[0]):
        raise ValueError(f"{name}: expected shape {wanted}, got {_checks.describe(index)}")
    return index[None] if one_image else index


def _check_sizes(sizes: Tensor, deltas: Tensor, one_image: bool) -> Tensor:
    _checks.check_tensor("sizes", sizes)
    if sizes.dtype not in _SIZE_DTYPES:
        raise TypeError(f"sizes: expected a floating or integer dtype, got {_checks.describe(sizes)}")
    _check_constant("sizes", sizes)
    _checks.check_same_device("sizes", sizes, deltas, "deltas")
    shape = (2,) if one_image else (deltas.shape[0], 2)
    _checks.check_shape("sizes", sizes, shape, "height and width of each image")
    sizes = sizes if sizes.dtype == deltas.dtype else sizes.to(deltas.dtype)
    return sizes[None] if one_image else sizes


def _of_one_dtype(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    return first if first.dtype == dtype else first.to(dtype), second if second.dtype == dtype else second.to(dtype)


@torch.library.register_fake("libra_ops::encode_boxes")
def _(references, targets, index, target_index, delta_stds):
    slots = references.shape[-2] if index is None else index.shape[1]
    return targets.new_empty(targets.shape[0], slots, 4)


@torch.library.register_fake("libra_ops::decode_boxes")
def _(references, deltas, index, delta_stds, sizes):
    slots = deltas.shape[1] if index is None else index.shape[1]
    return deltas.new_empty(deltas.shape[0], slots, deltas.shape[2], 4)


@torch.library.register_fake("libra_ops::decode_boxes_backward")
def _(grad, references, deltas, index, delta_stds, sizes):
    return deltas.new_empty(deltas.shape)


def _setup_context(ctx, inputs, output):
    references, deltas, index, ctx.stds, sizes = inputs
    ctx.save_for_backward(references, deltas, index, sizes)


def _backward(ctx, grad):
    references, deltas, index, sizes = ctx.saved_tensors
    if index is not None:  # the op wants the slots of a row side by side
        index, order = index.sort(dim=1, stable=True)
        grad = torch.take_along_dim(grad, order[..., None, None], 1)  # [B, S, C, 4]
    arguments = (grad, references, deltas, index, ctx.stds, sizes)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None, _decode_backward(*arguments), None, None, None
    return None, _run(_decode_backward, *arguments), None, None, None


class _DecodeBoxes(torch.autograd.Function):
    """The op in eager mode."""

    @staticmethod
    def forward(ctx, references, deltas, index, stds, sizes):
        _setup_context(ctx, (references, deltas, index, stds, sizes), None)
        return _run(_decode, references, deltas, index, stds, sizes)

    backward = staticmethod(_backward)


def _second_backward(ctx, grad):
    raise RuntimeError("decode_boxes: differentiable once only; a second derivative was asked for")


torch.library.register_autograd("libra_ops::decode_boxes", _backward, setup_context=_setup_context)
torch.library.register_autograd("libra_ops::decode_boxes_backward", _second_backward)
for _name in ("encode_boxes", "decode_boxes"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"libra_ops::{_name}", _device, torch.float32)
