"""The best scores of every level of every image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from libra_ops import _checks, _eager

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_LEVELS = 16


def topk_per_level(
    scores: Tensor, level_sizes: Sequence[int], k: int, *, threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """The `k` best scores of each level of each image, all levels one after the other.

    Args:
        scores: [B, N] float32, float16 or bfloat16; read as they are. What they are of does not matter (logits will
            do); get no gradient.
        level_sizes: L ints, at most 16, that sum to N: an image's first level_sizes[0] scores are its first level, the
            next level_sizes[1] its second. A level has at most 2^31 scores, or none.
        k: how many of each level, 0 to 2^30; of a level that has no more, all.
        threshold: only scores above it take part; none: all do, NaN too. It is rounded to the dtype that is compared
            in, as in PyTorch's `scores > threshold`.

    Returns:
        values [B, T] of the dtype of `scores` and index [B, T] int64, the position 0..N-1 in the image, T being the sum
        of min(k, level size) over the levels. Each level's slots fall in score, equal scores (-0 and 0 are) by rising
        index; NaN is below -inf. With a threshold, slots for which a level has not enough scores come last, with value
        -inf and the index of the level's first score, which can be gathered with. The order is the same on the CPU and
        on CUDA, always. For values with a gradient: scores.gather(1, index).

    Nothing waits for the GPU. Memory beside the results, on CUDA for each level of each image: 8 bytes a score, of at
    most max(4096, 1.5 min(k, level size)) scores; where it has more, 48 KiB of counters. On the CPU for each level of
    each image: 8 bytes for the k best of every max(2^17, 4 k) scores.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        RuntimeError: on CUDA, more than 2^31 - 1 levels of all images, or blocks of about 8192 scores; or more than
            44,739,242 levels of all images that take counters.

    Source: what detectors do before non-maximum suppression (Lin et al., FPN, CVPR 2017, section 4.1); torch.topk of
    each level, with ties and NaN settled.

    Example:
        >>> topk_per_level(torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.2]]), [3, 2], 2)[1]
        tensor([[1, 2, 3, 4]])
    """
    _checks.check_tensor("scores", scores)
    if scores.dtype not in _DTYPES:
        raise TypeError(f"scores: expected dtype float32, float16 or bfloat16, got {_checks.describe(scores)}")
    if scores.dim() != 2:
        got = _checks.describe(scores)
        raise ValueError(f"scores: expected shape [B, N], got {got}; for one image pass scores[None]")
    _checks.check_at_most("scores", scores.shape[0], 2**31 - 1, "images")
    k = _checks.check_integer("k", k, 0, 2**30)
    if not isinstance(level_sizes, (tuple, list, Sequence)) or isinstance(level_sizes, str):
        raise TypeError(f"level_sizes: expected a sequence of ints, got {type(level_sizes).__name__}")
    sizes = [_checks.check_integer("level_sizes", size, 0, 2**31) for size in level_sizes]
    _checks.check_at_most("level_sizes", len(sizes), _MAX_LEVELS, "levels")
    if sum(sizes) != scores.shape[1]:
        raise ValueError(
            f"level_sizes: expected a sum of {scores.shape[1]} (scores is {_checks.describe(scores)}), got {sum(sizes)}"
        )
    if threshold is not None:
        _checks.to_number("threshold", threshold)  # a tensor cannot be compared
    if threshold is not None and threshold not in (math.inf, -math.inf):
        threshold = _checks.check_number("threshold", threshold, -math.inf)
    if torch.compiler.is_compiling():
        return _op(scores.detach(), sizes, k, threshold)
    with _eager.below_autograd():
        return _op(scores.detach() if scores.requires_grad else scores, sizes, k, threshold)


_op = torch.ops.libra_ops.topk_per_level.default


@torch.library.register_fake("libra_ops::topk_per_level")
def _(scores, level_sizes, k, threshold):
    shape = (scores.shape[0], sum(min(size, k) for size in level_sizes))
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)
