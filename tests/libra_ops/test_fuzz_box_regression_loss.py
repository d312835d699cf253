"""Fuzz of box_regression_loss and its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import torch
from fuzzing import (
    NO_NUMBERS,
    WORDS,
    Call,
    as_tensor,
    bad_arrays,
    boxes,
    conversions,
    fuzz,
    is_huge,
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from libra_ops import box_regression_loss, reference

KINDS = ("iou", "giou", "diou", "ciou")
REDUCTIONS = ("none", "sum", "mean")
# Around the kernels' blocks of 64 pairs and chunks of 1,024.
LEADING = ((), (1,), (3,), (0,), (17,), (2, 33), (65,), (3, 0), (2, 1, 5), (130,), (1030,))
STDS = (0.1, 0.1, 0.2, 0.2)


def tame(array: np.ndarray) -> np.ndarray:
    """Coordinates of which the docstring says what they give: numbers of at most 1e4 px."""
    return np.where(np.abs(array) <= 1e4, array, 1).astype(array.dtype)  # also for a NaN


@st.composite
def weights(draw, leading: tuple[int, ...]) -> np.ndarray:
    """As many as pairs or fewer, a third of them 0."""
    shape = draw(st.sampled_from((leading, leading, leading[-1:], (1,) * len(leading), ())))
    random = np.random.default_rng(draw(seeds))
    masked = random.random(shape) < 0.3
    if draw(st.booleans()):
        return np.asarray(~masked)
    dtype = draw(st.sampled_from((np.float32, np.float64, np.float16)))
    return np.where(masked, 0, random.uniform(0, 3, shape)).astype(dtype)


@st.composite
def calls(draw) -> Call:
    leading = draw(st.sampled_from(LEADING))
    decoded, calm = draw(st.booleans()), draw(st.booleans())
    good = {
        "pred": draw(values((*leading, 4)) if decoded else boxes(leading)),
        "target": draw(boxes(leading)),
        "kind": draw(st.sampled_from(KINDS)),
        "weight": draw(weights(leading)) if draw(st.booleans()) else None,
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "references": None,
        "delta_stds": None,
    }
    if decoded:
        shape = draw(st.sampled_from((leading, leading, leading[1:], (1,) * len(leading))))
        good["references"] = draw(boxes(shape))
        as_array = np.array(STDS, draw(st.sampled_from((np.float32, np.float64))))
        good["delta_stds"] = draw(st.sampled_from((None, STDS, list(STDS), (1, 2, 1e-30, np.float32(3)), as_array)))
    if calm:
        good |= {name: tame(good[name]) for name in ("pred", "target", "references") if good[name] is not None}
    call = Call(good)
    name = draw(st.sampled_from((None,) * 5 + tuple(good)))
    pred, odd = good["pred"], np.zeros((*leading, 2, 4), np.float32)
    constant = torch.ones(4, requires_grad=True)
    bad = {
        "pred": [*WORDS, pred > 0, pred.astype(np.complex64), pred[..., :3], np.float32(1), odd],
        "target": [*bad_arrays(good["target"]), odd],
        "kind": ["IoU", "iof", "", *WORDS],
        "weight": [*WORDS[1:-2], np.ones(7, np.float32), np.ones((*leading, 2, 1)), np.ones(leading, np.int64)],
        "reduction": ["Sum", *WORDS],
        "references": [*WORDS[1:], np.ones((*leading, 2), np.float32), np.ones((7, 4)), odd, odd > 0, constant],
        "delta_stds": [*WORDS[1:], 1.0, (1, 1, 1), np.ones(5), np.array(0.5), np.ones(4, np.int64), constant]
        + [(1, number, 1, 1) for number in (*NO_NUMBERS, 0, 1e39, 1e-46)],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@fuzz
@given(data=st.data())
def test_box_regression_loss(data):
    call, leaves = data.draw(calls()), []
    convert = conversions["torch"](data.draw)

    def convert_with_gradient(value: object) -> object:
        found = convert(value)
        if value is call.arguments["pred"] or value is call.arguments["target"]:
            if isinstance(found, Tensor) and found.is_floating_point():
                found = found.detach().requires_grad_()
                leaves.append(found)
        return found

    loss = outcome(box_regression_loss, call, convert_with_gradient)
    if loss is None:
        return
    random = np.random.default_rng(data.draw(seeds))
    incoming = torch.from_numpy(np.asarray(random.standard_normal(loss.shape))).to(loss.dtype)
    gradients = torch.autograd.grad(loss, leaves, incoming)
    check_layouts_and_dtypes(loss, gradients, incoming, **call.arguments)
    if loss.dtype == torch.float64 and call.arguments["references"] is None:
        check_gradients_at_kinks(gradients, incoming, **call.arguments)
    check_loss(loss.detach(), gradients, **call.arguments)


def check_layouts_and_dtypes(loss, gradients, incoming, **arguments):
    """As of contiguous arrays that are float64, or all float32; gradients are rounded to what was given."""
    plain = {name: as_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    inputs = [plain.pop(name).to(loss.dtype).requires_grad_() for name in ("pred", "target")]
    again = box_regression_loss(*inputs, **plain)
    with torch.no_grad():
        without_gradient = box_regression_loss(*inputs, **plain)
    for other in (again, without_gradient):
        torch.testing.assert_close(other, loss, rtol=0, atol=0, equal_nan=True)
    for found, expected in zip(gradients, torch.autograd.grad(again, inputs, incoming), strict=True):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0, equal_nan=True)


def check_gradients_at_kinks(gradients, incoming, pred, target, kind, weight, reduction, **_):
    """PyTorch's for boxes of at most 1e4 px, empty, inverted and equal ones too: in double, which has no near ties."""
    boxes_ = [as_tensor(x, torch.float64) for x in (pred, target)]
    outside = ~torch.stack([(x.abs() <= 1e4).all(-1) for x in boxes_]).all(0)  # [...]
    inputs = [x.masked_fill(outside[..., None], 0).requires_grad_() for x in boxes_]
    weight = None if weight is None else as_tensor(weight, torch.float64).expand(outside.shape)
    expected = reference.box_regression_loss(*inputs, kind, weight, reduction)
    for found, twin in zip(gradients, torch.autograd.grad(expected, inputs, incoming), strict=True):
        if found.dtype == torch.float16:
            continue
        found, twin = found.double()[~outside], twin[~outside]  # [P, 4]
        size = twin.abs().amax(-1, keepdim=True)
        assert ((found - twin).abs() <= 1e-6 * size + 1e-9).all()


