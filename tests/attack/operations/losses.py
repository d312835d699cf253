"""balanced_l1_loss, box_regression_loss and sigmoid_focal_loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import libra_ops
from libra_ops import reference
from tests.attack.operations.draw import INT64, Draw
from tests.attack.operations.operation import Arguments, Operation, any_meta, close, expect, plain
from tests.attack.operations.overlaps import as_flags

REDUCTIONS = ("none", "sum", "mean")
_SHAPES = ((), (1,), (4,), (0, 4), (3, 4), (17, 4), (2, 33, 4), (257,), (5, 0, 4), (2, 1, 3, 4))
_LEADING = ((), (1,), (3,), (0,), (17,), (2, 33), (65,), (3, 0), (2, 1, 5), (130,))
_LOGITS = ((1,), (3,), (0, 4), (3, 0), (3, 4), (65, 1), (2, 9, 5), (5, 81), (5, 0, 4))


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_loss(name: str, slots: int) -> Any:
    """A check of a loss by the shape of its argument `name`, less `slots` last dimensions."""

    def check(given: Arguments, loss: Any) -> None:
        like = given[name]
        shape = like.shape[: like.dim() - slots] if given["reduction"] == "none" else ()
        expect(loss, shape, _dtype(like))

    return check


def draw_balanced(draw: Draw) -> Arguments:
    shape = draw.choice(_SHAPES)
    weight_shape = draw.choice((shape, shape[:-1] + (1,) * bool(shape), shape[1:], ()))
    weight = draw.tensor(abs(draw.values(weight_shape)))
    weight = weight.masked_fill(torch.from_numpy(draw.flags(weight_shape)), 0)
    return {
        "pred": draw.tensor(draw.values(shape)),
        "target": draw.tensor(draw.values(shape)),
        "weight": weight if draw.chance(0.5) else None,
        "alpha": draw.choice((0.5, 0.1, 2, 1.5)),
        "gamma": draw.choice((1.5, 1, 3, 5.0)),
        "beta": draw.choice((1.0, 0.11, 2, 1e-3, 50, 1e4)),
        "formula": draw.choice(("paper", "published")),
        "reduction": draw.choice(REDUCTIONS),
    }


def compare_balanced(given: Arguments, loss: Any) -> None:
    pred, target = (plain(given[name], loss.dtype).double() for name in ("pred", "target"))
    weight = given["weight"]
    if weight is not None:
        weight = plain(weight, loss.dtype).double().expand(pred.shape)
    numbers = {name: float(given[name]) for name in ("alpha", "gamma", "beta")}
    twin = reference.balanced_l1_loss(
        pred, target, weight, **numbers, formula=given["formula"], reduction=given["reduction"]
    )
    sizes = [x.abs().max().item() for x in (pred, target, twin, weight) if x is not None and x.numel()]
    moderate = 1e-3 <= numbers["alpha"] <= 1e3 and 1e-3 <= numbers["beta"] <= 1e6 and numbers["gamma"] >= 1e-3
    if moderate and all(size < 1e12 for size in sizes):
        size = max(sizes, default=1.0) if given["reduction"] != "none" else 0.0
        close(loss.double(), twin, rtol=1e-4, atol=1e-6 * (1 + size))


def draw_regression(draw: Draw) -> Arguments:
    leading = draw.choice(_LEADING)
    decoded = draw.chance(0.4)
    weight_shape = draw.choice((leading, leading, leading[-1:], (1,) * len(leading), ()))
    weight = torch.from_numpy(draw.flags(weight_shape))
    if draw.chance(0.5):
        weight = draw.tensor(abs(draw.values(weight_shape))).masked_fill(weight, 0)
    given: Arguments = {
        "pred": draw.tensor(draw.values((*leading, 4)) if decoded else draw.boxes(leading)),
        "target": draw.tensor(draw.boxes(leading)),
        "kind": draw.choice(("iou", "giou", "diou", "ciou")),
        "weight": draw.choice((None, weight)),
        "reduction": draw.choice(REDUCTIONS),
        "references": None,
        "delta_stds": None,
    }
    if decoded:
        shape = draw.choice((leading, leading, leading[1:], (1,) * len(leading)))
        given["references"] = draw.tensor(draw.boxes(shape))
        given["delta_stds"] = draw.choice(
            (None, (0.1, 0.1, 0.2, 0.2), [1, 2, 1e-30, 3], torch.tensor([0.1, 0.1, 1, 2]))
        )
    return given


def check_regression(given: Arguments, loss: Any) -> None:
    check_loss("pred", 1)(given, loss)
    if any_meta(given) or given["reduction"] != "none":
        return
    names = ("pred", "target", "references")
    boxes = [plain(given[name], loss.dtype) for name in names if given[name] is not None]
    loss = loss.detach()
    counts = torch.ones(loss.shape, dtype=torch.bool)
    if given["weight"] is not None:
        weight = as_flags(given["weight"]).to(loss.dtype).expand(loss.shape)
        counts = weight != 0
        stds = given["delta_stds"]
        sound = not isinstance(stds, torch.Tensor) or bool((stds.isfinite() & (stds > 0)).all())
        assert not sound or not loss[~counts].any(), "a masked pair has a loss"
    nan = counts & torch.stack([x.isnan().any(-1).expand(loss.shape) for x in boxes]).any(0)
    assert loss[nan].isnan().all(), "a pair with NaN has a loss"
    if given["references"] is None and given["weight"] is None:
        moderate = torch.stack([(x.abs() <= 1e4).all(-1) for x in boxes]).all(0)
        assert loss[moderate].isfinite().all(), "the loss of moderate boxes is not finite"


def compare_regression(given: Arguments, loss: Any) -> None:
    """Compare boxes up to 1e18, without sums and decoding: the twin's arithmetic, but for the arc tangent."""
    if given["references"] is not None or given["reduction"] != "none":
        return
    pred, target = (plain(given[name], loss.dtype) for name in ("pred", "target"))
    weight = given["weight"]
    weight = None if weight is None else as_flags(weight).to(loss.dtype).expand(pred.shape[:-1])
    huge = ~((pred.abs() <= 1e18).all(-1) & (target.abs() <= 1e18).all(-1))
    pred, target = (x.masked_fill(huge[..., None], 0) for x in (pred, target))
    twin = reference.box_regression_loss(pred, target, given["kind"], weight)
    rough = 1e-5 if given["kind"] == "ciou" else 0.0
    size = 1.0 if weight is None or not weight.numel() else 1 + weight.nan_to_num(0, 0, 0).abs().max().item()
    close(loss.detach().masked_fill(huge, 0), twin.masked_fill(huge, 0), rtol=rough, atol=rough * size)


