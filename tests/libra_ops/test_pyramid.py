"""integrate_pyramid and scatter_pyramid: equal to PyTorch's poolings and interpolations, forward and back."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import integrate_pyramid, reference, scatter_pyramid

FORMATS = (torch.contiguous_format, torch.channels_last)
PYRAMIDS = {  # batch, channels, sizes
    "halves": (2, 5, [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]),
    "odd": (1, 70, [(25, 34), (13, 17), (7, 9), (4, 5), (2, 3)]),
    "shared cells": (2, 3, [(50, 37), (24, 19), (11, 9)]),
    "finer is smaller": (1, 2, [(3, 4), (5, 7), (2, 2)]),
    "float32 misses 24 / 74": (1, 1, [(74, 150), (24, 41)]),
    "large windows": (1, 66, [(40, 40), (2, 2)]),
    "one cell": (3, 2, [(1, 1), (1, 1)]),
    "one level": (2, 3, [(4, 3)]),
    "channels in whole vectors": (2, 64, [(13, 18), (6, 9), (3, 4)]),
}
NAN = float("nan")


def make_maps(name: str, dtype=torch.float32, memory_format=torch.contiguous_format, ties: bool = True) -> list[Tensor]:
    """Maps of a pyramid; with ties, most windows have several largest values."""
    batch, channels, sizes = PYRAMIDS[name]
    generator = torch.Generator().manual_seed(len(name))
    maps = []
    for height, width in sizes:
        x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
        maps.append((x.mul(2).round() if ties else x).to(dtype).contiguous(memory_format=memory_format))
    return maps


def make_refined(maps: list[Tensor], level: int) -> Tensor:
    return maps[level].flip(0, 1, 2, 3).contiguous(memory_format=memory_format_of(maps[level]))


def memory_format_of(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def run(integrate, scatter, maps: list[Tensor], level: int) -> tuple[list[Tensor], list[Tensor]]:
    """Results of both operations, and the gradients of all that they were given."""
    maps = [x.detach().requires_grad_() for x in maps]
    refined = make_refined(maps, level).detach().requires_grad_()
    mean, outputs = integrate(maps, level=level), scatter(maps, refined, level=level)
    grads = [*torch.autograd.grad(mean, maps, torch.sin(torch.arange(mean.numel())).reshape(mean.shape).to(mean))]
    waves = [torch.cos(torch.arange(x.numel())).reshape(x.shape).to(x) for x in outputs]
    grads += torch.autograd.grad(outputs, [refined, *maps], waves)
    return [mean.detach(), *(x.detach() for x in outputs)], grads


def both(maps: list[Tensor], level: int) -> tuple[tuple, tuple]:
    ours = run(integrate_pyramid, scatter_pyramid, maps, level)
    return ours, run(reference.integrate_pyramid, reference.scatter_pyramid, maps, level)


# Without float64 where PyTorch finds the nearest cells in float64 on the CPU, but in float32, as we do, on CUDA.
EQUAL = [
    (name, dtype)
    for name in PYRAMIDS
    for dtype in (torch.float32, torch.float64)
    if (name, dtype) != ("float32 misses 24 / 74", torch.float64)
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("name", "dtype"), EQUAL)
def test_equals_pytorch(name, dtype, memory_format):
    for level in range(len(PYRAMIDS[name][2])):
        maps = make_maps(name, dtype, memory_format)
        (results, grads), (expected_results, expected_grads) = both(maps, level)
        for result, expected in zip(results, expected_results, strict=True):
            assert torch.equal(result, expected)
            assert result.is_contiguous(memory_format=memory_format_of(maps[0]))
        for grad, expected in zip(grads, expected_grads, strict=True):  # sums are taken in another order
            torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype, memory_format):
    maps = make_maps("odd", dtype, memory_format, ties=False)
    for level in (0, 2, 4):
        results, grads = run(integrate_pyramid, scatter_pyramid, maps, level)
        wide, wide_grads = run(reference.integrate_pyramid, reference.scatter_pyramid, [x.float() for x in maps], level)
        for result, expected in zip(results, wide, strict=True):
            assert torch.equal(result, expected.to(dtype))
        for grad, expected in zip(grads, wide_grads, strict=True):
            tolerance = torch.finfo(dtype).eps * 2  # the incoming gradient is rounded too
            torch.testing.assert_close(grad.float(), expected, rtol=tolerance, atol=8 * tolerance)


def make_maps_not_finite(name: str, dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    maps = make_maps(name, dtype, memory_format)
    for x in maps:
        x[0, 0] = -torch.inf
        x[0, 1, ::3, ::2] = NAN
        x[0, 1, 1::3, ::3] = NAN
        x[1, 2, ::2] = torch.inf
    return maps


@pytest.mark.parametrize("memory_format", FORMATS)
def test_values_that_are_not_finite(memory_format):
    """The last NaN of a window has its gradient, and where all is -inf the first cell."""
    for level in range(3):
        ours, expected = both(make_maps_not_finite("shared cells", torch.float32, memory_format), level)
        for result, wanted in zip(ours[0] + ours[1], expected[0] + expected[1], strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_that_lie_anyhow(dtype):
    """Strided, transposed, of both formats: as their contiguous copies, in the first one's format."""
    plain = make_maps("odd", dtype)
    large = make_maps("odd", dtype, torch.channels_last)
    sliced = [torch.empty(1, 70, 2 * x.shape[2], 2 * x.shape[3], dtype=dtype) for x in plain]
    every_other = [torch.empty_like(x).contiguous(memory_format=torch.channels_last) for x in sliced]
    transposed = [x.mT.contiguous().mT for x in plain]
    for x, own, other in zip(plain, sliced, every_other, strict=True):
        own[:, :, ::2, ::2] = x
        other[:, :, ::2, ::2] = x
    variants = [
        [x[:, :, ::2, ::2] for x in sliced],
        [x[:, :, ::2, ::2] for x in every_other],
        transposed,
        [large[0], *plain[1:]],
        [plain[0], *large[1:]],
    ]
    for level in (0, 1, 4):
        expected = run(integrate_pyramid, scatter_pyramid, plain, level)
        for maps in variants:
            results, grads = run(integrate_pyramid, scatter_pyramid, maps, level)
            for result, wanted in zip(results, expected[0], strict=True):
                assert torch.equal(result, wanted)
            for grad, wanted in zip(grads, expected[1], strict=True):
                torch.testing.assert_close(grad, wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_threads_change_nothing(memory_format):
    maps = make_maps("odd", memory_format=memory_format, ties=False)
    maps = [x.repeat(8, 1, 1, 1).contiguous(memory_format=memory_format) for x in maps]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(integrate_pyramid, scatter_pyramid, maps, 2))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other[0] + other[1], found[0][0] + found[0][1]))


