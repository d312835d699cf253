"""Fuzz of balanced_l1_loss and its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import torch
from fuzzing import (
    NO_NUMBERS,
    WORDS,
    Call,
    as_tensor,
    bad_arrays,
    conversions,
    fuzz,
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import balanced_l1_loss, reference

SHAPES = ((), (1,), (0, 4), (3, 4), (17, 4), (2, 33, 4), (257,), (1030, 4), (5, 0, 4), (2, 1, 3, 4))


@st.composite
def calls(draw) -> Call:
    shape = draw(st.sampled_from(SHAPES))
    weight_shape = draw(st.sampled_from([shape, shape[:-1] + (1,) * bool(shape), shape[1:], ()]))
    weight = np.asarray(np.abs(draw(values(weight_shape))))
    masked = np.random.default_rng(draw(seeds)).random(weight_shape) < 0.3
    good = {
        "pred": draw(values(shape)),
        "target": draw(values(shape)),
        "weight": np.where(masked, weight.dtype.type(0), weight) if draw(st.booleans()) else None,
        "alpha": draw(st.sampled_from([0.5, 0.1, 2, 1.5, np.float32(0.25)])),
        "gamma": draw(st.sampled_from([1.5, 1, 3, 5.0])),
        "beta": draw(st.sampled_from([1.0, 0.11, 2, 1e-3, 50, 1e4])),
        "formula": draw(st.sampled_from(["paper", "published"])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
    }
    call = Call(good)
    name = draw(st.sampled_from([None, None, None, *good]))
    if name in ("pred", "target"):
        other = np.zeros((*shape, 2), np.float32)
        bad = [x for x in bad_arrays(np.zeros((2, 4))) if not isinstance(x, np.ndarray) or x.dtype.kind != "f"]
        return call.replace(name, draw(st.sampled_from([*bad, other])))
    numbers = [*NO_NUMBERS, 0, 0.0, -0.0]
    bad = {
        "weight": [*WORDS[1:-2], np.ones(7, np.float32), np.ones((*shape, 2, 1), np.float32), np.ones(shape, bool)],
        "alpha": [*numbers, 1e-3, 1e-320],
        "gamma": [*numbers, 1e4, 1e308],
        "beta": [*numbers, 1e-38, 5e-324],
        "formula": ["Paper", *WORDS],
        "reduction": ["Sum", *WORDS],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@fuzz
@given(data=st.data())
def test_balanced_l1_loss(data):
    call, leaves = data.draw(calls()), []
    convert = conversions["torch"](data.draw)

    def convert_with_gradient(value: object) -> object:
        found = convert(value)
        if value is call.arguments["pred"] or value is call.arguments["target"]:
            if isinstance(found, torch.Tensor) and found.is_floating_point():
                found = found.detach().requires_grad_()
                leaves.append(found)
        return found

    loss = outcome(balanced_l1_loss, call, convert_with_gradient)
    if loss is None:
        return
    incoming = as_tensor(data.draw(values(tuple(loss.shape))), loss.dtype)
    found = torch.autograd.grad(loss, leaves, incoming)
    check_loss(loss.detach(), found, incoming, **call.arguments)


def check_loss(loss, gradients, incoming, pred, target, weight, **options):
    arithmetic = torch.float64 if pred.dtype == np.float64 else torch.float32
    assert loss.dtype == arithmetic
    twins = [as_tensor(x).to(arithmetic).double().requires_grad_() for x in (pred, target)]
    masked = torch.zeros(pred.shape, dtype=torch.bool)
    if weight is not None:
        weight = as_tensor(weight).to(arithmetic).double().expand(pred.shape)
        masked = weight == 0
    for gradient, x in zip(gradients, (pred, target), strict=True):
        assert gradient.shape == x.shape and gradient.numpy().dtype == x.dtype
        if incoming.isfinite().all():
            assert not gradient[masked].any()
    expected = reference.balanced_l1_loss(*twins, weight, **options)
    assert loss.shape == expected.shape
    sizes = [x.detach().abs().max().item() for x in (*twins, expected) if x.numel()]
    if weight is not None and weight.numel():
        sizes.append(weight.max().item())
    if not all(size < 1e12 for size in sizes):
        return
    size = max(sizes, default=1.0) if options["reduction"] != "none" else 0.0
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-6 * (1 + size))