def draw_focal(draw: Draw) -> Arguments:
    shape = draw.choice(_LOGITS)
    labels = draw.numbers.integers(-2, shape[-1] + 3, shape[:-1])
    if draw.chance(0.3):
        labels = draw.numbers.choice(INT64, shape[:-1])
    mask = torch.as_tensor(draw.flags(shape[:-1]))
    return {
        "logits": draw.tensor(draw.values(shape)),
        "labels": torch.as_tensor(labels, dtype=torch.int64),
        "mask": draw.choice((None, mask)),
        "alpha": draw.fraction(),
        "gamma": draw.choice((2.0, 2, 0, 0.5, 1e4, 9e29)),
        "reduction": draw.choice(REDUCTIONS),
    }


def compare_focal(given: Arguments, loss: Any) -> None:
    logits = plain(given["logits"])
    if float(given["gamma"]) > 1e4 or not (logits.abs() < 1e12).all():
        return
    mask = None if given["mask"] is None else as_flags(given["mask"])
    twin = reference.sigmoid_focal_loss(
        logits.double(), plain(given["labels"]), mask, float(given["alpha"]), float(given["gamma"]), given["reduction"]
    )
    size = logits.double().abs().sum().item() if given["reduction"] == "sum" else 0.0
    close(loss.double(), twin, rtol=1e-4, atol=1e-6 * (1 + size))


OPERATIONS = (
    Operation(
        "balanced_l1_loss",
        libra_ops.balanced_l1_loss,
        draw_balanced,
        check_loss("pred", 0),
        compare_balanced,
        leaves=("pred", "target"),
    ),
    Operation(
        "box_regression_loss",
        libra_ops.box_regression_loss,
        draw_regression,
        check_regression,
        compare_regression,
        leaves=("pred", "target"),
    ),
    Operation(
        "sigmoid_focal_loss",
        libra_ops.sigmoid_focal_loss,
        draw_focal,
        check_loss("logits", 0),
        compare_focal,
        leaves=("logits",),
    ),
)