def test_features_are_not_kept_for_the_backward_pass():
    kept = []
    maps = [x.requires_grad_() for x in make_maps("halves")]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        integrate_pyramid(maps, level=2)
        scatter_pyramid(maps, make_refined(maps, 2), level=2)
    assert sum(x.numel() * x.element_size() for x in kept) == 2 * 5 * (2 * 4 * 6 + 2 * 3 + 1 * 2)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradcheck(level, memory_format):
    maps = [torch.randperm(2 * 2 * h * w).double().reshape(2, 2, h, w) for h, w in [(7, 8), (3, 5), (2, 2)]]
    maps = [x.contiguous(memory_format=memory_format).requires_grad_() for x in maps]
    assert torch.autograd.gradcheck(lambda *x: integrate_pyramid(x, level=level), maps)
    refined = maps[level].detach().flip(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda refined, *x: scatter_pyramid(x, refined, level=level), [refined, *maps])


def test_some_outputs_and_inputs_alone():
    """A level that is not used, one that needs no gradient, and a refined map that needs none."""
    maps = make_maps("halves")
    refined = make_refined(maps, 2).requires_grad_()
    outputs, expected = scatter_pyramid(maps, refined, level=2), reference.scatter_pyramid(maps, refined, 2)
    for used in range(5):
        wave = torch.cos(torch.arange(outputs[used].numel())).reshape(outputs[used].shape)
        (grad,) = torch.autograd.grad(outputs[used], refined, wave, retain_graph=True)
        torch.testing.assert_close(grad, *torch.autograd.grad(expected[used], refined, wave, retain_graph=True))
    maps[1].requires_grad_()
    (grad,) = torch.autograd.grad(scatter_pyramid(maps, refined.detach(), level=2)[1].sum(), maps[1])
    assert torch.equal(grad, torch.ones_like(maps[1]))
    (grad,) = torch.autograd.grad(integrate_pyramid(maps, level=2).sum(), maps[1])
    assert grad.sum().item() == pytest.approx(2 * 5 * 4 * 6 / 5)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_nothing(shape, memory_format):
    maps = [torch.zeros(*shape, h, h).contiguous(memory_format=memory_format).requires_grad_() for h in (8, 4, 2)]
    mean = integrate_pyramid(maps, level=1)
    outputs = scatter_pyramid(maps, mean, level=1)
    assert mean.shape == (*shape, 4, 4) and [x.shape for x in outputs] == [x.shape for x in maps]
    sum(x.sum() for x in outputs).backward()
    assert all(x.grad.shape == x.shape for x in maps)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format):
    ops, rest = torch.ops.libra_ops, (1, memory_format == torch.channels_last)
    maps = [x.requires_grad_() for x in make_maps("shared cells", memory_format=memory_format)]
    refined = make_refined(maps, 1).detach().requires_grad_()
    torch.library.opcheck(ops.integrate_pyramid.default, (maps, *rest, 1))
    torch.library.opcheck(ops.scatter_pyramid.default, (maps, refined, *rest, 1))
    mean, index = ops.integrate_pyramid([x.detach() for x in maps], *rest, 4)
    heights, widths = [x.shape[2] for x in maps], [x.shape[3] for x in maps]
    forward_only = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (mean, index, heights, widths, *rest)
    torch.library.opcheck(ops.integrate_pyramid_backward.default, arguments, test_utils=forward_only)
    outputs, index = ops.scatter_pyramid([x.detach() for x in maps], mean, *rest, 4)
    torch.library.opcheck(ops.scatter_pyramid_backward.default, (outputs, index, *rest), test_utils=forward_only)


