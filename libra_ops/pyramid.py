"""The balanced feature pyramid's two ends: the levels' mean at the size of one of them, and its way back to each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libra_ops import _checks, _eager

_MOST_LEVELS = 8
_LONGEST_SIDE = 65535


def integrate_pyramid(features: Sequence[Tensor], *, level: int) -> Tensor:
    """Mean of all levels at the size of one: finer ones brought to it by adaptive max pooling, coarser ones by nearest.

    Window i of the n that cover N cells is floor(i N / n) .. ceil((i + 1) N / n), and cell i of n takes that at
    floor(i N / n) of N, in float32: PyTorch's adaptive_max_pool2d and interpolate(mode="nearest"), to the bit for maps
    of float32. A NaN in a window makes its largest value NaN.

    Args:
        features: 1 to 8 maps [B, C, H_l, W_l], finest first, of one dtype (float16, bfloat16, float32 or float64) and
            device. Any sizes of at least one cell; any strides, without a copy where channels (in all maps) or columns
            are neighbours in memory.
        level: the level, from 0 (finest), to whose size all are brought.

    Returns:
        [B, C, H_level, W_level] of the dtype of `features`; added up in float32 at least. Channels-last if the finest
        map is, else contiguous.

    Differentiable once with respect to `features`, in reverse mode only; the transforms of torch.func are not
    supported. The gradient of a window goes to its first largest value, or its last NaN, as in PyTorch. Where these lay
    is kept for the backward pass in a byte per window (4 where a window has more than 256 cells), and not the features.
    Results and gradients are deterministic and do not depend on the number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; the message names it.
        NotImplementedError: features with a tangent of forward-mode differentiation.
        RuntimeError: on CUDA, more than 2^32 - 1 elements of the result, or of all the features' gradients; where
            channels are neighbours in memory, as many packs of 16 bytes.

    Source: Pang et al., Libra R-CNN, CVPR 2019, section 3.2, eq. 4.

    Example:
        >>> fine, coarse = torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]), torch.tensor([[[[7.0]]]])
        >>> integrate_pyramid([fine, coarse], level=1)
        tensor([[[[6.]]]])
    """
    level = _check_features(features, level)
    rest = (level, _is_channels_last(features[0]))
    size = features[level].shape
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in features)
    index_bytes = _index_bytes([(size, x.shape) for x in features[:level]]) if with_gradient else 0
    if torch.compiler.is_compiling():
        return _integrate(list(features), *rest, index_bytes)[0]
    if with_gradient:
        return _Integrate.apply(*rest, index_bytes, *features)
    with _eager.below_autograd():
        return _integrate(features, *rest, 0)[0]


def scatter_pyramid(features: Sequence[Tensor], refined: Tensor, *, level: int) -> list[Tensor]:
    """Adds a map, of the size of one level, to all levels: to finer ones by nearest, to coarser ones max-pooled.

    Windows and nearest cells are those of `integrate_pyramid`, with the sizes the other way round.

    Args:
        features: 1 to 8 maps [B, C, H_l, W_l], as for `integrate_pyramid`.
        refined: [B, C, H_level, W_level], dtype and device of `features`.
        level: the level, from 0 (finest), that has the size of `refined`.

    Returns:
        As many new maps of the same shapes and dtype; channels-last if the finest of `features` is, else contiguous.

    Differentiable once with respect to both, in reverse mode only; the transforms of torch.func are not supported. The
    gradient of `refined` is added up in float32 at least, deterministically.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; the message names it.
        NotImplementedError: an argument with a tangent of forward-mode differentiation.
        RuntimeError: on CUDA, more than 2^32 - 1 elements of all results; where channels are neighbours in memory, as
            many packs of 16 bytes.

    Source: Pang et al., Libra R-CNN, CVPR 2019, section 3.2.

    Example:
        >>> fine, coarse = torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]), torch.tensor([[[[7.0]]]])
        >>> scatter_pyramid([fine, coarse], torch.tensor([[[[6.0]]]]), level=1)
        [tensor([[[[ 7., 11.],
                  [ 9.,  8.]]]]), tensor([[[[13.]]]])]
    """
    level = _check_features(features, level)
    _checks.check_dtype("refined", refined, features[0].dtype)
    _checks.check_same_device("refined", refined, features[0], "features")
    _checks.check_shape("refined", refined, features[level].shape, f"that of features[{level}]")
    _checks.check_no_tangent("refined", refined)
    rest = (level, _is_channels_last(features[0]))
    with_gradient = torch.is_grad_enabled() and (refined.requires_grad or any(x.requires_grad for x in features))
    index_bytes = _index_bytes([(x.shape, refined.shape) for x in features[level + 1 :]]) if with_gradient else 0
    if torch.compiler.is_compiling():
        return _scatter(list(features), refined, *rest, index_bytes)[0]
    if with_gradient:
        return list(_Scatter.apply(*rest, index_bytes, refined, *features))
    with _eager.below_autograd():
        return _scatter(features, refined, *rest, 0)[0]


def _check_features(features: Sequence[Tensor], level: int) -> int:
    if not isinstance(features, (list, tuple)):
        raise TypeError(f"features: expected a list of tensors, finest first, got {type(features).__name__}")
    if not 1 <= len(features) <= _MOST_LEVELS:
        raise ValueError(f"features: expected 1 to {_MOST_LEVELS} maps, got {len(features)}")
    for number, x in enumerate(features):
        name = f"features[{number}]"
        _checks.check_floating(name, x)
        first = features[0]
        if x.dim() != 4 or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(f"{name}: expected [B, C, H, W] with at least one cell, got {_checks.describe(x)}")
        for side in x.shape[2:]:
            _checks.check_at_most(name, side, _LONGEST_SIDE, "cells a side")
        if x.shape[:2] != first.shape[:2] or x.dtype != first.dtype:
            raise ValueError(
                f"{name}: expected batch, channels and dtype of features[0] ({_checks.describe(first)}), got "
                f"{_checks.describe(x)}"
            )
        _checks.check_same_device(name, x, first, "features[0]")
        _checks.check_no_tangent(name, x)
    return _checks.check_integer("level", level, 0, len(features) - 1)


def _is_channels_last(finest: Tensor) -> bool:
    return finest.stride(1) == 1 and not finest.is_contiguous()


def _index_bytes(sizes: list[tuple[Sequence[int], Sequence[int]]]) -> int:
    """Of one element that counts the cells of any window, each pair being a pooled and a whole map's shape."""
    cells = 1
    for pooled, whole in sizes:
        cells = max(cells, _widest(pooled[2], whole[2]) * _widest(pooled[3], whole[3]))
    return 1 if cells <= 256 else 4


