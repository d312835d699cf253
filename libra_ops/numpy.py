"""`box_iou`, `match_boxes` and `sample_iou_balanced` on NumPy arrays, for data pipelines and tools without torch.

They run the CPU kernels of `libra_ops.box_iou` and its sisters, give the same results bit for bit and the same errors,
and importing this module does not import torch. C-contiguous arrays of the kernels' dtypes are read where they are,
memory maps and read-only ones too; others are converted by NumPy first. The GIL is free while a kernel runs. A call
uses one thread unless `threads` allows more, which then live as long as the call, so that workers can be forked at any
time; the results do not depend on it.

B images, N boxes, G targets, C crowd regions, S samples. Boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from libra_ops import _array_checks

try:
    from libra_ops import _numpy
except ImportError as error:
    raise ImportError(
        f"libra_ops.numpy: the compiled extension libra_ops._numpy does not load: {error}. Rebuild it in the "
        "repository with `pip install -e .`."
    ) from error

__all__ = ["Matches", "Samples", "box_iou", "match_boxes", "sample_iou_balanced"]

_KINDS = ("iou", "iof", "giou", "diou", "ciou")
_POSITIVES = ("instance_balanced", "random")
_BINS = ("paper", "published")
_MAX_BINS = 64
_MAX_THREADS = 1024
_BOOL, _INT8, _INT64, _FLOAT32, _FLOAT64 = map(np.dtype, ("bool", "int8", "int64", "float32", "float64"))
_FLOATS = ("float16", "bfloat16", "float32", "float64")  # bfloat16: that of ml_dtypes


class Matches(NamedTuple):
    """What `match_boxes` found for B images of N boxes each."""

    index: np.ndarray  # [B, N] int64: the target a box belongs to; safe to gather with for every box where G >= 1
    iou: np.ndarray  # [B, N] float32 in 0..1: the highest IoU with any target that can be found
    state: np.ndarray  # [B, N] int8: 1 positive, 0 negative, -1 ignored


class Samples(NamedTuple):
    """The candidates that were drawn, [B, S] each: positives first, then negatives, then padding."""

    index: np.ndarray  # int64: the candidate's position in its image, ascending among either; padding: 0
    valid: np.ndarray  # bool: False in padding
    positive: np.ndarray  # bool: True for positives


def box_iou(
    boxes1: np.ndarray,
    boxes2: np.ndarray,
    kind: Literal["iou", "iof", "giou", "diou", "ciou"] = "iou",
    *,
    threads: int = 1,
) -> np.ndarray:
    """Overlap of every box of `boxes1` with every box of `boxes2`.

    Args:
        boxes1: [..., N, 4] float16, float32 or float64; xyxy in pixels.
        boxes2: [..., M, 4], likewise; the leading dimensions broadcast with those of `boxes1`.
        kind: "iou", "iof" (intersection over the area of the box of `boxes1`), "giou", "diou" or "ciou".
        threads: the most threads to use, 1 to 1024.

    Returns:
        [..., N, M]; float64 if one of the boxes is float64, else float32. Inverted, huge and non-finite boxes: as
        `libra_ops.box_iou` says.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Example:
        >>> box_iou(np.float32([[0, 0, 2, 2]]), np.float32([[1, 0, 3, 2], [0, 0, 2, 2]]))
        array([[0.33333334, 1.        ]], dtype=float32)
    """
    _check_boxes("boxes1", boxes1, "[..., N, 4]")
    _check_boxes("boxes2", boxes2, "[..., M, 4]")
    _array_checks.check_choice("kind", kind, _KINDS)
    threads = _array_checks.check_integer("threads", threads, 1, _MAX_THREADS)
    leading1, leading2 = boxes1.shape[:-2], boxes2.shape[:-2]
    try:
        leading = leading1 if leading1 == leading2 else np.broadcast_shapes(leading1, leading2)
    except ValueError:
        raise ValueError(
            f"boxes2: expected leading dimensions that broadcast with boxes1's {list(leading1)}, got "
            f"{_array_checks.describe(boxes2)}"
        ) from None
    dtype = _FLOAT64 if "d" in (boxes1.dtype.char, boxes2.dtype.char) else _FLOAT32
    n, m, batch = boxes1.shape[-2], boxes2.shape[-2], math.prod(leading)
    if leading1 != leading:
        boxes1 = np.broadcast_to(boxes1, (*leading, n, 4))
    if leading2 != leading:
        boxes2 = np.broadcast_to(boxes2, (*leading, m, 4))
    overlaps = _numpy.box_iou(
        _contiguous(boxes1, dtype).reshape(batch, n, 4),
        _contiguous(boxes2, dtype).reshape(batch, m, 4),
        _KINDS.index(kind),
        threads,
    )
    return overlaps.reshape(*leading, n, m)


def match_boxes(
    boxes: np.ndarray,
    targets: np.ndarray,
    valid: np.ndarray,
    *,
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float | None = None,
    crowd: np.ndarray | None = None,
    threads: int = 1,
) -> Matches:
    """Assign every box to a target, to the background, or to neither.

    The rules (thresholds, low-quality rule, crowds, boxes that are not finite) are those of `libra_ops.match_boxes`.

    Args:
        boxes: [B, N, 4], or [N, 4] for the same boxes in every image; xyxy in pixels, float16, float32 or float64
            (compared as float32).
        targets: [B, G, 4], padded; xyxy in pixels. One image: targets[None].
        valid: [B, G] bool: which targets are real and not padding.
        positive_iou: in 0..1; a box is positive from this IoU on.
        negative_iou: in 0..1, not above `positive_iou`; below it a box is negative, in between it is ignored.
        min_positive_iou: in 0..1: a target whose best IoU reaches it claims its best boxes; none: no such rule.
        crowd: [B, G] bool, which of the targets are crowd regions; or [B, C, 4], regions of their own.
        threads: the most threads to use, 1 to 1024.

    Returns:
        Matches(index [B, N] int64, iou [B, N] float32, state [B, N] int8).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Example:
        >>> boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]])
        >>> targets, valid = np.float32([[[0, 0, 10, 10]]]), np.array([[True]])
        >>> match_boxes(boxes, targets, valid, positive_iou=0.7, negative_iou=0.3).state
        array([[ 1, -1,  0]], dtype=int8)
    """
    _check_boxes("targets", targets, "[B, G, 4]", dims=(3,))
    _check_boxes("boxes", boxes, "[B, N, 4] or [N, 4]", dims=(2, 3))
    batch, count = targets.shape[:2]
    if boxes.ndim == 3 and boxes.shape[0] != batch:
        raise ValueError(
            f"boxes: expected [N, 4] or a batch of {batch} images like targets, got {_array_checks.describe(boxes)}"
        )
    _array_checks.check_at_most("targets", count, 2**31 - 1, "per image")
    _check_dtype("valid", valid, _BOOL)
    _array_checks.check_shape("valid", valid, (batch, count), "one flag per target")
    positive_iou = _array_checks.check_number("positive_iou", positive_iou, 0, 1)
    negative_iou = _array_checks.check_number("negative_iou", negative_iou, 0, 1)
    if negative_iou > positive_iou:
        raise ValueError(f"negative_iou: expected at most positive_iou {positive_iou:g}, got {negative_iou:g}")
    if min_positive_iou is not None:
        min_positive_iou = _array_checks.check_number("min_positive_iou", min_positive_iou, 0, 1)
    if crowd is not None:
        targets, valid, crowd = _split_crowd(crowd, targets, valid)
    threads = _array_checks.check_integer("threads", threads, 1, _MAX_THREADS)
    return Matches(
        *_numpy.match_boxes(
            _contiguous(boxes, _FLOAT32),
            _contiguous(targets, _FLOAT32),
            _contiguous(valid, _BOOL),
            crowd,
            positive_iou,
            negative_iou,
            min_positive_iou,
            threads,
        )
    )


def _split_crowd(
    crowd: np.ndarray, targets: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets [B, G, 4], which of them are objects [B, G], crowd regions [B, C, 4] padded with boxes without area."""
    _check_array("crowd", crowd)
    if crowd.dtype == _BOOL:
        _array_checks.check_shape("crowd", crowd, valid.shape, "one flag per target")
        targets = _contiguous(targets, _FLOAT32)
        return targets, valid & ~crowd, np.where(crowd[..., None], targets, np.float32(0))
    if crowd.dtype.name not in _FLOATS:
        raise TypeError(
            "crowd: expected bool [B, G] (which targets are crowd regions) or floating boxes [B, C, 4], got "
            f"{_array_checks.describe(crowd)}"
        )
    _array_checks.check_boxes_shape("crowd", crowd, "[B, C, 4], or bool [B, G]", dims=(3,))
    if crowd.shape[0] != len(targets):
        raise ValueError(f"crowd: expected a batch of {len(targets)} images, got {_array_checks.describe(crowd)}")
    return targets, valid, _contiguous(crowd, _FLOAT32)


