"""Fuzz of match_boxes on tensors and arrays. What is drawn, and what may come out: fuzzing.py."""

import math

import numpy as np
import pytest
import torch
from fuzzing import (
    DOORS,
    LENGTHS,
    LONG_LENGTHS,
    NO_FRACTIONS,
    WORDS,
    Call,
    as_array,
    as_tensor,
    bad_arrays,
    boxes,
    conversions,
    fuzz,
    lengths,
    outcome,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import reference

fractions = st.one_of(
    st.sampled_from([0, 0.5, 1, 0.3, np.float32(0.7), np.float64(1e-320), -0.0]), st.floats(0, 1, width=32)
)


@st.composite
def calls(draw) -> Call:
    batch, n, g = draw(st.sampled_from([1, 1, 2, 3, 0])), draw(lengths), draw(st.sampled_from(LENGTHS[:9]))
    if draw(st.integers(0, 9)) == 0:
        n = draw(st.sampled_from(LONG_LENGTHS))
    flags = np.random.default_rng(draw(seeds)).random((2, batch, g))
    share = draw(st.sampled_from([0.0, 0.7, 1.0]))
    low, high = sorted((draw(fractions), draw(fractions)))
    crowd = draw(st.sampled_from(["none", "flags", "regions"]))
    good = {
        "boxes": draw(boxes((batch, n) if draw(st.booleans()) else (n,))),
        "targets": draw(boxes((batch, g))),
        "valid": flags[0] < share,
        "positive_iou": high,
        "negative_iou": low,
        "min_positive_iou": draw(st.one_of(st.none(), fractions)),
        "crowd": {"none": None, "flags": flags[1] < 0.3}.get(crowd, draw(boxes((batch, draw(st.integers(0, 5)))))),
    }
    call = Call(good)
    name = draw(st.sampled_from([None, None, None, *good]))
    if name in ("boxes", "targets"):
        other = draw(boxes((batch + 2, n)))
        bad = [*bad_arrays(good[name]), other, other[None], good[name][0] if len(good[name].shape) == 2 and n else 0]
    elif name == "valid":
        valid = good["valid"]
        bad = [
            valid.astype(np.uint8),
            valid[..., None],
            valid[None],
            np.ones((batch, g + 1), bool),
            valid * 1.0,
            *WORDS,
        ]
    elif name == "crowd":
        bad = [np.ones((batch + 1, g), bool), np.ones(g, bool), np.ones((batch, g, 4), int), np.ones((batch + 1, 2, 4))]
        bad += [np.ones((2, 4)), np.ones((batch, g)), *WORDS[1:]]
    elif name:
        bad = [x for x in NO_FRACTIONS if not (name == "min_positive_iou" and x is None)]
        if name == "negative_iou" and high < 1:
            bad += [high + (1 - high) / 2, 1.0]
    return call.replace(name, draw(st.sampled_from(bad))) if name else call


@pytest.mark.parametrize("door", DOORS)
@fuzz
@given(data=st.data())
def test_match_boxes(door, data):
    call = data.draw(calls())
    matches = outcome(DOORS[door].match_boxes, call, conversions[door](data.draw))
    if matches is not None:
        check_matches(*map(as_array, matches), **call.arguments)


def check_matches(index, iou, state, boxes, targets, valid, positive_iou, negative_iou, min_positive_iou, crowd):
    shape = (targets.shape[0], boxes.shape[-2])
    for found, dtype in ((index, np.int64), (iou, np.float32), (state, np.int8)):
        assert found.shape == shape and found.dtype == dtype
    assert ((iou >= 0) & (iou <= 1)).all() and np.isin(state, (-1, 0, 1)).all()
    assert ((index >= 0) & (index < max(1, targets.shape[1]))).all()
    # inf to NaN: not finite either, and the twin's box_iou goes over to double for all pairs where one box is huge.
    boxes, targets = (as_tensor(x, torch.float32) for x in (boxes, targets))
    boxes, targets = (x.masked_fill(x.isinf(), math.nan) for x in (boxes, targets))
    valid = as_tensor(valid)
    if crowd is not None:
        flags, crowd = crowd.dtype == bool, as_tensor(crowd)
        if flags:
            valid, crowd = valid & ~crowd, targets.masked_fill(~crowd[..., None], 0)
        crowd = crowd.float()
        crowd = crowd.masked_fill(~crowd.isfinite().all(-1, keepdim=True), 0)  # such a region counts for nothing
    rules = [None if x is None else float(np.float32(x)) for x in (positive_iou, negative_iou, min_positive_iou)]
    expected = reference.match_boxes(boxes, targets, valid, *rules, crowd)
    if any((x.abs() > 1e18).any() for x in (boxes, targets, crowd) if x is not None):
        np.testing.assert_allclose(iou, expected[1].numpy(), rtol=1e-5, atol=1e-6)
        return
    for found, twin in zip((index, iou, state), expected, strict=True):
        np.testing.assert_array_equal(found, twin.numpy())