def _widest(windows: int, length: int) -> int:
    return length // windows if length % windows == 0 else length // windows + 2


_integrate = torch.ops.libra_ops.integrate_pyramid.default
_integrate_backward = torch.ops.libra_ops.integrate_pyramid_backward.default
_scatter = torch.ops.libra_ops.scatter_pyramid.default
_scatter_backward = torch.ops.libra_ops.scatter_pyramid_backward.default


def _empty_map(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _empty_index(like: Tensor, pooled: Sequence[Sequence[int]], index_bytes: int) -> Tensor:
    count = sum(b * c * height * width for b, c, height, width in pooled) if index_bytes else 0
    return torch.empty(count, dtype=torch.int32 if index_bytes == 4 else torch.uint8, device=like.device)


@torch.library.register_fake("libra_ops::integrate_pyramid")
def _(features, level, channels_last, index_bytes):
    mean = _empty_map(features[0], features[level].shape, channels_last)
    return mean, _empty_index(mean, [mean.shape] * level, index_bytes)


@torch.library.register_fake("libra_ops::integrate_pyramid_backward")
def _(grad, index, heights, widths, level, channels_last):
    sizes = zip(heights, widths, strict=True)
    return [_empty_map(grad, (*grad.shape[:2], *size), channels_last) for size in sizes]


@torch.library.register_fake("libra_ops::scatter_pyramid")
def _(features, refined, level, channels_last, index_bytes):
    outputs = [_empty_map(x, x.shape, channels_last) for x in features]
    return outputs, _empty_index(refined, [x.shape for x in features[level + 1 :]], index_bytes)


@torch.library.register_fake("libra_ops::scatter_pyramid_backward")
def _(grads, index, level, channels_last):
    return _empty_map(grads[0], grads[level].shape, channels_last)


def _below_autograd(op, *arguments):
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with _eager.below_autograd():
        return op(*arguments)


def _setup_integrate(ctx, inputs, output):
    features, *ctx.rest, ctx.index_bytes = inputs
    ctx.heights, ctx.widths = [x.shape[2] for x in features], [x.shape[3] for x in features]
    ctx.save_for_backward(output[1])


def _backward_of_integrate(ctx, grad_mean, grad_index):
    (index,) = ctx.saved_tensors
    if ctx.index_bytes == 0:
        raise RuntimeError("libra_ops::integrate_pyramid: a gradient needs index_bytes of 1 or 4")
    grads = _below_autograd(_integrate_backward, grad_mean, index, ctx.heights, ctx.widths, *ctx.rest)
    return grads, None, None, None


class _Integrate(torch.autograd.Function):
    """The op in eager mode."""

    @staticmethod
    def forward(ctx, level, channels_last, index_bytes, *features):
        inputs = (features, level, channels_last, index_bytes)
        with _eager.below_autograd():
            output = _integrate(*inputs)
        _setup_integrate(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, grad):
        grads, *rest = _backward_of_integrate(ctx, grad, None)
        return *rest, *grads


def _setup_scatter(ctx, inputs, output):
    _, _, *ctx.rest, ctx.index_bytes = inputs
    ctx.save_for_backward(output[1])


def _backward_of_scatter(ctx, grads, grad_index):
    return *_gradients_of_scatter(ctx, grads, ctx.needs_input_grad[1]), None, None, None


def _gradients_of_scatter(ctx, grads, refined_needs_it):
    (index,) = ctx.saved_tensors
    if ctx.index_bytes == 0:
        raise RuntimeError("libra_ops::scatter_pyramid: a gradient needs index_bytes of 1 or 4")
    grad_refined = None
    if refined_needs_it:
        grad_refined = _below_autograd(_scatter_backward, grads, index, *ctx.rest)
    return grads, grad_refined


class _Scatter(torch.autograd.Function):
    """The op in eager mode."""

    @staticmethod
    def forward(ctx, level, channels_last, index_bytes, refined, *features):
        inputs = (features, refined, level, channels_last, index_bytes)
        with _eager.below_autograd():
            output = _scatter(*inputs)
        _setup_scatter(ctx, inputs, output)
        return tuple(output[0])

    @staticmethod
    def backward(ctx, *grads):
        grads, grad_refined = _gradients_of_scatter(ctx, list(grads), ctx.needs_input_grad[3])
        return None, None, None, grad_refined, *grads


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "integrate_pyramid, scatter_pyramid: differentiable once only; a second derivative was asked for"
    )


torch.library.register_autograd("libra_ops::integrate_pyramid", _backward_of_integrate, setup_context=_setup_integrate)
torch.library.register_autograd("libra_ops::scatter_pyramid", _backward_of_scatter, setup_context=_setup_scatter)
torch.library.register_autograd("libra_ops::integrate_pyramid_backward", _no_second_derivative)
torch.library.register_autograd("libra_ops::scatter_pyramid_backward", _no_second_derivative)