def balance(maps: list[Tensor], level: int) -> list[Tensor]:
    mean = integrate_pyramid(maps, level=level)
    return scatter_pyramid(maps, torch.relu(mean) * 2, level=level)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_compile(memory_format):
    """One graph, for sizes that change too, and the gradients of eager mode."""
    compiled = torch.compile(balance, fullgraph=True, backend="aot_eager", dynamic=True)
    for name in ("halves", "shared cells"):
        results = []
        for function in (balance, compiled):
            maps = [x.requires_grad_() for x in make_maps(name, memory_format=memory_format)[:3]]
            outputs = function(maps, 1)
            results.append([*outputs, *torch.autograd.grad([x.square().sum() for x in outputs], maps)])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)
            assert ours.stride() == expected.stride()


def test_fake_tensors():
    with FakeTensorMode():
        maps = [torch.empty(2, 3, h, h, requires_grad=True) for h in (8, 4, 2)]
        outputs = balance(maps, 1)
        sum(x.sum() for x in outputs).backward()
        assert [x.grad.shape for x in maps] == [x.shape for x in maps]


def test_wrong_arguments_are_named():
    maps = make_maps("halves")
    refined = make_refined(maps, 2)
    for bad, message in [
        (maps[0], "features: expected a list of tensors.*got Tensor"),
        ([], "features: expected 1 to 8 maps, got 0"),
        (maps * 2, "features: expected 1 to 8 maps, got 10"),
        ([maps[0], 3.0], r"features\[1\]: expected a torch.Tensor, got float"),
        ([maps[0], maps[1].int()], r"features\[1\]: expected a floating dtype"),
        ([maps[0], maps[1].double()], r"features\[1\]: expected batch, channels and dtype of features\[0\]"),
        ([maps[0], maps[1][:1]], r"features\[1\]: expected batch, channels and dtype"),
        ([maps[0], maps[1][0]], r"features\[1\]: expected \[B, C, H, W\]"),
        ([maps[0], maps[1][:, :, :0]], r"features\[1\]: .*at least one cell"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            integrate_pyramid(bad, level=0)
        with pytest.raises((TypeError, ValueError), match=message):
            scatter_pyramid(bad, refined, level=0)
    for level in (5, -1, 1.0):
        with pytest.raises((TypeError, ValueError), match=r"level: expected an int"):
            integrate_pyramid(maps, level=level)
    with pytest.raises(ValueError, match=r"refined: expected shape \[2, 5, 8, 12\] \(that of features\[1\]\)"):
        scatter_pyramid(maps, refined, level=1)
    with pytest.raises(TypeError, match="refined: expected dtype float32"):
        scatter_pyramid(maps, refined.half(), level=2)


def test_once_differentiable_in_reverse_mode():
    maps = [x.requires_grad_() for x in make_maps("halves")]
    (grad,) = torch.autograd.grad(integrate_pyramid(maps, level=2).square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once only"):
        grad.sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"features\[0\]: .*without a tangent"):
        integrate_pyramid([forward_ad.make_dual(maps[0].detach(), maps[0].detach())], level=0)


def test_the_operators_check_what_python_does_not():
    maps, ops = make_maps("large windows"), torch.ops.libra_ops
    with pytest.raises(RuntimeError, match="index_bytes: expected 4 for windows of 400 cells"):
        ops.integrate_pyramid(maps, 1, False, 1)
    _, index = ops.integrate_pyramid(maps, 1, False, 4)
    with pytest.raises(RuntimeError, match="index: expected size"):
        ops.integrate_pyramid_backward(maps[1], index[1:], [40, 2], [40, 2], 1, False)
    junk = torch.full_like(index, 2**31 - 1)  # an index that no forward pass wrote: no gradient, nothing out of bounds
    grads = ops.integrate_pyramid_backward(maps[1], junk, [40, 2], [40, 2], 1, False)
    assert not grads[0].any() and torch.equal(grads[1], maps[1] / 2)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def on_gpu(x: Tensor, aligned: bool = True) -> Tensor:
    """A copy of the same strides; not aligned: it begins one element behind a multiple of 16 bytes."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype).cuda()[0 if aligned else 1 :]
    return moved.as_strided(x.size(), x.stride()).copy_(x)


def check_cuda(maps: list[Tensor], level: int, aligned: bool = True) -> None:
    """Results and their strides to the bit; gradients, whose sums have another order, nearly; and twice the same."""
    expected, expected_grads = run(integrate_pyramid, scatter_pyramid, maps, level)
    maps = [on_gpu(x, aligned) for x in maps]
    results, grads = run(integrate_pyramid, scatter_pyramid, maps, level)
    without_gradient = [
        integrate_pyramid(maps, level=level),
        *scatter_pyramid(maps, make_refined(maps, level), level=level),
    ]
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    for result, other, wanted in zip(results, without_gradient, expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted, **exact)
        torch.testing.assert_close(other, result, **exact)
        assert result.stride() == wanted.stride()
    small = 1e-12 if maps[0].dtype == torch.float64 else 1e-5  # of the sums, which are rounded to a half type then
    rtol = max(small, 2 * torch.finfo(maps[0].dtype).eps)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.cpu(), wanted, rtol=rtol, atol=small)
        assert grad.stride() == wanted.stride()
    again = run(integrate_pyramid, scatter_pyramid, maps, level)
    for first, second in zip(results + grads, again[0] + again[1], strict=True):
        torch.testing.assert_close(second, first, **exact)


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_cuda_equals_the_cpu(name, dtype, memory_format):
    for level in range(len(PYRAMIDS[name][2])):
        for ties in (True, False):
            check_cuda(make_maps(name, dtype, memory_format, ties), level)


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_the_cpu_for_values_that_are_not_finite(dtype, memory_format):
    for level in range(3):
        for name in ("shared cells", "channels in whole vectors"):
            check_cuda(make_maps_not_finite(name, dtype, memory_format), level)


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_reads_maps_that_no_vector_fits(dtype, memory_format):
    """One element behind a multiple of 16 bytes, and with channels cut out of more."""
    for level in range(3):
        maps = make_maps("channels in whole vectors", dtype, memory_format)
        check_cuda(maps, level, aligned=False)
        expected = run(integrate_pyramid, scatter_pyramid, maps, level)
        cut = [on_gpu(torch.cat([x, x[:, :3]], 1).contiguous(memory_format=memory_format))[:, :64] for x in maps]
        results, _ = run(integrate_pyramid, scatter_pyramid, cut, level)
        for result, wanted in zip(results, expected[0], strict=True):
            assert torch.equal(result.cpu(), wanted)


@pytest.mark.cuda
def test_cuda_says_which_argument_is_too_large():
    if torch.cuda.mem_get_info()[0] < 10e9:
        pytest.skip("needs 10 GB of free GPU memory")
    x = torch.zeros(1, 1, 32768, 1024, dtype=torch.float16, device="cuda").expand(129, -1, -1, -1)
    with pytest.raises(RuntimeError, match=r"features: expected at most 2\^32 - 1 elements .* got 4328521728"):
        integrate_pyramid([x], level=0)
