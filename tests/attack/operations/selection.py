"""sample_iou_balanced, nms_padded and topk_per_level."""

from __future__ import annotations

import math
from typing import Any

import torch

import libra_ops
from libra_ops import reference
from tests.attack.operations.draw import INT64, Draw
from tests.attack.operations.operation import Arguments, Operation, any_meta, close, expect, plain
from tests.attack.operations.overlaps import as_flags


def draw_sampling(draw: Draw) -> Arguments:
    batch, n = draw.choice((1, 1, 2, 3, 0)), draw.length()
    index = draw.numbers.choice(INT64, (batch, n)) if draw.chance(0.3) else draw.numbers.integers(0, 5, (batch, n))
    iou = abs(draw.values((batch, n))) if draw.chance(0.3) else draw.numbers.integers(0, 13, (batch, n)) / 12
    shares = draw.choice(((0.2, 0.7, 0.1), (1, 0, 0), (0, 1, 0), (0.5, 0, 0.5)))
    state = draw.numbers.choice((1, 0, -1), (batch, n), p=shares)
    if draw.chance(0.1):
        state = draw.numbers.integers(-128, 128, (batch, n))  # what is neither 1 nor 0 is ignored
    given: Arguments = {
        "matches": (torch.from_numpy(index), draw.tensor(iou), torch.from_numpy(state).to(torch.int8)),
        "num_samples": draw.choice((0, 1, 2, 3, 16, 64, 300)),
        "positive_fraction": draw.fraction(),
        "num_bins": draw.choice((1, 2, 3, 5, 64)),
        "interval": draw.choice(((0.0, 0.5), [0, 1], (-1, 1.5), (0.1, 0.1000001), (0.3, 1e300), (-1e300, 1e300))),
        "max_negatives_per_positive": draw.choice((None, 0, 0.5, 3, 1e300)),
        "positives": draw.choice(("instance_balanced", "random")),
        "bins": draw.choice(("paper", "published")),
    }
    if draw.chance(0.7):
        given["seed"] = torch.tensor([draw.choice((*INT64, draw.integer(-(2**63), 2**63 - 1)))])
    elif draw.chance(0.5):
        given["generator"] = torch.Generator()
    return given


def check_samples(given: Arguments, samples: Any) -> None:
    index, valid, positive = samples
    matched, _, state = given["matches"]
    shape = (matched.shape[0], int(given["num_samples"]))
    for found, dtype in ((index, torch.int64), (valid, torch.bool), (positive, torch.bool)):
        expect(found, shape, dtype)
    if any_meta(given) or any_meta({"matches": given["matches"]}) or not index.numel():
        return
    assert ((index >= 0) & (index < max(1, matched.shape[1]))).all(), "an index is out of range"
    assert not (positive & ~valid).any() and not index[~valid].any(), "padding is not empty"
    if matched.shape[1]:
        chosen = state.detach().gather(1, index)
        assert (chosen[positive] == 1).all() and (chosen[valid & ~positive] == 0).all(), "a sample of another state"
    positives = int(given["num_samples"] * float(given["positive_fraction"]) + 1e-6)
    assert (positive.sum(1) <= positives).all(), "too many positives"


def compare_samples(given: Arguments, samples: Any) -> None:
    if given.get("seed") is None or given.get("generator") is not None:
        return
    index, iou, state = (plain(x) for x in given["matches"])
    options = {name: given[name] for name in ("num_bins", "interval", "positives", "bins")}
    options["interval"] = tuple(float(edge) for edge in given["interval"])
    options["num_bins"] = int(given["num_bins"])
    limit = given["max_negatives_per_positive"]
    count = int(given["num_samples"])
    twins = reference.sample_iou_balanced(
        index, iou.float(), state, given["seed"].item(), count,
        int(count * float(given["positive_fraction"]) + 1e-6),
        max_negatives_per_positive=None if limit is None else float(limit), **options,
    )  # fmt: skip
    for found, twin in zip(samples, twins, strict=True):
        close(found, twin)


