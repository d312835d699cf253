"""The CUDA kernels of integrate_pyramid and scatter_pyramid, run on the CPU in every order of threads."""

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import EmulationError, Kernels, empty, out

# batch, channels, sizes: 16 bytes of channels (8 of float16) and not; windows that share cells; more than 256 threads.
PYRAMIDS = [
    (2, 8, [(8, 12), (4, 6), (2, 3), (1, 2)]),
    (1, 16, [(13, 17), (7, 9), (4, 5), (2, 3)]),
    (1, 3, [(11, 9), (5, 4), (3, 3)]),
    (3, 8, [(3, 4), (5, 7), (2, 2)]),
]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAN = float("nan")


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Multiples of 1/4 with many equal ones, exact in every dtype, a few NaN and -inf."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(4).round().div(4)
    x[0, 0, ::2, ::3], x[-1, -1, 1::2] = NAN, -torch.inf
    return x.to(dtype)


def flat(maps: list[Tensor], channels_last: bool) -> Tensor:
    """One behind the other, each in the order of the format."""
    return torch.cat([(x.permute(0, 2, 3, 1) if channels_last else x).reshape(-1) for x in maps])


def split(buffer: Tensor, shapes: list[torch.Size], channels_last: bool) -> list[Tensor]:
    parts = buffer.split([shape.numel() for shape in shapes])
    if not channels_last:
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    return [part.reshape(b, h, w, c).permute(0, 3, 1, 2) for part, (b, c, h, w) in zip(parts, shapes, strict=True)]


def run(kernels: Kernels, name: str, maps: list[Tensor], refined: Tensor, level: int, channels_last: bool):
    """Everything that both operations give, with the maps and `refined` as the incoming gradients."""
    batch, channels = maps[0].shape[:2]
    plan = torch.tensor(
        [len(maps), level, batch, channels, channels_last, *(side for x in maps for side in x.shape[2:])]
    )
    shapes, dtype = [x.shape for x in maps], maps[0].dtype
    index_dtype = torch.int32 if name.endswith("wide") else torch.uint8
    levels, middle = flat(maps, channels_last), flat([refined], channels_last)
    mean, grads, outputs, result = (empty(x.numel(), dtype=dtype) for x in (middle, levels, levels, middle))
    finer = empty(level * refined.numel(), dtype=index_dtype)
    coarser = empty(sum(x.numel() for x in maps[level + 1 :]), dtype=index_dtype)
    first, second = out(finer) if finer.numel() else None, out(coarser) if coarser.numel() else None
    kernels.run(f"run_integrate_{name}", plan, levels, out(mean), first)
    kernels.run(f"run_integrate_backward_{name}", plan, middle, finer if finer.numel() else None, out(grads))
    kernels.run(f"run_scatter_{name}", plan, levels, middle, out(outputs), second)
    kernels.run(f"run_scatter_backward_{name}", plan, levels, coarser if coarser.numel() else None, out(result))
    found = [split(x, y, channels_last) for x, y in [(mean, [refined.shape]), (grads, shapes), (outputs, shapes)]]
    return [x for part in found for x in part] + split(result, [refined.shape], channels_last)


def expected(maps: list[Tensor], refined: Tensor, level: int) -> list[Tensor]:
    leaves = [x.double().requires_grad_() for x in maps]
    middle = refined.double().requires_grad_()
    mean, outputs = reference.integrate_pyramid(leaves, level), reference.scatter_pyramid(leaves, middle, level)
    grads = torch.autograd.grad(mean, leaves, middle.detach())
    (result,) = torch.autograd.grad(outputs, middle, [x.detach() for x in leaves])
    return [x.detach() for x in (mean, *grads, *outputs, result)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["float32", "float32_wide", "float64", "float16", "bfloat16"])
def test_agrees_with_pytorch(emulate, name, channels_last):
    dtype = DTYPES[name.removesuffix("_wide")]
    for batch, channels, sizes in PYRAMIDS if name == "float32" else PYRAMIDS[1:2]:
        maps = [make((batch, channels, *size), dtype, seed) for seed, size in enumerate(sizes)]
        for level in range(len(sizes)):
            refined = make(maps[level].shape, dtype, 9)
            found = run(emulate("pyramid"), name, maps, refined, level, channels_last)
            for ours, wanted in zip(found, expected(maps, refined, level), strict=True):
                tolerance = {2: 1e-2 if dtype == torch.bfloat16 else 1e-3, 4: 1e-5, 8: 1e-12}[dtype.itemsize]
                torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_without_an_index(emulate):
    """As where no gradient is wanted: the kernel is given a null pointer."""
    maps = [make((1, 8, *size), torch.float32, 1) for size in [(6, 6), (3, 3), (2, 2)]]
    plan = torch.tensor([3, 1, 1, 8, 1, 6, 6, 3, 3, 2, 2])
    levels, mean, outputs = flat(maps, True), empty(8 * 9), empty(8 * 49)
    emulate("pyramid").run("run_integrate_float32", plan, levels, out(mean), None)
    emulate("pyramid").run("run_scatter_float32", plan, levels, flat(maps[1:2], True), out(outputs), None)
    wanted = reference.integrate_pyramid(maps, 1)
    torch.testing.assert_close(*split(mean, [wanted.shape], True), wanted, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_a_launch_can_count_is_refused(emulate, channels_last):
    """1.2 x 2^32 elements, or packs of 4."""
    plan = torch.tensor([1, 0, 81, 4 if channels_last else 1, channels_last, 65535, 972])
    kernels, x = emulate("pyramid"), torch.zeros(4)
    for name, arguments in {
        "integrate": (x, out(x), None),
        "integrate_backward": (x, None, out(x)),
        "scatter": (x, x, out(x), None),
        "scatter_backward": (x, None, out(x)),
    }.items():
        with pytest.raises(EmulationError, match="returned 9"):
            kernels.run(f"run_{name}_float32", plan, *arguments)