def check_loss(loss, gradients, pred, target, kind, weight, reduction, references, delta_stds):
    arithmetic = torch.float64 if pred.dtype == np.float64 else torch.float32
    leading = pred.shape[:-1]
    assert loss.dtype == arithmetic and loss.shape == (leading if reduction == "none" else ())
    for gradient, x in zip(gradients, (pred, target), strict=True):
        assert gradient.shape == x.shape and gradient.numpy().dtype == x.dtype
    counts = torch.ones(leading, dtype=torch.bool)
    if weight is not None:
        weight = as_tensor(weight).to(arithmetic).expand(leading)
        counts = weight != 0
    given = [as_tensor(x).to(arithmetic) for x in (pred, target)]
    if references is not None:
        given.append(as_tensor(references).to(arithmetic).expand(*leading, 4))
    # Masked pairs, whatever is in them.
    assert not any(gradient[~counts].any() for gradient in gradients)
    if reduction == "none":
        assert not loss[~counts].any()
    nan = counts & torch.stack([x.isnan().any(-1) for x in given]).any(0)
    of_each = loss if reduction == "none" else loss.expand(leading)
    assert of_each[nan].isnan().all()
    stds = None if delta_stds is None else torch.as_tensor(delta_stds, dtype=arithmetic)
    boxes_ = decoded_in_double(given[0], given[2], stds) if references is not None else given[0]
    moderate = torch.stack([(x.abs() <= 1e4).all(-1) for x in (*given, boxes_)]).all(0)
    finite_gradients = [g for g in gradients if g.dtype != torch.float16]  # where 1 / 1e-6 px is infinite
    if reduction == "none":
        assert loss[moderate].isfinite().all()
    for gradient in finite_gradients:
        assert gradient[moderate | ~counts].isfinite().all()
    if references is None:
        check_value(loss, *given, kind, weight, counts, reduction)


def decoded_in_double(deltas: Tensor, references: Tensor, stds: Tensor | None) -> Tensor:
    rows = [x.double().reshape(1, -1, 4) for x in (references, deltas)]
    return reference.decode_boxes(*rows, delta_stds=(1, 1, 1, 1) if stds is None else stds).reshape(deltas.shape)


