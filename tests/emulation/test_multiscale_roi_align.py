"""The CUDA kernels of multiscale_roi_align, run on the CPU in every order of threads, against the CPU's op."""

import pytest
import torch
from torch import Tensor

from libra_ops import multiscale_roi_align

from .harness import FOLDER, ORDERS, Kernels, empty, load, out

NAMES = {torch.float32: "float", torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}
OPTIONS = {"strides": (4, 8), "finest_scale": 16.0}


def scene(
    channels: int, slots: int, channels_last: bool, dtype: torch.dtype, shapes=((13, 18), (7, 9))
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps of two images, boxes of both levels, some beyond the maps, one not finite; the last slot is empty."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, *shape, generator=generator).to(dtype) for shape in shapes]
    if channels_last:
        maps = [x.to(memory_format=torch.channels_last) for x in maps]
    corner = torch.rand(2, slots, 2, generator=generator) * 60 - 10
    boxes = torch.cat((corner, corner + torch.rand(2, slots, 2, generator=generator) ** 2 * 70), -1)
    boxes[0, 0] = torch.nan
    valid = torch.ones(2, slots, dtype=torch.bool)
    valid[1, -1] = False
    return maps, boxes.to(torch.float64 if dtype == torch.float64 else torch.float32), valid


def in_memory(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if channels_last else x


def layout(maps: list[Tensor], channels_last: bool) -> Tensor:
    return torch.tensor([size for x in maps for size in x.shape[2:]] + [int(channels_last)])


def forward(kernels: Kernels, maps, boxes, valid, channels_last: bool, size: int, ratio: int) -> Tensor:
    (batch, channels), slots = maps[0].shape[:2], boxes.shape[1]
    pooled = empty(batch, slots, channels, size, size, dtype=maps[0].dtype)
    memory = [in_memory(x, channels_last) for x in maps]
    kernels.run(
        f"run_forward_{NAMES[pooled.dtype]}",
        *(*memory, layout(maps, channels_last), boxes, valid, out(pooled), batch, slots, channels, size, ratio),
    )
    return pooled


def backward(
    kernels: Kernels, gradient, maps, boxes, valid, channels_last: bool, ratio: int, wanted=(True, True)
) -> list[Tensor]:
    """The gradients of the maps that are wanted."""
    (batch, channels), slots, size = maps[0].shape[:2], boxes.shape[1], gradient.shape[-1]
    grads = [
        empty(*in_memory(x, channels_last).shape, dtype=x.dtype) if want else None
        for x, want in zip(maps, wanted, strict=True)
    ]
    kernels.run(
        f"run_backward_{NAMES[gradient.dtype]}",
        *(gradient, layout(maps, channels_last), boxes, valid, *(x if x is None else out(x) for x in grads)),
        *(batch, slots, channels, size, ratio),
    )
    return [x.permute(0, 3, 1, 2) if channels_last else x for x in grads if x is not None]


def check(kernels: Kernels, maps, boxes, valid, channels_last: bool, size: int, ratio: int) -> None:
    leaves = [x.detach().requires_grad_() for x in maps]
    expected = multiscale_roi_align(leaves, boxes, valid, output_size=size, sampling_ratio=ratio, **OPTIONS)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    if valid is not None:
        gradient[~valid] = torch.nan
    exact = {torch.float32: 1e-4, torch.float64: 1e-9}.get(expected.dtype, 2e-2)
    pooled = forward(kernels, maps, boxes, valid, channels_last, size, ratio)
    torch.testing.assert_close(pooled, expected.detach(), rtol=exact, atol=exact)
    grads = backward(kernels, gradient, maps, boxes, valid, channels_last, ratio)
    for got, wanted in zip(grads, torch.autograd.grad(expected, leaves, gradient), strict=True):
        torch.testing.assert_close(got, wanted, rtol=exact, atol=exact)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("ratio", "size", "channels"), [(0, 7, 5), (2, 7, 8), (0, 3, 68), (3, 9, 2)])
def test_agrees_with_the_cpu(emulate, channels_last, ratio, size, channels):
    maps, boxes, valid = scene(channels, 5, channels_last, torch.float32)
    check(emulate("multiscale_roi_align"), maps, boxes, valid, channels_last, size, ratio)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(emulate, channels_last, dtype):
    maps, boxes, _ = scene(8, 3, channels_last, dtype)
    check(emulate("multiscale_roi_align"), maps, boxes, None, channels_last, 2, 0)


@pytest.mark.parametrize("ratio", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [3, 64])
def test_inverted_boxes(emulate, ratio, size):
    """Their points fall: the lists of feature cells hold each cell once all the same, and have room for no more."""
    maps, boxes, valid = scene(3, 4, False, torch.float32)
    boxes[:, 1] = torch.tensor([[50.3, 40.1, 3.2, 5.7], [66.9, 1.3, 2.4, 45.6]])  # both axes; x alone
    boxes[:, 2] = torch.tensor([[4.1, 49.5, 60.2, 0.3], [300.0, 300.0, -200.0, -200.0]])  # y alone; beyond the map
    check(emulate("multiscale_roi_align"), maps, boxes, valid, False, size, ratio)


def test_boxes_whose_lists_have_no_room(emulate):
    """So long, or with so many points, that the points are visited one by one."""
    maps, boxes, _ = scene(3, 3, False, torch.float32, ((2, 300), (1, 150)))
    boxes[:, 1] = torch.tensor([-20.0, 0, 1e30, 9])
    boxes[:, 2] = torch.tensor([-3e38, 1, 3e38, 7])
    check(emulate("multiscale_roi_align"), maps, boxes, None, False, 1, 0)


def test_more_boxes_than_a_list_has_at_a_time():
    maps, boxes, valid = scene(1, 300, False, torch.float32, ((3, 4), (2, 2)))
    boxes[..., :] = boxes / 4
    check(load(FOLDER / "multiscale_roi_align_driver.cpp", "random"), maps, boxes, valid, False, 2, 0)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_some_gradients_are_wanted(emulate, wanted):
    maps, boxes, valid = scene(3, 4, False, torch.float32)
    gradient, kernels = torch.randn(2, 4, 3, 3, 3), emulate("multiscale_roi_align")
    both = backward(kernels, gradient, maps, boxes, valid, False, 2)
    some = backward(kernels, gradient, maps, boxes, valid, False, 2, wanted)
    expected = [x for x, want in zip(both, wanted, strict=True) if want]
    assert len(some) == len(expected) and all(map(torch.equal, some, expected))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_stays_in_the_cells_that_were_read(emulate, channels_last, spoiled):
    maps, boxes, _ = scene(3, 2, channels_last, torch.float32)
    boxes[:, 0] = torch.tensor([8.3, 9.1, 37.9, 33.7])  # on map 0: rows 2 to 8 of 13, columns 2 to 9 of 18
    boxes[:, 1] = torch.tensor([3.3, 1.7, 66.1, 47.3])  # on map 1
    leaves = [x.detach().requires_grad_() for x in maps]
    pooled = multiscale_roi_align(leaves, boxes, output_size=3, sampling_ratio=2, **OPTIONS)
    gradient = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    gradient[0, 0, 1, 1, 1] = gradient[1, 1, 0, 2, 0] = spoiled
    grads = backward(emulate("multiscale_roi_align"), gradient, maps, boxes, None, channels_last, 2)
    for got, wanted in zip(grads, torch.autograd.grad(pooled, leaves, gradient), strict=True):
        assert 0 < (~got.isfinite()).sum() <= 16
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_gradients_are_the_same_in_every_order():
    maps, boxes, valid = scene(4, 6, True, torch.float32)
    gradient = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    driver = FOLDER / "multiscale_roi_align_driver.cpp"
    first, *others = [backward(load(driver, order), gradient, maps, boxes, valid, True, 0) for order in ORDERS]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("slots", "channels"), [(0, 3), (2, 0)])
def test_empty(emulate, slots, channels):
    maps = [torch.zeros(2, channels, 3, 4), torch.zeros(2, channels, 2, 2)]
    boxes, kernels = torch.zeros(2, slots, 4), emulate("multiscale_roi_align")
    assert forward(kernels, maps, boxes, None, False, 7, 0).shape == (2, slots, channels, 7, 7)
    grads = backward(kernels, torch.zeros(2, slots, channels, 7, 7), maps, boxes, None, False, 0)
    assert not any(x.any() for x in grads)
