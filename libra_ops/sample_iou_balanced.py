"""IoU-balanced sampling: which candidates of every image a head is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from libra_ops import _checks

if TYPE_CHECKING:
    from libra_ops.match_boxes import Matches

_POSITIVES = ("instance_balanced", "random")
_BINS = ("paper", "published")
_MAX_BINS = 64
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1  # of a seed; torch draws below the highest


class Samples(NamedTuple):
    """The candidates that were drawn, [B, S] each: positives first, then negatives, then padding.

    index: int64, the candidate's position 0..N-1 in its image, ascending among positives and negatives; padding: 0.
    valid: bool, False in padding.
    positive: bool, True for positives.
    """

    index: Tensor
    valid: Tensor
    positive: Tensor


def sample_iou_balanced(
    matches: Matches | tuple[Tensor, Tensor, Tensor],
    *,
    num_samples: int,
    positive_fraction: float,
    num_bins: int = 3,
    interval: tuple[float, float] = (0.0, 0.5),
    max_negatives_per_positive: float | None = None,
    positives: Literal["instance_balanced", "random"] = "instance_balanced",
    bins: Literal["paper", "published"] = "paper",
    generator: torch.Generator | None = None,
    seed: Tensor | None = None,
) -> Samples:
    """Draws up to `num_samples` candidates of every image, without replacement; ignored ones never.

    Positives: at most `num_samples * positive_fraction`. Negatives: the rest of `num_samples`, of which every IoU bin
    gives an equal part, drawn uniformly (p = N/K * 1/M_k); what bins are short of, and the remainder of N / K, is drawn
    uniformly from all negatives left. `num_bins=1` with `positives="random"` is the plain random sampler.

    Args:
        matches: (index, iou, state) on one device, [B, N] each, as `match_boxes` returns them. index: int64, the
            candidate's target. iou: floating, its IoU with it, compared in float32; gets no gradient. state: int8,
            1 positive, 0 negative, -1 ignored.
        num_samples: S, samples per image; >= 0.
        positive_fraction: largest share of positives, 0 to 1. Negatives take the places that positives leave empty.
        num_bins: K, 1 to 64. One bin holds every negative, whatever its IoU.
        interval: (low, high), IoU: K equal half-open bins split [low, high). Negatives outside of it, or of an IoU that
            is NaN, are drawn only where bins are short. `bins="published"` does not use it.
        max_negatives_per_positive: at most so many negatives for each positive drawn (an image without positives counts
            as if it had one); none: no limit.
        positives: "instance_balanced": in every round each target that has positives left gives one at random, and who
            gives in the last round is random: every target gives equally many, or one more, as far as it has them.
            "random": uniform over the image's positives.
        bins: "paper", or "published": as the reference implementation does in its steady state, the bins split
            [0, largest IoU of the image's candidates, positive and ignored ones too), and negatives of IoU 0 are drawn
            only when the others run out.
        generator: where the seed is drawn from, on the CPU or on the device of `matches`; none: torch's own, which is
            also all that torch.compile can trace.
        seed: [1] int64 on the device of `matches`, drawn before; then nothing is drawn here, and `generator` is none.

    Returns:
        Samples(index, valid, positive), [B, S] each, on the device of `matches`: positives, then negatives, then
        padding with index 0, so that index can be gathered with unless N is 0.

    Randomness: one int64 seed, unless it is given drawn from torch's generator in each call, and every candidate's
    random numbers are a function of it, the image's place in the batch and the candidate's place in the image: the CPU
    and CUDA draw the same samples from the same seed, whatever the number of threads. The seed comes from the CPU's
    generator and is copied without waiting, so torch.manual_seed gives the same samples on both. While a CUDA graph is
    captured or under torch.compile it is drawn on the device instead, so that every replay draws new samples.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range; the message names it.

    Source: Pang et al., Libra R-CNN, CVPR 2019, section 3.1; "published": mmdetection's IoUBalancedNegSampler.

    Example:
        >>> iou, state = torch.tensor([[0.9, 0.1, 0.3]]), torch.tensor([[1, 0, -1]], dtype=torch.int8)
        >>> matches = (torch.zeros(1, 3, dtype=torch.int64), iou, state)
        >>> sample_iou_balanced(matches, num_samples=3, positive_fraction=0.5).index
        tensor([[0, 1, 0]])
    """
    index, iou, state = _check_matches(matches)
    num_samples = _checks.check_integer("num_samples", num_samples, 0, 2**30)
    positive_fraction = _checks.check_number("positive_fraction", positive_fraction, 0, 1)
    num_bins = _checks.check_integer("num_bins", num_bins, 1, _MAX_BINS)
    low, high = _check_interval(interval)
    if max_negatives_per_positive is not None:
        max_negatives_per_positive = _checks.check_number("max_negatives_per_positive", max_negatives_per_positive, 0)
    _checks.check_choice("positives", positives, _POSITIVES)
    _checks.check_choice("bins", bins, _BINS)
    samples = _op(
        index,
        iou,
        state,
        _draw_seed(index.device, generator) if seed is None else _check_seed(seed, index, generator),
        num_samples,
        int(num_samples * positive_fraction + 1e-6),  # 0.29 * 100 is 28.999999999999996
        num_bins,
        low,
        high,
        max_negatives_per_positive,
        positives == "instance_balanced",
        bins == "published",
    )
    return Samples(*samples)


_op = torch.ops.libra_ops.sample_iou_balanced.default


def _check_matches(matches: object) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(matches, (tuple, list)) or len(matches) != 3:
        got = f"{len(matches)} elements" if isinstance(matches, (tuple, list)) else type(matches).__name__
        raise TypeError(f"matches: expected (index, iou, state) as match_boxes returns them, got {got}")
    index, iou, state = matches
    _checks.check_dtype("matches.index", index, torch.int64)
    _checks.check_floating("matches.iou", iou)
    _checks.check_dtype("matches.state", state, torch.int8)
    if index.dim() != 2:
        got = _checks.describe(index)
        raise ValueError(f"matches.index: expected shape [B, N], got {got}; for one image pass index[None]")
    _checks.check_at_most("matches.index", index.shape[0], 2**31 - 1, "images")
    _checks.check_at_most("matches.index", index.shape[1], 2**30, "candidates")
    for name, value in (("matches.iou", iou), ("matches.state", state)):
        _checks.check_shape(name, value, index.shape, "that of matches.index")
        _checks.check_same_device(name, value, index, "matches.index")
    iou = iou.detach() if iou.requires_grad else iou
    return index, iou if iou.dtype == torch.float32 else iou.float(), state


def _check_interval(interval: object) -> tuple[float, float]:
    if not isinstance(interval, (tuple, list, Sequence)) or len(interval) != 2:
        raise ValueError(f"interval: expected (low, high), got {_checks.show(interval)}")
    low = _checks.check_number("interval", interval[0], -math.inf)
    high = _checks.check_number("interval", interval[1], -math.inf)
    if not low < high:
        raise ValueError(f"interval: expected low < high, got {_checks.show(interval)}")
    return low, high


def _check_seed(seed: Tensor, index: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is not None:
        raise ValueError("generator: expected none beside a seed, got one")
    _checks.check_dtype("seed", seed, torch.int64)
    _checks.check_shape("seed", seed, (1,), "one number for all images")
    _checks.check_same_device("seed", seed, index, "matches.index")
    return seed


def _draw_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """[1] int64 on `device`. No call waits for the device."""
    if device.type == "cpu" and generator is None:
        # With a generator named, if only None: for the other overload torch.compile has random numbers of its own.
        return torch.randint(_LOWEST, _HIGHEST, (1,), device=device, generator=None)
    compiling = torch.compiler.is_compiling()
    capturing = not compiling and device.type == "cuda" and torch.cuda.is_initialized()
    capturing = capturing and torch.cuda.is_current_stream_capturing()
    source = device if compiling or capturing else torch.device("cpu")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
        source = generator.device
        if source.type != "cpu" and source != device:
            raise ValueError(f"generator: expected one on the CPU or on {device} like matches, got one on {source}")
        if capturing and source.type == "cpu":
            raise ValueError(
                "generator: expected one on the GPU while a CUDA graph is captured (a CPU generator would give every "
                "replay the same samples); pass torch.Generator(device) registered with the graph, or none"
            )
    seed = torch.randint(_LOWEST, _HIGHEST, (1,), device=source, generator=generator)
    return seed.to(device, non_blocking=True)


@torch.library.register_fake("libra_ops::sample_iou_balanced")
def _(index, iou, state, seed, num_samples, *options):
    shape = (index.shape[0], num_samples)
    return index.new_empty(shape), index.new_empty(shape, dtype=torch.bool), index.new_empty(shape, dtype=torch.bool)


for _device in ("cpu", "cuda"):
    torch.library.register_autocast("libra_ops::sample_iou_balanced", _device, torch.float32)
