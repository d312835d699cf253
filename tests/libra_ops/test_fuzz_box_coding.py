"""Fuzz of encode_boxes, decode_boxes and its backward. What is drawn, and what may come out: fuzzing.py."""

import numpy as np
import pytest
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
    outcome,
    seeds,
    values,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from libra_ops import decode_boxes, encode_boxes, reference

# Around the kernels' blocks of 128 elements; classes multiply them.
ROWS = (1, 2, 3, 0, 5, 17, 43, 127, 129, 257)
CLASSES = (1, 2, 3, 0, 81)
STDS = (None, (0.1, 0.1, 0.2, 0.2), [1, 2, 3, np.float32(0.5)], (1e-3, 50, 1e3, 1))
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # the most that a rounding is off, relative


@st.composite
def indices(draw, images: tuple[int, ...], slots: int, rows: int) -> np.ndarray:
    """[*images, slots]: any rows, or the first and the last alone."""
    random = np.random.default_rng(draw(seeds))
    if draw(st.booleans()):
        return random.choice(np.array([0, max(rows, 1) - 1]), (*images, slots))
    return random.integers(0, max(rows, 1), (*images, slots))


@st.composite
def bad_stds(draw) -> object:
    number = draw(st.sampled_from((*NO_NUMBERS, 0, 0.0, -0.0, 1e39, 1e-46)))
    return draw(st.sampled_from((*WORDS[1:], 1.0, (1, 1, 1), (1,) * 5, torch.ones(4), (1, 1, number, 1))))


def bad_index(index: np.ndarray) -> list[object]:
    """Of another type, dtype or number of dimensions, or of more images."""
    wrong = [*WORDS[1:-2], index.astype(np.int32), index.astype(np.float64), index > 0, index[None], np.int64(0)]
    return [*wrong, np.zeros((len(index) + 1, *index.shape[1:]), np.int64)] if index.ndim == 2 else wrong


