"""integrate_pyramid, scatter_pyramid and multiscale_roi_align."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import libra_ops
from libra_ops import reference
from tests.attack.operations.draw import Draw
from tests.attack.operations.memory import lay_out
from tests.attack.operations.operation import Arguments, Operation, any_meta, close, expect, plain

_CHANNELS = (0, 1, 2, 3, 5, 31, 33, 64, 65)
_SIDES = (1, 2, 3, 5, 7, 8, 9, 16, 17)
_DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _maps(draw: Draw, count: int) -> list[Tensor]:
    """Maps of one dtype, halved from one to the next or of any sizes, some channels-last."""
    batch, channels = draw.choice((1, 1, 2, 3, 0)), draw.choice(_CHANNELS)
    dtype, last = draw.choice(_DTYPES), draw.chance(0.5)
    height, width = draw.choice(_SIDES), draw.choice(_SIDES)
    if channels > 5:
        height, width = min(height, 7), min(width, 7)
    maps = []
    for _ in range(count):
        found = draw.tensor(draw.values((batch, channels, height, width)), dtype)
        found = found.contiguous(memory_format=torch.channels_last) if last else found
        maps.append(lay_out(draw, found) if draw.chance(0.1) else found)
        if draw.chance(0.7):
            height, width = -(-height // 2), -(-width // 2)
        else:
            height, width = draw.choice(_SIDES[:5]), draw.choice(_SIDES[:5])
    return maps


def draw_integration(draw: Draw) -> Arguments:
    maps = _maps(draw, draw.choice((1, 2, 3, 3, 4, 5, 8)))
    return {"features": maps, "level": draw.integer(0, len(maps) - 1)}


def draw_scattering(draw: Draw) -> Arguments:
    given = draw_integration(draw)
    like = given["features"][given["level"]]
    refined = draw.tensor(draw.values(tuple(like.shape)), like.dtype)
    return {"features": given["features"], "refined": refined, "level": given["level"]}


def check_mean(given: Arguments, mean: Any) -> None:
    features = given["features"]
    expect(mean, tuple(features[int(given["level"])].shape), features[0].dtype)


def check_scattered(given: Arguments, maps: Any) -> None:
    assert isinstance(maps, list) and len(maps) == len(given["features"])
    for found, x in zip(maps, given["features"], strict=True):
        expect(found, tuple(x.shape), x.dtype)


def _twin_is_exact(given: Arguments) -> bool:
    """PyTorch pools no map without channels or images, and on the CPU it finds float64's nearest cells in float64."""
    first = given["features"][0]
    return first.shape[0] * first.shape[1] > 0 and first.dtype != torch.float64


def compare_mean(given: Arguments, mean: Any) -> None:
    if _twin_is_exact(given):
        maps = [plain(x, torch.float32) for x in given["features"]]
        close(mean, reference.integrate_pyramid(maps, int(given["level"])).to(mean.dtype))


def compare_scattered(given: Arguments, found: Any) -> None:
    if _twin_is_exact(given):
        maps, refined = [plain(x, torch.float32) for x in given["features"]], plain(given["refined"], torch.float32)
        for x, twin in zip(found, reference.scatter_pyramid(maps, refined, int(given["level"])), strict=True):
            close(x, twin.to(x.dtype))


def draw_pooling(draw: Draw) -> Arguments:
    levels = draw.integer(1, 3)
    maps = _maps(draw, levels)
    batch, slots = maps[0].shape[0], draw.integer(0, 5)
    return {
        "features": maps,
        "boxes": draw.tensor(draw.boxes((batch, slots))),
        "valid": draw.choice((None, torch.from_numpy(draw.flags((batch, slots))))),
        "strides": tuple(draw.choice((0.5, 1, 4, 32, 1e-30, 1e30)) for _ in range(levels)),
        "output_size": draw.choice((1, 2, 3, 7)),
        "sampling_ratio": draw.choice((0, 0, 1, 2, 5, 64)),
        "finest_scale": draw.choice((0.5, 56.0, 1e30, 5e-324)),
    }


def check_pooled(given: Arguments, pooled: Any) -> None:
    first, boxes = given["features"][0], given["boxes"]
    size = int(given["output_size"])
    expect(pooled, (boxes.shape[0], boxes.shape[1], first.shape[1], size, size), first.dtype)
    if any_meta(given):
        return
    assert pooled.is_contiguous()
    if given["valid"] is not None:
        valid = plain(given["valid"]).view(torch.uint8) != 0
        assert not pooled.detach()[~valid].any(), "a slot without a box has features"


def compare_pooled(given: Arguments, pooled: Any) -> None:
    """Compare moderate boxes, maps and strides: with others the twin visits points without end."""
    boxes = plain(given["boxes"]).double()
    maps = [plain(x, torch.float64) for x in given["features"]]
    strides, scale = [float(stride) for stride in given["strides"]], float(given["finest_scale"])
    usual = all(0.1 <= stride <= 1e3 for stride in strides) and 0.1 <= scale <= 1e4
    calm = (boxes.nan_to_num(0, 0, 0).abs() <= 1e3).all() and all((x.abs() <= 1e3).all() for x in maps)
    if not usual or not calm or not pooled.numel() or pooled.numel() > 20_000:
        return
    own = torch.float64 if pooled.dtype == torch.float64 else torch.float32
    maps = [x.to(own) for x in maps]
    options = {name: int(given[name]) for name in ("output_size", "sampling_ratio")}
    valid = None if given["valid"] is None else plain(given["valid"]).view(torch.uint8) != 0
    boxes = boxes.to(own)
    twin = reference.multiscale_roi_align(maps, boxes, valid, strides=strides, finest_scale=scale, **options)
    size = max(1.0, *(x.abs().max().item() for x in maps if x.numel()))
    rough = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(pooled.dtype, 1e-3)
    close(pooled.to(own), twin, rtol=rough, atol=rough * size)


OPERATIONS = (
    Operation(
        "integrate_pyramid",
        libra_ops.integrate_pyramid,
        draw_integration,
        check_mean,
        compare_mean,
        leaves=("features",),
    ),
    Operation(
        "scatter_pyramid",
        libra_ops.scatter_pyramid,
        draw_scattering,
        check_scattered,
        compare_scattered,
        leaves=("features", "refined"),
    ),
    Operation(
        "multiscale_roi_align",
        libra_ops.multiscale_roi_align,
        draw_pooling,
        check_pooled,
        compare_pooled,
        leaves=("features",),
    ),
)
