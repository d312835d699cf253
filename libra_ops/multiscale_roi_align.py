"""Features of boxes: RoIAlign from the pyramid level that fits each box, forward and backward in one pass each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libra_ops import _checks, _eager

_MOST_LEVELS = 8
_MOST_CELLS = 64  # along a side of the output, and points of a cell along an axis
_MOST_SIZE = 2**20 - 1


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    valid: Tensor | None = None,
    *,
    strides: Sequence[float],
    output_size: int = 7,
    sampling_ratio: int,
    finest_scale: float = 56.0,
) -> Tensor:
    """Pool every box from its level of a feature pyramid.

    A box belongs to the level floor(log2(sqrt(area) / finest_scale + 1e-6)), clamped to the levels there are. Each of
    the P x P cells of its output is the mean of points spread evenly over the cell, interpolated between the four
    feature cells around them; with the half-cell correction (torchvision's `aligned=True`). A point that lies outside
    the map by more than a cell counts as zero.

    Args:
        features: 1 to 8 maps [B, C, H_l, W_l], finest first; float16, bfloat16, float32 or float64, all of one dtype.
            Maps in channels-last and in contiguous order are both read as they lie, without a copy.
        boxes: [B, S, 4] floating; xyxy in pixels. Constants: they get no gradient. A box that is not finite is pooled
            as a point at the origin.
        valid: [B, S] bool, False for slots that hold no box: their output is 0, and nothing of their incoming gradient
            reaches the features, whatever it holds. None: all hold one.
        strides: pixels per feature cell of each map; > 0.
        output_size: cells along a side of the output, P; 1 to 64.
        sampling_ratio: points per cell and axis, at most 64; 0 takes ceil(length of a cell) of them, about one per
            feature cell, as published models do.
        finest_scale: pixels; boxes of sqrt(area) below twice this use the finest map; > 0.

    Returns:
        [B, S, C, P, P], contiguous, of the features' dtype; sums are in float32, or float64 for features of float64.
        Differentiable once with respect to the features, in reverse mode only; their gradients lie in memory as they
        do, are deterministic and do not depend on the number of threads. Of the arguments only boxes and valid are kept
        for the backward pass, so the features may be changed in place; it makes the gradients of those maps alone that
        need one. The transforms of torch.func are not supported. Autocast changes nothing: the features' dtype decides.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device; the message names it.
        NotImplementedError: an argument with a tangent of forward-mode differentiation.
        RuntimeError: on CUDA, 2^31 boxes or more, or more than 4,194,240 channels.

    Source: He et al., Mask R-CNN, ICCV 2017 (RoIAlign; torchvision.ops.roi_align with aligned=True gives the same on
    each level); Lin et al., Feature Pyramid Networks, CVPR 2017, eq. 1, with 56 = 224 / 4.

    Example:
        >>> maps = [torch.ones(1, 1, 8, 8), torch.full((1, 1, 4, 4), 2.0)]
        >>> boxes = torch.tensor([[[4.0, 4.0, 20.0, 20.0], [0.0, 0.0, 28.0, 28.0]]])
        >>> options = {"strides": (4, 8), "output_size": 1, "sampling_ratio": 2, "finest_scale": 14}
        >>> multiscale_roi_align(maps, boxes, **options).flatten()
        tensor([1., 2.])
    """
    features = _check_features(features)
    first = features[0]
    _checks.check_boxes("boxes", boxes, "[B, S, 4]", (3,))
    _checks.check_same_device("boxes", boxes, first, "features[0]")
    _checks.check_no_tangent("boxes", boxes)
    if boxes.shape[0] != first.shape[0]:
        raise ValueError(
            f"boxes: expected [B, S, 4] for the B = {first.shape[0]} images of features, got {_checks.describe(boxes)}"
        )
    if valid is not None:
        _checks.check_dtype("valid", valid, torch.bool)
        _checks.check_same_device("valid", valid, first, "features[0]")
        _checks.check_shape("valid", valid, boxes.shape[:2], "[B, S], one for each box")
    if isinstance(strides, (str, bytes)) or not isinstance(strides, Sequence):
        raise TypeError(f"strides: expected a sequence of numbers, got {type(strides).__name__}")
    if len(strides) != len(features):
        raise ValueError(f"strides: expected {len(features)} numbers, one for each map, got {len(strides)}")
    strides = [float(_checks.check_number("strides", stride, 0, open_low=True)) for stride in strides]
    output_size = _checks.check_integer("output_size", output_size, 1, _MOST_CELLS)
    sampling_ratio = _checks.check_integer("sampling_ratio", sampling_ratio, 0, _MOST_CELLS)
    finest_scale = _checks.check_number("finest_scale", finest_scale, 0, open_low=True)
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    boxes = boxes.detach()
    boxes = boxes if boxes.dtype == dtype else boxes.to(dtype)
    options = (strides, output_size, sampling_ratio, finest_scale)
    if torch.compiler.is_compiling():
        return _op(features, boxes, valid, *options)
    if torch.is_grad_enabled() and any(x.requires_grad for x in features):
        return _MultiscaleRoIAlign.apply(boxes, valid, options, *features)
    with _eager.below_autograd():
        return _op(features, boxes, valid, *options)


def _check_features(features: object) -> list[Tensor]:
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise TypeError(f"features: expected a sequence of maps [B, C, H, W], got {type(features).__name__}")
    if not 1 <= len(features) <= _MOST_LEVELS:
        raise ValueError(f"features: expected 1 to {_MOST_LEVELS} maps, got {len(features)}")
    features = list(features)
    for level, x in enumerate(features):
        _checks.check_floating("features", x)
        _checks.check_no_tangent("features", x)
        if x.dim() != 4 or not (1 <= x.shape[2] <= _MOST_SIZE and 1 <= x.shape[3] <= _MOST_SIZE):
            raise ValueError(
                "features: expected maps [B, C, H, W] of at least one cell, got "
                f"{_checks.describe(x)} as number {level}"
            )
        first = features[0]
        _checks.check_same_device("features", x, first, "the first map")
        if x.dtype != first.dtype or x.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"features: expected maps of one dtype, batch and number of channels, got {_checks.describe(first)} "
                f"and, as number {level}, {_checks.describe(x)}"
            )
    return features


_op = torch.ops.libra_ops.multiscale_roi_align.default
_op_backward = torch.ops.libra_ops.multiscale_roi_align_backward.default


@torch.library.register_fake("libra_ops::multiscale_roi_align")
def _(features, boxes, valid, strides, output_size, sampling_ratio, finest_scale):
    first = features[0]
    return first.new_empty(boxes.shape[0], boxes.shape[1], first.shape[1], output_size, output_size)


@torch.library.register_fake("libra_ops::multiscale_roi_align_backward")
def _(grad, boxes, valid, heights, widths, channels_last, wanted, *options):
    return [
        torch.empty(
            (grad.shape[0], grad.shape[2], height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for height, width, last, want in zip(heights, widths, channels_last, wanted, strict=True)
        if want
    ]


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _setup_context(ctx, inputs, output):
    features, boxes, valid, *ctx.options = inputs
    ctx.layouts = [x.shape[2] for x in features], [x.shape[3] for x in features], list(map(_is_channels_last, features))
    ctx.save_for_backward(boxes, valid)


def _gradients(ctx, grad: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    boxes, valid = ctx.saved_tensors
    found = iter(_op_backward(grad, boxes, valid, *ctx.layouts, wanted, *ctx.options))
    return [next(found) if want else None for want in wanted]


class _MultiscaleRoIAlign(torch.autograd.Function):
    """The op in eager mode."""

    @staticmethod
    def forward(ctx, boxes, valid, options, *features):
        _setup_context(ctx, (features, boxes, valid, *options), None)
        with _eager.below_autograd():
            return _op(features, boxes, valid, *options)

    @staticmethod
    def backward(ctx, grad):
        wanted = list(ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # create_graph=True: a second derivative is to find its error
            return None, None, None, *_gradients(ctx, grad, wanted)
        with _eager.below_autograd():
            return None, None, None, *_gradients(ctx, grad, wanted)


def _backward(ctx, grad):
    return _gradients(ctx, grad, list(ctx.needs_input_grad[0])), *(None,) * 6


def _second_backward(ctx, grads):
    raise RuntimeError("multiscale_roi_align: differentiable once only; a second derivative was asked for")


torch.library.register_autograd("libra_ops::multiscale_roi_align", _backward, setup_context=_setup_context)
torch.library.register_autograd("libra_ops::multiscale_roi_align_backward", _second_backward)