@st.composite
def images_of(draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leading sizes of a call, () for one image, and of its references, () for those that all images share."""
    images = draw(st.sampled_from(((), (1,), (2,), (3,), (0,))))
    return images, draw(st.sampled_from(((), images)))


@st.composite
def encode_calls(draw) -> Call:
    images, shared = draw(images_of())
    rows, target_rows = draw(st.sampled_from(ROWS)), draw(st.sampled_from(ROWS))
    chosen, target_chosen = draw(st.booleans()), draw(st.booleans())
    if not chosen and not target_chosen:
        target_rows = rows
    rows, target_rows = max(rows, int(chosen)), max(target_rows, int(target_chosen))
    if chosen:
        slots = draw(st.sampled_from(ROWS)) if target_chosen else target_rows
    else:
        slots = rows
    good = {
        "references": draw(boxes((*shared, rows))),
        "targets": draw(boxes((*images, target_rows))),
        "index": draw(indices(images, slots, rows)) if chosen else None,
        "target_index": draw(indices(images, slots, target_rows)) if target_chosen else None,
        "delta_stds": draw(st.sampled_from(STDS)),
    }
    call = Call(good)
    name = draw(st.sampled_from((None,) * 4 + tuple(good)))
    index = np.zeros((*images, slots), np.int64)
    one_more = np.ones((*images, target_rows + 1, 4))
    constant = torch.ones(*images, target_rows, 4, requires_grad=True)
    bad = {
        "references": [*bad_arrays(good["references"]), np.ones((7, rows, 4)), constant],
        "targets": [*bad_arrays(good["targets"]), np.ones((7, *one_more.shape)), constant]
        + ([] if target_chosen else [one_more]),
        "index": [*bad_index(index), np.zeros((*images, slots + 1), np.int64)],
        "target_index": [*bad_index(index), np.zeros((*images, slots + 1), np.int64)],
        "delta_stds": [draw(bad_stds())],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


@st.composite
def decode_calls(draw) -> Call:
    images, shared = draw(images_of())
    rows, chosen = draw(st.sampled_from(ROWS)), draw(st.booleans())
    slots = draw(st.sampled_from(ROWS)) if rows else 0
    classes = draw(st.sampled_from(((), *((count,) for count in CLASSES)))) if images else ()
    deltas = draw(values((*images, rows, *classes, 4)))
    random = np.random.default_rng(draw(seeds))
    sizes = random.integers(0, 200, (*images, 2)).astype(draw(st.sampled_from(("f4", "f8", "f2", "i8", "i4"))))
    good = {
        "references": draw(boxes((*shared, rows))),
        "deltas": deltas,
        "index": draw(indices(images, slots, rows)) if chosen else None,
        "delta_stds": draw(st.sampled_from(STDS)),
        "sizes": draw(st.sampled_from((None, sizes))),
    }
    call = Call(good)
    name = draw(st.sampled_from((None,) * 4 + tuple(good)))
    one_more, constant = np.ones((*images, rows + 1, 4)), torch.ones(*images, 2, 4, requires_grad=True)
    bad = {
        "references": [
            *bad_arrays(good["references"]),
            np.ones((7, rows, 4)),
            np.ones((*shared, rows + 1, 4)),
            constant,
        ],
        "deltas": [*WORDS, deltas > 0, deltas.astype(np.complex64), deltas[..., :3], deltas.tolist(), one_more],
        "index": bad_index(np.zeros((*images, slots), np.int64)),
        "delta_stds": [draw(bad_stds())],
        "sizes": [*WORDS[1:-2], sizes > 0, sizes[..., :1], sizes[None], sizes.astype(np.int16), constant],
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


def for_the_twin(arguments: dict[str, object]) -> tuple[dict[str, object], torch.dtype]:
    """Tensors of the dtype that is computed in, and one image as a batch of one."""
    first, second = (arguments[name] for name in tuple(arguments)[:2])
    dtype = torch.float64 if np.float64 in (first.dtype, second.dtype) else torch.float32
    found = {}
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            tensor = as_tensor(value, torch.int64 if "index" in name else dtype)
            value = tensor[None] if second.ndim == 2 and name != "references" else tensor
        found[name] = value
    found["delta_stds"] = tuple(float(std) for std in arguments["delta_stds"] or (1, 1, 1, 1))
    return found, dtype


@fuzz
@given(data=st.data())
def test_encode_boxes(data):
    call = data.draw(encode_calls())
    found = outcome(encode_boxes, call, conversions["torch"](data.draw))
    if found is None:
        return
    given, dtype = for_the_twin(call.arguments)
    expected = reference.encode_boxes(**given)
    assert found.dtype == dtype and found.dim() == call.arguments["targets"].ndim
    found = found if found.dim() == 3 else found[None]
    # A shift is the twin's arithmetic in its order; a logarithm is right to two units of the last place, as torch's is.
    torch.testing.assert_close(found[..., :2], expected[..., :2], rtol=0, atol=0, equal_nan=True)
    for k in (2, 3):
        close = {"rtol": 6 * UNIT[dtype], "atol": 4 * UNIT[dtype] / given["delta_stds"][k]}
        torch.testing.assert_close(found[..., k], expected[..., k], equal_nan=True, **close)
    if all((given[name].abs() <= 1e4).all() for name in ("references", "targets")):
        assert found.isfinite().all()


@pytest.mark.parametrize("with_gradient", [False, True])
@fuzz
@given(data=st.data())
def test_decode_boxes(with_gradient, data):
    call, leaves = data.draw(decode_calls()), []
    convert = conversions["torch"](data.draw)

    def convert_with_gradient(value: object) -> object:
        found = convert(value)
        if with_gradient and value is call.arguments["deltas"]:
            if isinstance(found, Tensor) and found.is_floating_point():
                found = found.detach().requires_grad_()
                leaves.append(found)
        return found

    found = outcome(decode_boxes, call, convert_with_gradient)
    if found is None:
        return
    given, dtype = for_the_twin(call.arguments)
    assert found.dtype == dtype and found.requires_grad == with_gradient
    batch = found.detach() if call.arguments["deltas"].ndim > 2 else found.detach()[None]
    check_decoded(batch, given, UNIT[dtype])
    if with_gradient:
        random = np.random.default_rng(data.draw(seeds))
        incoming = torch.from_numpy(random.standard_normal(found.shape)).to(dtype)
        (gradient,) = torch.autograd.grad(found, leaves, incoming)
        assert gradient.shape == leaves[0].shape and gradient.dtype == leaves[0].dtype
        check_rows_without_gradient(gradient.reshape(given["deltas"].shape), given)


def check_decoded(found, given, unit):
    """The twin's arithmetic in its order, but for the exponential, right to two units of the last place in both."""
    expected = reference.decode_boxes(**given)
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    whole = reference.decode_boxes(**{**given, "sizes": None}).double()
    half = (whole[..., 2:] - whole[..., :2]).abs() / 2
    parts = torch.maximum(whole.abs(), torch.cat((half, half), -1)).nan_to_num(posinf=3e38)
    same = (found == expected) | found.isnan()
    assert (same | ((found.double() - expected.double()).abs() <= 12 * unit * parts + 1e-44)).all()
    if given["sizes"] is not None:
        limits = given["sizes"].flip(-1).repeat(1, 2).reshape(-1, *[1] * (found.dim() - 2), 4)  # width, height, twice
        assert (found.isnan() | ((found >= 0) & (found <= limits))).all()


def check_rows_without_gradient(gradient, given):
    """Those that no slot has; and of the others the sides whose change is clipped, whatever the boxes hold."""
    sides = gradient[..., 2:]
    change = given["deltas"][..., 2:] * torch.tensor(given["delta_stds"][2:], dtype=given["deltas"].dtype)
    assert not sides[change.abs() > 4.2].any()
    if given["index"] is not None:
        rows = torch.zeros(gradient.shape[:2], dtype=torch.bool).scatter(1, given["index"], True)
        assert not gradient[~rows].any()


@fuzz
@given(data=st.data(), wide=st.booleans(), clip=st.booleans(), shared=st.booleans())
def test_gradient_of_proper_boxes(data, wide, clip, shared):
    dtype = torch.float64 if wide else torch.float32
    images, rows, classes = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(ROWS)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(seeds))
    # On grids, so that float32 and float64 agree about what is clipped: a limit of n + 1/3 px is no box's coordinate.
    corner = torch.randint(0, 1600, (*([] if shared else [images]), rows, 2), generator=generator)
    size = torch.randint(16, 800, corner.shape, generator=generator)
    references = torch.cat((corner, corner + size), -1).to(dtype) / 16
    deltas = (torch.randn(images, rows, classes, 4, generator=generator) * 192).round().to(dtype) / 64
    deltas = deltas[:, :, 0] if data.draw(st.booleans()) else deltas
    options = {
        "index": torch.from_numpy(data.draw(indices((images,), 17 if rows else 0, rows))),
        "delta_stds": data.draw(st.sampled_from(((1.0, 1.0, 1.0, 1.0), (0.25, 0.5, 0.5, 1.0)))),
        "sizes": torch.randint(40, 200, (images, 2), generator=generator).to(dtype) + 1 / 3 if clip else None,
    }
    if data.draw(st.booleans()):
        options["index"] = None
    gradients, incoming = [], None
    for function, of in ((decode_boxes, dtype), (reference.decode_boxes, torch.float64)):
        leaf = deltas.to(of).requires_grad_()
        own = {**options, "sizes": options["sizes"].to(of) if clip else None}
        found = function(references.to(of), leaf, **own)
        incoming = torch.randn(found.shape, generator=generator, dtype=dtype) if incoming is None else incoming
        gradients += torch.autograd.grad(found, leaf, incoming.to(of))
    close = {"rtol": 1e-10, "atol": 1e-9} if wide else {"rtol": 1e-4, "atol": 1e-2}
    torch.testing.assert_close(gradients[0].double(), gradients[1], **close)


@fuzz
@given(data=st.data(), images=st.integers(1, 3), slot=seeds)
def test_an_index_out_of_range(data, images, slot):
    """An error, and no read beyond the rows: what tests/sanitize.sh would see."""
    rows, slots = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from([size for size in ROWS if size]))
    good = data.draw(indices((images,), slots, rows))
    bad = good.copy()
    outside = (rows, -1, -rows - 1, 2**31, 2**32, 2**40, 2**60, 2**63 - 1, -(2**63))
    bad.reshape(-1)[slot % bad.size] = data.draw(st.sampled_from(outside))
    convert = conversions["torch"](data.draw)
    references, deltas = convert(data.draw(boxes((rows,)))), convert(data.draw(values((images, rows, 4))))
    good, bad = convert(good), convert(bad)
    with pytest.raises(RuntimeError, match="decode_boxes: index out of range"):
        decode_boxes(references, deltas, index=bad)
    for index, target_index in ((bad, good), (good, bad)):
        with pytest.raises(RuntimeError, match="encode_boxes: index out of range"):
            encode_boxes(references, deltas, index=index, target_index=target_index)
