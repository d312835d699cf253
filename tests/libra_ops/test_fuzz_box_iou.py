"""Fuzz of box_iou on tensors and arrays, and of its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import pytest
import torch
from fuzzing import (
    DOORS,
    LENGTHS,
    LONG_LENGTHS,
    WORDS,
    Call,
    as_array,
    as_tensor,
    bad_arrays,
    boxes,
    conversions,
    fuzz,
    is_huge,
    lengths,
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import box_iou, reference

KINDS = ("iou", "iof", "giou", "diou", "ciou")


@st.composite
def calls(draw) -> Call:
    n, m = draw(lengths), draw(lengths)
    if draw(st.integers(0, 9)) == 0:
        n, m = draw(st.permutations((draw(st.sampled_from(LONG_LENGTHS)), draw(st.sampled_from(LENGTHS[:4])))))
    leading1, leading2 = draw(
        st.sampled_from([((), ()), ((2,), (2,)), ((), (3,)), ((2, 1), (3,)), ((1,), ()), ((0,), (1,)), ((1, 1), (1,))])
    )
    call = Call({"boxes1": draw(boxes((*leading1, n))), "boxes2": draw(boxes((*leading2, m)))})
    call.arguments["kind"] = draw(st.sampled_from(KINDS))
    name = draw(st.sampled_from([None, None, "boxes1", "boxes2", "kind", "leading"]))
    if name == "kind":
        return call.replace("kind", draw(st.sampled_from(("IoU", "", *WORDS, 0, 10**5000))))
    if name == "leading":
        call.arguments["boxes1"] = draw(boxes((2, 3, n)))
        return call.replace("boxes2", draw(boxes((4, m))))
    if name:
        return call.replace(name, draw(st.sampled_from(bad_arrays(call.arguments[name]))))
    return call


@pytest.mark.parametrize("door", DOORS)
@fuzz
@given(data=st.data())
def test_box_iou(door, data):
    call = data.draw(calls())
    overlaps = outcome(DOORS[door].box_iou, call, conversions[door](data.draw))
    if overlaps is not None:
        check_overlaps(as_array(overlaps), **call.arguments)


def check_overlaps(overlaps: np.ndarray, boxes1: np.ndarray, boxes2: np.ndarray, kind: str) -> None:
    double = np.float64 in (boxes1.dtype, boxes2.dtype)
    arithmetic = torch.float64 if double else torch.float32
    a, b = as_tensor(boxes1, arithmetic), as_tensor(boxes2, arithmetic)
    wide = reference.box_iou(a.double(), b.double(), kind).numpy()
    assert overlaps.dtype == (np.float64 if double else np.float32) and overlaps.shape == wide.shape
    poisoned = a.isnan().any(-1)[..., :, None] | b.isnan().any(-1)[..., None, :]
    assert np.isnan(overlaps[poisoned.numpy()]).all()
    # Each pair of calm boxes: the twin's arithmetic in the same order, but for the arc tangent.
    huge1, huge2 = is_huge(a.numpy()), is_huge(b.numpy())
    calm = ~(huge1[..., :, None] | huge2[..., None, :])
    a0, b0 = (x.masked_fill(torch.from_numpy(huge)[..., None], 0) for x, huge in ((a, huge1), (b, huge2)))
    narrow = reference.box_iou(a0, b0, kind).numpy()
    if kind == "ciou":
        np.testing.assert_allclose(overlaps[calm], narrow[calm], rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(overlaps[calm], narrow[calm])
    finite = (a.isfinite().all(-1)[..., :, None] & b.isfinite().all(-1)[..., None, :]).numpy()
    if kind in ("iou", "iof", "giou"):
        np.testing.assert_allclose(overlaps[finite & ~calm], wide[finite & ~calm], rtol=1e-5, atol=1e-6)
    if kind in ("iou", "iof"):
        assert ((overlaps[finite] >= 0) & (overlaps[finite] <= 1)).all()


@fuzz
@given(data=st.data())
def test_backward_of_any_boxes(data):
    n, m, kind = data.draw(lengths), data.draw(lengths), data.draw(st.sampled_from(KINDS))
    convert = conversions["torch"](data.draw)
    inputs = [convert(data.draw(boxes((count,)))).detach().requires_grad_() for count in (n, m)]
    overlaps = box_iou(*inputs, kind)
    incoming = convert(data.draw(values((n, m)))).to(overlaps.dtype)
    silent = torch.from_numpy(np.random.default_rng(data.draw(seeds)).random(n) < 0.3)
    incoming = incoming.masked_fill(silent[:, None], 0)
    found = torch.autograd.grad(overlaps, inputs, incoming)
    for gradient, boxes_ in zip(found, inputs, strict=True):
        assert gradient.shape == boxes_.shape and gradient.dtype == boxes_.dtype
    assert not found[0][silent].any()


@fuzz
@given(n=lengths, m=lengths, kind=st.sampled_from(KINDS), seed=seeds)
def test_backward_of_boxes_without_ties(n, m, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for count in (n, m):
        corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 10
        inputs.append(torch.cat([corners.amin(-2), corners.amax(-2) + 0.1], -1).requires_grad_())
    incoming = torch.randn(n, m, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(box_iou(*inputs, kind), inputs, incoming)
    expected = torch.autograd.grad(reference.box_iou(*inputs, kind), inputs, incoming)
    for gradient, twin in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, twin)
