"""Fuzz of multiscale_roi_align and its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import torch
from fuzzing import NO_COUNTS, NO_NUMBERS, WORDS, Call, boxes, conversions, fuzz, outcome, seeds
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import multiscale_roi_align, reference

CHANNELS = (0, 1, 3, 31, 32, 33, 65)
SIZES = (1, 2, 3, 7, 8, 9, 17, 30)


@st.composite
def calls(draw) -> Call:
    batch, slots, levels = draw(st.sampled_from((0, 1, 2))), draw(st.integers(0, 5)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(seeds))
    channels = draw(st.sampled_from(CHANNELS))
    dtype = draw(st.sampled_from((np.float32, np.float32, np.float64, np.float16)))
    maps = [
        random.standard_normal((batch, channels, draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES)))).astype(
            dtype
        )
        for _ in range(levels)
    ]
    if draw(st.booleans()):  # channels-last
        maps = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in maps]
    ratio = draw(st.sampled_from((0, 0, 1, 2, 5, 64)))
    call = Call(
        {
            "features": maps,
            "boxes": draw(boxes((batch, slots))),
            "valid": draw(st.sampled_from((None, random.random((batch, slots)) < 0.7))),
            "strides": tuple(draw(st.sampled_from((0.5, 1, 4, 32))) for _ in range(levels)),
            "output_size": draw(st.sampled_from((1, 2, 3, 7))),
            "sampling_ratio": ratio,
            "finest_scale": draw(st.sampled_from((0.5, 56.0, 1e30))),
        }
    )
    name = draw(st.sampled_from((None,) * 5 + tuple(call.arguments)))
    bad = {
        "features": (
            *WORDS[:-2],
            [],
            [None],
            maps[0],
            [*maps, np.zeros((batch, channels + 1, 2, 2), dtype)],
            [maps[0][..., 0]],
        ),
        "boxes": (*WORDS[:-2], np.zeros((batch, slots, 5)), np.zeros((batch + 1, slots, 4)), np.zeros((slots, 4))),
        "valid": ("text", [], np.zeros((batch, slots)), np.zeros((batch, slots + 1), bool)),
        "strides": ("text", None, 4, (), (*call.arguments["strides"], 4), (-1.0,) * levels, ("4",) * levels),
        "output_size": (*NO_COUNTS, 0, 65),
        "sampling_ratio": (*NO_COUNTS, 65),
        "finest_scale": (*NO_NUMBERS, 0),
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@fuzz
@given(data=st.data())
def test_multiscale_roi_align(data):
    call = data.draw(calls())
    convert = as_they_lie(conversions["torch"](data.draw), data.draw(st.booleans()))
    pooled = outcome(multiscale_roi_align, call, convert)
    if pooled is None:
        return
    arguments = {name: plain(value) for name, value in call.arguments.items()}
    leaves = [x.requires_grad_() for x in arguments.pop("features")]
    again = multiscale_roi_align(leaves, **arguments)
    torch.testing.assert_close(pooled, again, rtol=0, atol=0)
    gradient = torch.randn(again.shape, generator=torch.Generator().manual_seed(0)).to(again.dtype)
    grads = torch.autograd.grad(again, leaves, gradient)
    assert again.isfinite().all() and all(x.isfinite().all() for x in grads)
    if (
        not call.arguments["boxes"].size
        or np.abs(np.nan_to_num(call.arguments["boxes"], posinf=0, neginf=0)).max() > 1e4
    ):
        return  # where the twin would visit every point of boxes without end
    wide = torch.float64 if again.dtype == torch.float64 else torch.float32
    wide_leaves = [x.detach().to(wide).requires_grad_() for x in leaves]
    expected = reference.multiscale_roi_align(wide_leaves, **arguments)
    rounded = {"rtol": 2e-3, "atol": 2e-3} if again.dtype == torch.float16 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(again.to(wide), expected, **rounded)
    expected_grads = torch.autograd.grad(expected, wide_leaves, gradient.to(wide), materialize_grads=True)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got.to(wide), wanted, **rounded)


def as_they_lie(convert, as_given: bool):
    """Maps as they lie in memory, or in any layout, but not each its own dtype or device; the rest as drawn."""

    def of(value: object) -> object:
        if isinstance(value, list) and as_given:
            return plain(value)
        return convert(value)

    return of


def plain(value: object) -> object:
    """Arrays as tensors with the same strides."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())
