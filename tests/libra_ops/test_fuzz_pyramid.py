"""Fuzz of integrate_pyramid, scatter_pyramid and their backward. What is drawn, and what may come out: fuzzing.py."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuzzing import NO_COUNTS, WORDS, Call, fuzz, outcome, seeds, tensor_in, values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from libra_ops import integrate_pyramid, reference, scatter_pyramid

FUNCTIONS = {"integrate": integrate_pyramid, "scatter": scatter_pyramid}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIDES = (1, 2, 3, 5, 7, 8, 9, 16, 17, 24, 33)
# Channels go by 64 in memory of channels-last, and columns by a vector's lanes in planes.
CHANNELS = (0, 1, 2, 3, 5, 63, 64, 65, 130)
MOST_NUMBERS = 40_000  # about, of all images of a pyramid: more of one image only where it has so many itself
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
LAYOUTS = ("as it is", "as it is", "cropped", "every other cell", "expanded", "transposed", "shifted", "negated")


@st.composite
def sizes(draw, count: int, channels: int) -> list[tuple[int, int]]:
    """Heights and widths: halved, as a pyramid's mostly are, or any."""
    sides = SIDES if channels < 63 else SIDES[:7]
    if draw(st.integers(0, 9)) == 0:
        return [(draw(st.sampled_from((33, 74, 130))), draw(st.sampled_from((24, 41, 150)))), (2, 1), (24, 24)][:count]
    found = [(draw(st.sampled_from(sides)), draw(st.sampled_from(sides)))]
    for _ in range(count - 1):
        half = tuple(-(-side // 2) for side in found[-1])
        found.append(draw(st.sampled_from((half, half, (draw(st.sampled_from(sides)), draw(st.sampled_from(sides)))))))
    return found


@st.composite
def calls(draw, dtype: torch.dtype, with_refined: bool) -> Call:
    channels = draw(st.sampled_from(CHANNELS))
    own_sizes = draw(sizes(draw(st.sampled_from((1, 2, 3, 3, 4, 5, 8))), channels))
    cells = sum(height * width for height, width in own_sizes)
    batch = draw(st.sampled_from((1, 2, 2, 3, 4, 0)))
    batch = min(batch, max(1, MOST_NUMBERS // (cells * max(channels, 1))))

    def draw_map(height: int, width: int) -> Tensor:
        array = draw(values((batch, channels, height, width), (np.float64,)))
        return torch.from_numpy(array).to(dtype)

    maps = [draw_map(*size) for size in own_sizes]
    level = draw(st.integers(0, len(maps) - 1))
    good = {"features": maps, "level": draw(st.sampled_from((level, np.int64(level))))}
    if with_refined:
        good["refined"] = draw_map(*own_sizes[level])
    call = Call(good)
    name = draw(st.sampled_from((None,) * 5 + tuple(good)))
    other = torch.float64 if dtype != torch.float64 else torch.float32
    wrong_maps = (
        *WORDS[:-2],
        3.0,
        maps[0].to(other),
        maps[0].int(),
        maps[0] > 0,
        maps[0].to(torch.complex64),
        maps[0][0:0] if batch else maps[0].new_zeros(1, channels, 2, 2),
        maps[0].new_zeros(batch, channels + 1, 2, 2),
        maps[0][..., 0],
        maps[0][None],
        maps[0][:, :, :0],
        maps[0].new_zeros(()).expand(batch, channels, 1, 65536),
        maps[0].to_sparse(),
    )
    bad = {
        "features": (*WORDS, maps[0], maps * 9, {0: maps[0]}, *([*maps[:7], wrong] for wrong in wrong_maps)),
        "level": (*NO_COUNTS, len(maps), 2**62),
        "refined": (*wrong_maps, *WORDS[-2:], maps, maps[0].new_zeros(batch, channels, own_sizes[level][0] + 1, 1)),
    }
    return call.replace(name, draw(st.sampled_from(bad[name]))) if name else call


def lay_out(layout: str, memory_format: str, x: Tensor) -> Tensor:
    """The map otherwise in memory, infinity beside its cells; expanded: all images are the first."""
    if layout == "expanded" and x.shape[0] > 0:
        return x[:1].contiguous(memory_format=FORMATS[memory_format]).expand(x.shape)
    if layout in ("cropped", "every other cell"):
        step = 1 if layout == "cropped" else 2
        height, width = x.shape[2] * step + 2, x.shape[3] * step + 1
        wide = torch.full((*x.shape[:2], height, width), torch.inf, dtype=x.dtype)
        wide = wide.contiguous(memory_format=FORMATS[memory_format])
        inner = wide[:, :, 1:-1:step, 1::step]
        return inner.copy_(x)
    if layout == "transposed":
        return x.mT.contiguous(memory_format=FORMATS[memory_format]).mT
    if layout == "shifted":
        order = (0, 2, 3, 1) if memory_format == "channels-last" else (0, 1, 2, 3)
        x = x.permute(order)
        shifted = tensor_in("shifted", x.contiguous().view(torch.int16 if x.element_size() == 2 else x.dtype).numpy())
        return shifted.view(x.dtype).permute([order.index(dimension) for dimension in range(4)])
    x = x.contiguous(memory_format=FORMATS[memory_format])
    return torch._neg_view(-x) if layout == "negated" else x


def conversion(draw) -> Callable:
    """Of arguments: each map in a layout that is drawn for it, most of them in one format."""
    of_most = draw(st.sampled_from(tuple(FORMATS)))

    def convert(value: object) -> object:
        if isinstance(value, list) and value and all(isinstance(x, Tensor) for x in value):
            return draw(st.sampled_from((list, tuple)))(convert(x) for x in value)
        if not isinstance(value, Tensor) or value.dim() != 4 or value.is_sparse or not value.is_floating_point():
            return value
        memory_format = draw(st.sampled_from((of_most, of_most, of_most, *FORMATS)))
        return lay_out(draw(st.sampled_from(LAYOUTS)), memory_format, value)

    return convert


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
@fuzz
@given(data=st.data())
def test_pyramid(name, dtype, data):
    function, call = FUNCTIONS[name], data.draw(calls(dtype, name == "scatter"))
    convert, laid_out = conversion(data.draw), {}

    def convert_and_keep(value: object) -> object:
        found = convert(value)
        laid_out.update({key: found for key, given in call.arguments.items() if given is value})
        return found

    result = outcome(function, call, convert_and_keep)
    if result is None:
        return
    results = as_list(result)
    check_results(name, results, **{**call.arguments, **laid_out})
    # The same again with gradients, of the maps as they lie in memory.
    random = np.random.default_rng(data.draw(seeds))
    given = [*laid_out["features"], *([laid_out["refined"]] if name == "scatter" else [])]
    wanted = random.random(len(given)) < 0.8
    given = [x.detach().requires_grad_(bool(want)) for x, want in zip(given, wanted, strict=True)]
    again = as_list(run(function, name, given, call.arguments["level"]))
    for x, before in zip(again, results, strict=True):
        torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
        assert x.stride() == before.stride()
    leaves = [x for x in given if x.requires_grad]
    if leaves:
        incoming = [convert(incoming_gradient(random, x)) for x in again]
        check_gradients(name, given, leaves, again, incoming, int(call.arguments["level"]))


def as_list(result: object) -> list[Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def run(function: Callable, name: str, given: list[Tensor], level: int) -> object:
    """Of the maps, and in `scatter` the refined one at their end."""
    return function(given, level=level) if name == "integrate" else function(given[:-1], given[-1], level=level)


def incoming_gradient(random: np.random.Generator, like: Tensor) -> Tensor:
    array = random.standard_normal(like.shape) * random.choice((1.0, 1e-3))
    if random.random() < 0.3:
        array[random.random(like.shape) < 0.05] = random.choice((np.nan, np.inf, -np.inf, 0.0))
    return torch.from_numpy(array).to(like.dtype)


def check_results(name, results, features, level, refined=None):
    shapes = [features[level].shape] if name == "integrate" else [x.shape for x in features]
    finest = features[0]
    for result, shape in zip(results, shapes, strict=True):
        assert result.shape == shape and result.dtype == features[0].dtype
        if finest.is_contiguous():
            assert result.is_contiguous()
        elif finest.is_contiguous(memory_format=torch.channels_last):
            assert result.is_contiguous(memory_format=torch.channels_last)
        else:
            assert result.is_contiguous() or result.is_contiguous(memory_format=torch.channels_last)
    if not twin_is_exact(name, features, level):
        return
    given = [widened(x).contiguous() for x in (*features, *([] if refined is None else [refined]))]
    expected = as_list(run(twin_of(name), name, given, level))
    for result, twin in zip(results, expected, strict=True):
        torch.testing.assert_close(result, twin.to(result.dtype), rtol=0, atol=0, equal_nan=True)


def check_gradients(name, given, leaves, results, incoming, level):
    found = torch.autograd.grad(results, leaves, incoming, allow_unused=True, materialize_grads=True)
    for gradient, leaf in zip(found, leaves, strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
    features = given if name == "integrate" else given[:-1]
    if not twin_is_exact(name, features, level):
        return
    wide = [widened(x.detach()).contiguous().requires_grad_(x.requires_grad) for x in given]
    expected = as_list(run(twin_of(name), name, wide, level))
    used = [(x, widened(gradient)) for x, gradient in zip(expected, incoming, strict=True) if x.requires_grad]
    wide_leaves = [x for x in wide if x.requires_grad]
    outputs, gradients = zip(*used, strict=True)
    twins = torch.autograd.grad(outputs, wide_leaves, gradients, allow_unused=True, materialize_grads=True)
    # Sums in another order, of up to as many numbers as a map's largest has; a 16-bit gradient is rounded once.
    eps = torch.finfo(wide[0].dtype).eps
    terms = max(x.shape[2] * x.shape[3] for x in features) ** 0.5
    for gradient, twin in zip(found, twins, strict=True):
        rounding = torch.finfo(gradient.dtype).eps if gradient.element_size() == 2 else 0.0
        least = torch.finfo(gradient.dtype).smallest_normal if rounding else 0.0  # below it 16 bits have a coarser step
        close = {"rtol": rounding + 8 * eps, "atol": 32 * eps * terms + least * rounding}
        torch.testing.assert_close(widened(gradient), twin, equal_nan=True, **close)


def twin_of(name: str) -> Callable:
    return reference.integrate_pyramid if name == "integrate" else reference.scatter_pyramid


def widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def twin_is_exact(name: str, features: list[Tensor], level: int) -> bool:
    """PyTorch pools no map without channels; and on the CPU it finds float64's nearest cells in float64."""
    if features[0].shape[1] == 0:
        return False
    if features[0].dtype != torch.float64:
        return True
    own = features[level].shape[2:]
    repeated = features[level + 1 :] if name == "integrate" else features[:level]
    pairs = [(x.shape[2:], own) if name == "integrate" else (own, x.shape[2:]) for x in repeated]
    return all(nearest_agrees(*sides) for pair in pairs for sides in zip(*pair, strict=True))


@functools.cache
def nearest_agrees(length: int, other: int) -> bool:
    cells = torch.arange(float(length), dtype=torch.float64)[None, None]
    return torch.equal(F.interpolate(cells, size=other), F.interpolate(cells.float(), size=other).double())