def draw_suppression(draw: Draw) -> Arguments:
    batch, n = draw.choice((1, 1, 2, 3, 0)), draw.length()
    groups = draw.numbers.choice(INT64[: draw.integer(1, len(INT64))], (batch, n))
    return {
        "boxes": draw.tensor(draw.boxes((batch, n))),
        "scores": draw.tensor(draw.values((batch, n))),
        "groups": draw.choice((None, torch.from_numpy(groups))),
        "iou_threshold": draw.fraction(),
        "max_output": draw.choice((0, 1, 2, 10, 300, 2**62, 2**63 - 1)),
        "score_threshold": draw.choice((None, None, 0, 0.05, -1e30, 1e300)),
        "valid": draw.choice((None, torch.from_numpy(draw.flags((batch, n))))),
    }


def check_survivors(given: Arguments, survivors: Any) -> None:
    index, valid = survivors
    boxes = given["boxes"]
    shape = (boxes.shape[0], min(int(given["max_output"]), boxes.shape[1]))
    expect(index, shape, torch.int64)
    expect(valid, shape, torch.bool)
    if any_meta(given) or not index.numel():
        return
    assert ((index >= 0) & (index < boxes.shape[1])).all(), "an index is out of range"
    assert not index[~valid].any(), "an empty slot has an index"
    scores = plain(given["scores"], torch.float32).gather(1, index).masked_fill(~valid, -math.inf)
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "scores do not fall"


def compare_survivors(given: Arguments, survivors: Any) -> None:
    boxes, scores = (plain(given[name], torch.float32) for name in ("boxes", "scores"))
    threshold = given["score_threshold"]
    twins = reference.nms_padded(
        boxes, scores, None if given["groups"] is None else plain(given["groups"]),
        iou_threshold=float(given["iou_threshold"]), max_output=min(int(given["max_output"]), boxes.shape[1]),
        score_threshold=None if threshold is None else float(threshold),
        valid=None if given["valid"] is None else as_flags(given["valid"]),
    )  # fmt: skip
    for found, twin in zip(survivors, twins, strict=True):
        close(found, twin)


def draw_best(draw: Draw) -> Arguments:
    sizes = [draw.length() for _ in range(draw.choice((0, 1, 2, 3, 4, 16)))]
    scores = draw.tensor(draw.values((draw.integer(0, 3), sum(sizes))))
    return {
        "scores": scores.float() if scores.dtype == torch.float64 else scores,
        "level_sizes": sizes,
        "k": draw.choice((0, 1, 3, 64, 2**30)),
        "threshold": draw.choice((None, None, 0.0, 0.3, -1e30, math.inf, -math.inf, 1e300)),
    }


def check_best(given: Arguments, best: Any) -> None:
    values, index = best
    scores, sizes, k = given["scores"], [int(size) for size in given["level_sizes"]], int(given["k"])
    shape = (scores.shape[0], sum(min(k, size) for size in sizes))
    expect(values, shape, scores.dtype)
    expect(index, shape, torch.int64)
    if scores.is_meta or not index.numel():
        return
    assert ((index >= 0) & (index < scores.shape[1])).all(), "an index is out of range"
    own = scores.detach().as_subclass(torch.Tensor).gather(1, index)
    same = (own == values) | (own.isnan() & values.isnan()) | (values == -math.inf)
    assert same.all(), "a value is not that of its index"


def compare_best(given: Arguments, best: Any) -> None:
    if not given["level_sizes"]:
        return
    threshold = given["threshold"]
    rules = [int(given["k"]), None if threshold is None else float(threshold)]
    twins = reference.topk_per_level(plain(given["scores"]), [int(size) for size in given["level_sizes"]], *rules)
    for found, twin in zip(best, twins, strict=True):
        close(found, twin)


OPERATIONS = (
    Operation("sample_iou_balanced", libra_ops.sample_iou_balanced, draw_sampling, check_samples, compare_samples),
    Operation("nms_padded", libra_ops.nms_padded, draw_suppression, check_survivors, compare_survivors),
    Operation("topk_per_level", libra_ops.topk_per_level, draw_best, check_best, compare_best),
)
