"""Fuzz of topk_per_level. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import torch
from fuzzing import Call, as_tensor, bad_arrays, conversions, fuzz, lengths, outcome, values
from hypothesis import given
from hypothesis import strategies as st

from libra_ops import reference, topk_per_level

HALVES = (np.float32, np.float16)


@st.composite
def calls(draw) -> Call:
    level_sizes = draw(st.lists(lengths, max_size=4))
    scores = draw(values((draw(st.integers(0, 3)), sum(level_sizes)), HALVES))
    call = Call({"scores": scores, "level_sizes": level_sizes, "k": draw(st.sampled_from((0, 1, 3, 64, 2**30)))})
    call.arguments["threshold"] = draw(st.sampled_from((None, None, 0.0, 0.3, -1e30, np.inf)))
    name = draw(st.sampled_from([None, None, None, "scores", "level_sizes", "k", "threshold"]))
    if name == "scores":
        bad = [array for array in bad_arrays(scores) if not isinstance(array, np.ndarray) or array.ndim != 2]
        return call.replace(name, draw(st.sampled_from(bad)))
    if name == "level_sizes":
        return call.replace(name, draw(st.sampled_from(([*level_sizes, 1], [0.5], 3, [-1, 1 + sum(level_sizes)]))))
    if name:
        return call.replace(name, draw(st.sampled_from(("text", b"", [], np.nan, True))))
    return call


@fuzz
@given(data=st.data())
def test_topk_per_level(data):
    call = data.draw(calls())
    found = outcome(topk_per_level, call, conversions["torch"](data.draw))
    if found is not None:
        arguments = {**call.arguments, "scores": as_tensor(call.arguments["scores"])}
        if not arguments["level_sizes"]:
            assert found[0].shape == (len(arguments["scores"]), 0)
            return
        expected = reference.topk_per_level(**arguments)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
