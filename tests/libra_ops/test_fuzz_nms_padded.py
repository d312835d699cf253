"""Fuzz of nms_padded. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
from fuzzing import (
    LENGTHS,
    LONG_LENGTHS,
    NO_COUNTS,
    NO_FRACTIONS,
    NO_NUMBERS,
    WORDS,
    Call,
    as_array,
    as_tensor,
    bad_arrays,
    boxes,
    conversions,
    fuzz,
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import nms_padded, reference

GROUPS = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**32])


@st.composite
def calls(draw) -> Call:
    batch, n = draw(st.sampled_from([1, 1, 2, 3, 0])), draw(st.sampled_from(LENGTHS))
    if draw(st.integers(0, 9)) == 0:
        n = draw(st.sampled_from(LONG_LENGTHS[:3]))
    random = np.random.default_rng(draw(seeds))
    flags = random.random((batch, n)) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    groups = random.choice(GROUPS[: draw(st.integers(1, len(GROUPS)))], (batch, n))
    good = {
        "boxes": draw(boxes((batch, n))),
        "scores": draw(values((batch, n))),
        "groups": draw(st.sampled_from([None, groups])),
        "iou_threshold": draw(st.sampled_from([0, 0.5, 1, 0.3, 1 / 3, np.float32(0.7), -0.0])),
        "max_output": draw(st.sampled_from([0, 1, 2, 10, 300, np.int64(16), 2**62])),
        "score_threshold": draw(st.sampled_from([None, 0, 0.05, -1e30, np.float32(0.25)])),
        "valid": draw(st.sampled_from([None, flags])),
    }
    call = Call(good)
    name = draw(st.sampled_from([None, None, None, *good]))
    wide = np.ones((batch, n + 1))
    bad = {
        "boxes": [*bad_arrays(good["boxes"]), np.zeros((batch + 1, n, 4)), np.zeros((n, 4))],
        "scores": [*WORDS, wide, groups, flags, good["scores"][..., None]],
        "groups": [*WORDS[1:], wide.astype(np.int64), flags, groups.astype(np.int32), groups[..., None]],
        "iou_threshold": NO_FRACTIONS,
        "max_output": [x for x in NO_COUNTS if not (type(x) is int and 0 <= x < 2**63)],
        "score_threshold": [x for x in NO_NUMBERS[1:] if not isinstance(x, (float, np.floating)) or not x > -3],
        "valid": [*WORDS[1:], wide > 0, groups, flags[..., None]],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@fuzz
@given(data=st.data())
def test_nms_padded(data):
    call = data.draw(calls())
    found = outcome(nms_padded, call, conversions["torch"](data.draw))
    if found is None:
        return
    tensors = {k: as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in call.arguments.items()}
    index, valid = map(as_array, found)
    limit = min(int(tensors["max_output"]), tensors["boxes"].shape[1])
    threshold = tensors["score_threshold"]
    rules = {
        "iou_threshold": float(tensors["iou_threshold"]),
        "max_output": limit,
        "score_threshold": None if threshold is None else float(threshold),
        "valid": tensors["valid"],
    }
    expected = reference.nms_padded(tensors["boxes"], tensors["scores"], tensors["groups"], **rules)
    assert index.shape == valid.shape == (tensors["boxes"].shape[0], limit)
    np.testing.assert_array_equal(valid, expected[1].numpy())
    np.testing.assert_array_equal(index, expected[0].numpy())