def sample_iou_balanced(
    matches: Matches | tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    num_samples: int,
    positive_fraction: float,
    num_bins: int = 3,
    interval: tuple[float, float] = (0.0, 0.5),
    max_negatives_per_positive: float | None = None,
    positives: Literal["instance_balanced", "random"] = "instance_balanced",
    bins: Literal["paper", "published"] = "paper",
    seed: int,
    threads: int = 1,
) -> Samples:
    """Draws up to `num_samples` candidates of every image, without replacement; ignored ones never.

    How positives and negatives are drawn is told at `libra_ops.sample_iou_balanced`, whose arguments these are.

    Args:
        matches: (index [B, N] int64, iou [B, N] floating, state [B, N] int8), as `match_boxes` returns them.
        num_samples: S, samples per image; >= 0.
        positive_fraction: largest share of positives, 0 to 1.
        num_bins: equal IoU bins of the negatives, 1 to 64.
        interval: (low, high), IoU: what the bins split.
        max_negatives_per_positive: at most so many negatives for each positive drawn; none: no limit.
        positives: "instance_balanced" (targets take turns) or "random".
        bins: "paper" or "published".
        seed: -2^63 to 2^63 - 1; the samples are a function of it and of the arguments. Pass a new one for each call,
            such as int(rng.integers(2**63)) of a numpy.random.Generator. The torch function draws its seed with
            torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, generator=generator), and from the same seed
            this one draws the same samples.
        threads: the most threads to use, 1 to 1024; one image is one thread's.

    Returns:
        Samples(index, valid, positive), [B, S] each: positives, then negatives, then padding with index 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Example:
        >>> iou, state = np.float32([[0.9, 0.1, 0.3]]), np.int8([[1, 0, -1]])
        >>> matches = (np.zeros((1, 3), np.int64), iou, state)
        >>> sample_iou_balanced(matches, num_samples=3, positive_fraction=0.5, seed=0).index
        array([[0, 1, 0]])
    """
    index, iou, state = _check_matches(matches)
    num_samples = _array_checks.check_integer("num_samples", num_samples, 0, 2**30)
    positive_fraction = _array_checks.check_number("positive_fraction", positive_fraction, 0, 1)
    num_bins = _array_checks.check_integer("num_bins", num_bins, 1, _MAX_BINS)
    low, high = _check_interval(interval)
    if max_negatives_per_positive is not None:
        max_negatives_per_positive = _array_checks.check_number(
            "max_negatives_per_positive", max_negatives_per_positive, 0
        )
    _array_checks.check_choice("positives", positives, _POSITIVES)
    _array_checks.check_choice("bins", bins, _BINS)
    seed = _array_checks.check_integer("seed", seed, -(2**63), 2**63 - 1)
    threads = _array_checks.check_integer("threads", threads, 1, _MAX_THREADS)
    return Samples(
        *_numpy.sample_iou_balanced(
            _contiguous(index, _INT64),
            _contiguous(iou, _FLOAT32),
            _contiguous(state, _INT8),
            seed,
            num_samples,
            int(num_samples * positive_fraction + 1e-6),  # 0.29 * 100 is 28.999999999999996
            num_bins,
            low,
            high,
            max_negatives_per_positive,
            positives == "instance_balanced",
            bins == "published",
            threads,
        )
    )


