"""Fuzz of sample_iou_balanced on tensors and arrays. What is drawn, and what may come out: fuzzing.py."""

import math

import numpy as np
import pytest
import torch
from fuzzing import (
    DOORS,
    LENGTHS,
    NO_COUNTS,
    NO_FRACTIONS,
    NO_NUMBERS,
    WORDS,
    Call,
    as_array,
    as_tensor,
    conversions,
    fuzz,
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import reference

INTEGERS = np.array([0, 1, -1, 2**31, 2**32 + 1, -(2**63), 2**63 - 1])  # targets may be any numbers


@st.composite
def matches(draw, batch: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(draw(seeds))
    index = random.choice(INTEGERS, (batch, n)) if draw(st.booleans()) else random.integers(0, 5, (batch, n))
    iou = np.abs(draw(values((batch, n))))
    if draw(st.booleans()):
        iou = (random.integers(0, 13, (batch, n)) / draw(st.sampled_from([12, 24, 1]))).astype(iou.dtype)
    shares = draw(st.sampled_from([(0.2, 0.7, 0.1), (1, 0, 0), (0, 1, 0), (0.02, 0.97, 0.01), (0.5, 0, 0.5)]))
    state = random.choice(np.array([1, 0, -1], np.int8), (batch, n), p=shares)
    if draw(st.integers(0, 5)) == 0:
        state = random.integers(-128, 128, (batch, n)).astype(np.int8)  # whatever is neither 1 nor 0 is ignored
    return index.astype(np.int64), iou, state


@st.composite
def calls(draw) -> Call:
    batch, n = draw(st.sampled_from([1, 2, 3, 0])), draw(st.sampled_from((*LENGTHS, 513)))
    edges = draw(st.sampled_from([(0.0, 0.5), (0, 1), (-1, 1.5), (0.1, 0.1000001), (0.3, 1e300), (-1e300, 1e300)]))
    good = {
        "matches": draw(matches(batch, n)),
        "num_samples": draw(st.sampled_from([0, 1, 2, 3, 16, 64, 300, np.int64(33)])),
        "positive_fraction": draw(st.sampled_from([0, 0.25, 0.29, 1, 1.0, np.float32(0.5)])),
        "num_bins": draw(st.sampled_from([1, 2, 3, 5, 64])),
        "interval": draw(st.sampled_from([edges, list(edges)])),
        "max_negatives_per_positive": draw(st.sampled_from([None, 0, 0.5, 3, 1.15, 1e300])),
        "positives": draw(st.sampled_from(["instance_balanced", "random"])),
        "bins": draw(st.sampled_from(["paper", "published"])),
    }
    call = Call(good)
    name = draw(st.sampled_from([None, None, None, *good]))
    if name == "matches":
        found, position = good["matches"], draw(st.integers(0, 2))
        array = found[position]
        wrong = [array > 0, array.astype(np.complex64), array[None], np.zeros((batch, n + 1)), *WORDS]
        broken = [(*found[:position], bad, *found[position + 1 :]) for bad in wrong]
        return call.replace(name, draw(st.sampled_from([*broken, (), found[:2], (*found, array), *WORDS])))
    bad = {
        "num_samples": NO_COUNTS,
        "positive_fraction": NO_FRACTIONS,
        "num_bins": (*NO_COUNTS, 0, 65, 10**9),
        "interval": (*WORDS, (0,), (1, 0), (0.5, 0.5), (0, math.inf), (math.nan, 1), (0, 10**400), "ab", (0, True)),
        "max_negatives_per_positive": NO_NUMBERS[1:],
        "positives": ("all", *WORDS),
        "bins": ("Paper", *WORDS),
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@pytest.mark.parametrize("door", DOORS)
@fuzz
@given(data=st.data())
def test_sample_iou_balanced(door, data):
    call, number = data.draw(calls()), data.draw(st.integers(-(2**63), 2**63 - 1))
    if door == "torch":
        generator = torch.Generator().manual_seed(number)
        number = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, generator=generator).item()
        seed = {"generator": generator.manual_seed(generator.initial_seed())}
    else:
        seed = {"seed": number}
    samples = outcome(DOORS[door].sample_iou_balanced, call, conversions[door](data.draw), **seed)
    if samples is not None:
        check_samples([as_array(x) for x in samples], number, **call.arguments)


def check_samples(samples, seed, matches, num_samples, positive_fraction, **options):
    index, iou, state = matches
    expected = reference.sample_iou_balanced(
        as_tensor(index), as_tensor(iou, torch.float32), as_tensor(state), seed, int(num_samples),
        int(num_samples * float(positive_fraction) + 1e-6), **options,
    )  # fmt: skip
    for found, twin, dtype in zip(samples, expected, (np.int64, bool, bool), strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, twin.numpy())
