"""libra_ops.numpy: the same calls on arrays, whose results are those of the functions on tensors, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import libra_ops
import libra_ops.numpy
from tests.attack.operations.draw import INT64, Draw
from tests.attack.operations.operation import Arguments, Operation, expect
from tests.attack.operations.overlaps import draw_matches, draw_overlaps
from tests.attack.operations.selection import draw_sampling


def _array(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_array, value))
    if not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _tensor(value: Any) -> Any:
    """An accepted array in native byte order, contiguous and in memory of its own."""
    if isinstance(value, (tuple, list)) and any(isinstance(item, np.ndarray) for item in value):
        return type(value)(map(_tensor, value))
    if not isinstance(value, np.ndarray):
        return value
    array = np.array(value, order="C", subok=False)
    if array.dtype == bool:
        array = array.view(np.uint8) != 0
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape))


def _with_threads(draw: Draw, given: Arguments) -> Arguments:
    given = {name: _array(value) for name, value in given.items()}
    if draw.chance(0.3):
        given["threads"] = draw.choice((1, 2, 3, 1024))
    return given


def draw_samples(draw: Draw) -> Arguments:
    given = draw_sampling(draw)
    given.pop("generator", None)
    given["seed"] = int(given["seed"][0]) if "seed" in given else draw.choice(INT64)
    return _with_threads(draw, given)


def check_overlaps(given: Arguments, overlaps: Any) -> None:
    boxes1, boxes2 = given["boxes1"], given["boxes2"]
    leading = np.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    double = any(boxes.dtype.char == "d" for boxes in (boxes1, boxes2))
    expect(overlaps, (*leading, boxes1.shape[-2], boxes2.shape[-2]), np.dtype("f8" if double else "f4"))


def check_matches(given: Arguments, matches: Any) -> None:
    shape = (given["targets"].shape[0], given["boxes"].shape[-2])
    for found, dtype in zip(matches, ("int64", "float32", "int8"), strict=True):
        expect(found, shape, np.dtype(dtype))


def check_samples(given: Arguments, samples: Any) -> None:
    shape = (given["matches"][0].shape[0], int(given["num_samples"]))
    for found, dtype in zip(samples, ("int64", "bool", "bool"), strict=True):
        expect(found, shape, np.dtype(dtype))


def compare_with(function: Any) -> Any:
    def compare(given: Arguments, found: Any) -> None:
        arguments = {name: _tensor(value) for name, value in given.items() if name != "threads"}
        if "seed" in arguments:
            arguments["seed"] = torch.tensor([int(arguments["seed"])])
        twins = function(**arguments)
        for one, twin in zip(*((x,) if not isinstance(x, tuple) else x for x in (found, twins)), strict=True):
            assert one.tobytes() == twin.numpy().tobytes(), "not what the function on tensors gives"

    return compare


OPERATIONS = (
    Operation(
        "numpy.box_iou",
        libra_ops.numpy.box_iou,
        lambda draw: _with_threads(draw, draw_overlaps(draw)),
        check_overlaps,
        compare_with(libra_ops.box_iou),
    ),
    Operation(
        "numpy.match_boxes",
        libra_ops.numpy.match_boxes,
        lambda draw: _with_threads(draw, draw_matches(draw)),
        check_matches,
        compare_with(libra_ops.match_boxes),
    ),
    Operation(
        "numpy.sample_iou_balanced",
        libra_ops.numpy.sample_iou_balanced,
        draw_samples,
        check_samples,
        compare_with(libra_ops.sample_iou_balanced),
    ),
)