def _check_matches(matches: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(matches, (tuple, list)) or len(matches) != 3:
        got = f"{len(matches)} elements" if isinstance(matches, (tuple, list)) else type(matches).__name__
        raise TypeError(f"matches: expected (index, iou, state) as match_boxes returns them, got {got}")
    index, iou, state = matches
    _check_dtype("matches.index", index, _INT64)
    _check_floating("matches.iou", iou)
    _check_dtype("matches.state", state, _INT8)
    if index.ndim != 2:
        got = _array_checks.describe(index)
        raise ValueError(f"matches.index: expected shape [B, N], got {got}; for one image pass index[None]")
    _array_checks.check_at_most("matches.index", index.shape[0], 2**31 - 1, "images")
    _array_checks.check_at_most("matches.index", index.shape[1], 2**30, "candidates")
    _array_checks.check_shape("matches.iou", iou, index.shape, "that of matches.index")
    _array_checks.check_shape("matches.state", state, index.shape, "that of matches.index")
    return index, iou, state


def _check_interval(interval: object) -> tuple[float, float]:
    if not isinstance(interval, Sequence) or len(interval) != 2:
        raise ValueError(f"interval: expected (low, high), got {_array_checks.show(interval)}")
    low, high = (_array_checks.check_number("interval", value, -math.inf) for value in interval)
    if not low < high:
        raise ValueError(f"interval: expected low < high, got {_array_checks.show(interval)}")
    return low, high


def _check_array(name: str, value: object) -> None:
    if type(value) is np.ndarray:
        return
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray; pass its filled(...)")
    if not isinstance(value, np.ndarray):
        raise _array_checks.wrong_type(name, "a numpy.ndarray", value)


def _check_floating(name: str, value: object) -> None:
    _check_array(name, value)
    dtype = value.dtype
    if dtype != _FLOAT32 and dtype.name not in _FLOATS:
        raise _array_checks.not_floating(name, value)


def _check_boxes(name: str, value: object, shape: str, dims: Sequence[int] | None = None) -> None:
    _check_floating(name, value)
    _array_checks.check_boxes_shape(name, value, shape, dims)


def _check_dtype(name: str, value: object, dtype: np.dtype) -> None:
    _check_array(name, value)
    if value.dtype != dtype and value.dtype.name != dtype.name:  # of the same name: another byte order
        raise _array_checks.wrong_dtype(name, dtype, value)


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself where a kernel can read it, else a copy; numbers too large for `dtype` become infinite."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    with np.errstate(all="ignore"):
        return np.require(array, dtype, ("C_CONTIGUOUS", "ALIGNED"))
