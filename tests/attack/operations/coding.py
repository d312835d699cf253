"""encode_boxes and decode_boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import libra_ops
from libra_ops import reference
from tests.attack.operations.draw import INT64, Draw
from tests.attack.operations.operation import Arguments, Operation, any_meta, arithmetic, close, expect, plain

_STDS = (None, None, (0.1, 0.1, 0.2, 0.2), [1, 2, 3, 0.5], (1e-3, 50, 1e3, 1))
_UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
_OUT_OF_RANGE = (r"(en|de)code_boxes: index out of range",)


def _index(draw: Draw, shape: tuple[int, ...], rows: int) -> Tensor:
    index = draw.numbers.integers(0, max(rows, 1), shape)
    if draw.chance(0.03) and index.size:
        index.reshape(-1)[draw.integer(0, index.size - 1)] = draw.choice((*INT64, rows, -rows - 1))
    return torch.from_numpy(index)


def _images(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leading sizes of a call, and those of its references."""
    images = draw.choice(((), (1,), (2,), (3,), (0,)))
    return images, draw.choice(((), images))


def draw_encoding(draw: Draw) -> Arguments:
    images, shared = _images(draw)
    rows, target_rows, slots = draw.length(), draw.length(), draw.length()
    chosen, target_chosen = draw.chance(0.5), draw.chance(0.5)
    if not chosen or not target_chosen:
        slots = target_rows if chosen else rows
        target_rows = target_rows if target_chosen else slots
    if not rows or not target_rows:
        slots = rows = target_rows = 0
    return {
        "references": draw.tensor(draw.boxes((*shared, rows))),
        "targets": draw.tensor(draw.boxes((*images, target_rows))),
        "index": _index(draw, (*images, slots), rows) if chosen else None,
        "target_index": _index(draw, (*images, slots), target_rows) if target_chosen else None,
        "delta_stds": draw.choice(_STDS),
    }


def check_deltas(given: Arguments, deltas: Any) -> None:
    references, targets, index = given["references"], given["targets"], given["index"]
    slots = references.shape[-2] if index is None else index.shape[-1]
    expect(deltas, (*targets.shape[:-2], slots, 4), arithmetic(references, targets))
    assert not deltas.requires_grad
    if not any_meta(given) and all((x.detach().abs() <= 1e4).all() for x in (references, targets)):
        stds = given["delta_stds"]
        if stds is None or min(map(float, stds)) > 1e-4:
            assert deltas.isfinite().all(), "a delta of moderate boxes is not finite"


def for_the_twin(given: Arguments, dtype: torch.dtype) -> Arguments:
    """Tensors of the dtype that is computed in, and one image as a batch of one."""
    one_image = given["targets" if "targets" in given else "deltas"].dim() == 2
    found = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            value = plain(value, torch.int64 if "index" in name else dtype)
            value = value[None] if one_image and name != "references" else value
        found[name] = value
    found["delta_stds"] = tuple(float(std) for std in given["delta_stds"] or (1, 1, 1, 1))
    return found


def compare_deltas(given: Arguments, deltas: Any) -> None:
    dtype = deltas.dtype
    arguments = for_the_twin(given, dtype)
    twin = reference.encode_boxes(**arguments)
    found = deltas.detach() if deltas.dim() == 3 else deltas.detach()[None]
    close(found[..., :2], twin[..., :2])
    for k in (2, 3):
        close(found[..., k], twin[..., k], 6 * _UNIT[dtype], 4 * _UNIT[dtype] / arguments["delta_stds"][k])


def draw_decoding(draw: Draw) -> Arguments:
    images, shared = _images(draw)
    rows = draw.length()
    slots = draw.length() if rows else 0
    classes = draw.choice(((), (), (1,), (3,), (0,), (81,))) if images else ()
    sizes = torch.from_numpy(draw.numbers.integers(0, 200, (*images, 2)))
    sizes = sizes.to(draw.choice((torch.float32, torch.float64, torch.float16, torch.int64, torch.int32)))
    if draw.chance(0.1) and sizes.is_floating_point():
        sizes = draw.tensor(draw.values((*images, 2)), sizes.dtype)
    return {
        "references": draw.tensor(draw.boxes((*shared, rows))),
        "deltas": draw.tensor(draw.values((*images, rows, *classes, 4))),
        "index": _index(draw, (*images, slots), rows) if draw.chance(0.5) else None,
        "delta_stds": draw.choice(_STDS),
        "sizes": draw.choice((None, sizes)),
    }


def check_decoded(given: Arguments, boxes: Any) -> None:
    references, deltas, index = given["references"], given["deltas"], given["index"]
    one_image = deltas.dim() == 2
    slots = references.shape[-2] if index is None else index.shape[-1]
    shape = (slots, 4) if one_image else (deltas.shape[0], slots, *deltas.shape[2:])
    expect(boxes, shape, arithmetic(references, deltas))
    if any_meta(given) or given["sizes"] is None or not boxes.numel():
        return
    sizes = plain(given["sizes"], boxes.dtype)
    limits = sizes.flip(-1).repeat(*[1] * (sizes.dim() - 1), 2)  # [..., 4]: width, height, twice
    limits = limits.reshape(*limits.shape[:-1], *[1] * (boxes.dim() - limits.dim()), 4).expand(boxes.shape)
    boxes, known = boxes.detach(), limits >= 0
    assert (boxes.isnan() | ((boxes >= 0) & (boxes <= limits)))[known].all(), "a box lies outside of its image"


def compare_decoded(given: Arguments, boxes: Any) -> None:
    """The twin's arithmetic in its order, but for the exponential, right to two units of the last place in both.

    Of images without a size nothing is promised, and where there is no box the index is not looked at.
    """
    sizes = given["sizes"]
    if not boxes.numel() or (sizes is not None and not (sizes.double() >= 0).all()):
        return
    unit = _UNIT[boxes.dtype]
    arguments = for_the_twin(given, boxes.dtype)
    twin = reference.decode_boxes(**arguments)
    found = boxes.detach().reshape(twin.shape)
    assert torch.equal(found.isnan(), twin.isnan()), "a NaN where the twin has none, or the other way round"
    whole = reference.decode_boxes(**{**arguments, "sizes": None}).double()
    half = (whole[..., 2:] - whole[..., :2]).abs() / 2
    parts = torch.maximum(whole.abs(), torch.cat((half, half), -1)).nan_to_num(posinf=3e38)
    same = (found == twin) | found.isnan()
    assert (same | ((found.double() - twin.double()).abs() <= 12 * unit * parts + 1e-44)).all(), "not the twin's boxes"


OPERATIONS = (
    Operation(
        "encode_boxes", libra_ops.encode_boxes, draw_encoding, check_deltas, compare_deltas, errors=_OUT_OF_RANGE
    ),
    Operation(
        "decode_boxes",
        libra_ops.decode_boxes,
        draw_decoding,
        check_decoded,
        compare_decoded,
        leaves=("deltas",),
        errors=_OUT_OF_RANGE,
    ),
)