def check_value(loss, pred, target, kind, weight, counts, reduction):
    """Of pairs without huge boxes: the twin's arithmetic in its order, but for the arc tangent and a sum's order."""
    huge = torch.from_numpy(np.asarray(is_huge(pred.numpy()) | is_huge(target.numpy())))
    if reduction != "none" and (huge & counts).any():
        return
    calm = [x.masked_fill(huge[..., None], 0) for x in (pred, target)]
    expected = reference.box_regression_loss(*calm, kind, weight, reduction=reduction)
    found = loss if reduction != "none" else loss.masked_fill(huge, 0)
    expected = expected if reduction != "none" else expected.masked_fill(huge, 0)
    eps = torch.finfo(loss.dtype).eps
    close = {"rtol": 0, "atol": 0}
    if kind == "ciou":
        close = {"rtol": 1e-5, "atol": 1e-5}
    if reduction != "none":
        each = reference.box_regression_loss(*(x.double() for x in calm), kind, weight)
        size = each.abs().sum().item() / (max(1, each.numel()) if reduction == "mean" else 1)
        close = {"rtol": 0, "atol": 64 * eps * size + close["atol"] * (1 + size)}
    torch.testing.assert_close(found, expected, equal_nan=True, **close)
    if reduction == "none" and kind in ("iou", "giou"):
        finite = huge & pred.isfinite().all(-1) & target.isfinite().all(-1)
        wide = reference.box_regression_loss(pred.double(), target.double(), kind, weight)
        torch.testing.assert_close(loss[finite].double(), wide[finite], rtol=1e-5, atol=1e-5)


@st.composite
def pairs(draw, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Boxes of 1 to 100 px that are apart, overlap or share edges, in a grid of sixteenths of a pixel."""
    generator = torch.Generator().manual_seed(draw(seeds))
    count = draw(st.sampled_from((1, 7, 64, 65, 200)))

    def draw_boxes() -> Tensor:
        corner = torch.randint(0, 800, (count, 2), generator=generator)
        size = torch.randint(16, 800, (count, 2), generator=generator)
        return torch.cat((corner, corner + size), -1).to(dtype) / 16

    found = {"pred": draw_boxes(), "target": draw_boxes(), "references": None, "delta_stds": None}
    if draw(st.booleans()):
        shared = torch.rand(count, 4, generator=generator) < 0.2
        found["target"] = torch.where(shared, found["pred"], found["target"])
        proper = (found["target"][:, 2:] > found["target"][:, :2]).all(-1, keepdim=True)
        found["target"] = torch.where(proper, found["target"], found["pred"])
    if draw(st.booleans()):
        found["references"] = found["pred"]
        found["pred"] = torch.randn(count, 4, generator=generator, dtype=torch.float64).to(dtype) * 3
        found["delta_stds"] = draw(st.sampled_from((None, torch.tensor(STDS, dtype=dtype))))
    return found


@fuzz
@given(data=st.data(), wide=st.booleans(), kind=st.sampled_from(KINDS), reduction=st.sampled_from(REDUCTIONS))
def test_value_and_gradient_of_proper_boxes(data, wide, kind, reduction):
    dtype = torch.float64 if wide else torch.float32
    given = data.draw(pairs(dtype))
    count = len(given["pred"])
    generator = torch.Generator().manual_seed(data.draw(seeds))
    weight = torch.rand(count, generator=generator, dtype=dtype)
    weight = data.draw(st.sampled_from((None, weight.masked_fill(weight < 0.3, 0))))
    incoming = torch.randn(() if reduction != "none" else (count,), generator=generator, dtype=dtype)
    found = value_and_gradients(box_regression_loss, given, kind, weight, incoming, reduction)
    in_double = {name: None if x is None else x.double() for name, x in given.items()}
    weight, incoming = None if weight is None else weight.double(), incoming.double()
    twin = value_and_gradients(reference.box_regression_loss, in_double, kind, weight, incoming, reduction)
    close = {"rtol": 1e-9, "atol": 1e-10} if wide else {"rtol": 2e-4, "atol": 2e-5}
    close["atol"] *= count if reduction == "sum" else 1
    for ours, expected in zip(found, twin, strict=True):
        torch.testing.assert_close(ours.double(), expected, **close)


def value_and_gradients(function, given, kind, weight, incoming, reduction) -> tuple[Tensor, ...]:
    inputs = [given[name].detach().clone().requires_grad_() for name in ("pred", "target")]
    constants = {name: given[name] for name in ("references", "delta_stds")}
    loss = function(*inputs, kind, weight, reduction=reduction, **constants)
    return loss.detach(), *torch.autograd.grad(loss, inputs, incoming)
