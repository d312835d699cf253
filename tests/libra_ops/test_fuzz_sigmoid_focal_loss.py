"""Fuzz of sigmoid_focal_loss and its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import torch
from fuzzing import NO_FRACTIONS, NO_NUMBERS, WORDS, Call, as_tensor, conversions, fuzz, outcome, seeds, values
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import reference, sigmoid_focal_loss

SHAPES = ((1,), (3,), (0, 4), (3, 0), (3, 4), (300, 1), (2, 33, 5), (17, 257), (5, 0, 4))


@st.composite
def calls(draw) -> Call:
    shape = draw(st.sampled_from(SHAPES))
    random = np.random.default_rng(draw(seeds))
    labels = random.integers(-2, shape[-1] + 3, shape[:-1])
    if draw(st.booleans()):
        labels = np.asarray(labels * 2**60)
    good = {
        "logits": draw(values(shape)),
        "labels": np.asarray(labels),
        "mask": np.asarray(random.random(shape[:-1]) < 0.7) if draw(st.booleans()) else None,
        "alpha": draw(st.sampled_from([0.25, 0, 1, 0.9])),
        "gamma": draw(st.sampled_from([2.0, 2, 0, 0.5, 1e4])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
    }
    call = Call(good)
    name = draw(st.sampled_from([None, None, None, *good]))
    bad = {
        "logits": [*WORDS[:-2], np.zeros(shape, np.int64), np.float32(1), np.zeros((*shape, 2, 1), np.float32)],
        "labels": [*WORDS[:-2], labels.astype(np.int32), np.zeros((*labels.shape, 1), np.int64)],
        "mask": [*WORDS[1:-2], labels, np.zeros((*labels.shape, 1), bool)],
        "alpha": NO_FRACTIONS,
        "gamma": [*NO_NUMBERS, 1e30],
        "reduction": ["Sum", *WORDS],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@fuzz
@given(data=st.data())
def test_sigmoid_focal_loss(data):
    call, leaves = data.draw(calls()), []
    convert = conversions["torch"](data.draw)

    def convert_with_gradient(value: object) -> object:
        found = convert(value)
        if value is call.arguments["logits"] and isinstance(found, torch.Tensor) and found.is_floating_point():
            found = found.detach().requires_grad_()
            leaves.append(found)
        return found

    loss = outcome(sigmoid_focal_loss, call, convert_with_gradient)
    if loss is None:
        return
    incoming = torch.rand_like(loss)
    (gradient,) = torch.autograd.grad(loss, leaves, incoming)
    check_loss(loss.detach(), gradient, **call.arguments)


def check_loss(loss, gradient, logits, labels, mask, **options):
    assert loss.dtype == (torch.float64 if logits.dtype == np.float64 else torch.float32)
    assert gradient.shape == logits.shape and gradient.numpy().dtype == logits.dtype
    logits, labels = as_tensor(logits), as_tensor(labels)
    mask = torch.ones(labels.shape, dtype=torch.bool) if mask is None else as_tensor(mask)
    assert not gradient[~mask].any()
    if not (logits.abs() < 1e12).all():
        return
    assert gradient.isfinite().all()
    expected = reference.sigmoid_focal_loss(logits.double(), labels, mask, **options)
    size = logits.double().abs().sum().item() if options["reduction"] == "sum" else 0.0
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6 * (1 + size), equal_nan=True)
