"""sigmoid_focal_loss: equal to its twin and to torchvision, masked, deterministic, and exact for extreme logits."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import reference, sigmoid_focal_loss

REDUCTIONS = ("none", "sum", "mean")
NAN, INFINITY = float("nan"), float("inf")
TIGHT = {torch.float32: {"rtol": 2e-6, "atol": 1e-12}, torch.float64: {"rtol": 1e-12, "atol": 1e-300}}
ROUNDED = {torch.float16: {"rtol": 2e-3, "atol": 1e-7}, torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-12}}


def slots(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """logits of `shape`, labels with the background among them, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    labels = torch.randint(0, shape[-1] + 1, shape[:-1], generator=generator)
    return logits.to(dtype), labels, torch.rand(shape[:-1], generator=generator) < 0.8


def gradient(function, logits: Tensor, *rest, **options) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf, *rest, **options).sum(), leaf)[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("classes", [1, 3, 80, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_twin(dtype, classes, gamma, reduction):
    logits, labels, mask = slots(2, 37, classes, dtype=dtype)
    options = {"alpha": 0.3, "gamma": gamma, "reduction": reduction}
    for rest in ((), (mask,)):
        loss = sigmoid_focal_loss(logits, labels, *rest, **options)
        expected = reference.sigmoid_focal_loss(logits.double(), labels, *rest, **options)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, expected.to(dtype), **TIGHT[dtype])
        expected = gradient(reference.sigmoid_focal_loss, logits.double(), labels, *rest, **options)
        got = gradient(sigmoid_focal_loss, logits, labels, *rest, **options)
        torch.testing.assert_close(got, expected.to(dtype), **TIGHT[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_half_is_computed_in_float32(dtype, reduction):
    """The loss of its logits, exactly; their gradient, rounded, small ones too and with a factor like a loss scale."""
    logits, labels, mask = slots(60, 80, dtype=dtype)
    logits[0] -= 9
    loss = sigmoid_focal_loss(logits, labels, mask, reduction=reduction)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sigmoid_focal_loss(logits.float(), labels, mask, reduction=reduction))
    for factor in (1.0, 1000.0):

        def scaled(*arguments, factor=factor):
            return factor * sigmoid_focal_loss(*arguments, reduction=reduction)

        got = gradient(scaled, logits, labels, mask)
        assert got.dtype == dtype
        expected = gradient(scaled, logits.float(), labels, mask)
        torch.testing.assert_close(got.float(), expected.to(dtype).float(), **ROUNDED[dtype])


def test_the_gradient_of_float16_does_not_overflow():
    logits = torch.linspace(-90, 90, 2000, dtype=torch.float16)[:, None]
    for gamma in (1e3, 1e12, 9e29):
        got = gradient(sigmoid_focal_loss, logits, torch.zeros(2000, dtype=torch.int64), gamma=gamma, alpha=1.0)
        assert got.isfinite().all()


def test_every_half_is_read_as_it_is():
    """All 65,536 numbers of float16 and bfloat16, against torch's own conversion."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    labels = torch.ones(2**16, dtype=torch.int64)
    for dtype in (torch.float16, torch.bfloat16):
        logits = bits.view(dtype)[:, None]
        expected = sigmoid_focal_loss(logits.float(), labels, gamma=0.0)
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, labels, gamma=0.0), expected, rtol=0, atol=0, equal_nan=True
        )
        got, wide = (gradient(sigmoid_focal_loss, x, labels) for x in (logits, logits.float()))
        torch.testing.assert_close(got, wide.to(dtype), **ROUNDED[dtype], equal_nan=True)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_polynomials_are_right_to_float32s_digits(gamma):
    """Against float64 over every size of a logit, right and wrong answers; relative to the value itself."""
    logits = torch.cat([torch.linspace(-40, 40, 100_001), torch.logspace(-30, 1.6, 5000)])[:, None]
    for labels in (torch.zeros(len(logits), dtype=torch.int64), torch.ones(len(logits), dtype=torch.int64)):
        exact = [
            f(logits.double(), labels, gamma=gamma)
            for f in (sigmoid_focal_loss, lambda *a, **o: gradient(sigmoid_focal_loss, *a, **o))
        ]
        found = [
            f(logits, labels, gamma=gamma)
            for f in (sigmoid_focal_loss, lambda *a, **o: gradient(sigmoid_focal_loss, *a, **o))
        ]
        for got, wanted in zip(found, exact, strict=True):
            seen = wanted.abs() > 1e-36
            assert seen.float().mean() > 0.8
            torch.testing.assert_close(got.double()[seen], wanted[seen], rtol=1e-6 * (1 + 8 * gamma), atol=0)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_torchvision(gamma):
    logits, labels, _ = slots(90, 20)
    one_hot = torch.nn.functional.one_hot(labels, 21)[:, :20].float()

    def theirs(logits, reduction):
        return torchvision.ops.sigmoid_focal_loss(logits, one_hot, gamma=gamma, reduction=reduction)

    for reduction in REDUCTIONS:
        options = {"gamma": gamma, "reduction": reduction}
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, labels, **options), theirs(logits, reduction), rtol=2e-5, atol=1e-6
        )
        got = gradient(sigmoid_focal_loss, logits, labels, **options)
        torch.testing.assert_close(got, gradient(theirs, logits, reduction), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_is_that_of_the_loss(gamma, reduction):
    logits, labels, mask = slots(2, 7, 5, dtype=torch.float64)
    options = {"gamma": gamma, "reduction": reduction}
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, mask, **options), logits.requires_grad_(), atol=1e-7
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits(gamma, dtype):
    far = [NAN, 1e30, -1e30, INFINITY, -INFINITY]
    logits = torch.tensor([far, far], dtype=dtype).T[:, :, None]  # [value, answer, 1]
    labels = torch.tensor([0, 1]).expand(5, 2)  # yes, no
    loss = sigmoid_focal_loss(logits, labels, gamma=gamma, alpha=0.25).double()[..., 0]
    slope = gradient(sigmoid_focal_loss, logits, labels, gamma=gamma).double()[..., 0]
    for found in (loss, slope):
        assert found[0].isnan().all()
    expected = torch.tensor([[0, 0.75 * 1e30], [0.25 * 1e30, 0]], dtype=torch.float64)
    torch.testing.assert_close(loss[1:3], expected, rtol=1e-2, atol=1e-30)
    torch.testing.assert_close(
        loss[3:], torch.tensor([[0, INFINITY], [INFINITY, 0]], dtype=torch.float64), rtol=0, atol=1e-30
    )
    expected = torch.tensor([[0, 0.75], [-0.25, 0]], dtype=torch.float64)
    torch.testing.assert_close(slope[1:], expected.repeat(2, 1), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_masked_slots_count_exactly_nothing(dtype, reduction):
    logits, labels, mask = slots(100, 7, dtype=dtype)
    expected = sigmoid_focal_loss(logits, labels, mask, reduction=reduction)
    expected_gradient = gradient(sigmoid_focal_loss, logits, labels, mask, reduction=reduction)
    hidden = ~mask
    logits[hidden] = torch.tensor([NAN, INFINITY, -INFINITY, 1e4, -1e4, 0, NAN], dtype=dtype)
    labels[hidden] = torch.tensor(-(2**62))
    assert torch.equal(sigmoid_focal_loss(logits, labels, mask, reduction=reduction), expected)
    got = gradient(sigmoid_focal_loss, logits, labels, mask, reduction=reduction)
    assert torch.equal(got, expected_gradient) and not got[hidden].any()
    nothing = sigmoid_focal_loss(logits, labels, torch.zeros_like(mask), reduction=reduction)
    assert not nothing.any()


def test_a_label_of_no_class_is_that_of_the_background():
    logits, _, _ = slots(6, 4)
    beyond = torch.tensor([4, 5, -1, 2**63 - 1, -(2**63), 1000])
    assert torch.equal(sigmoid_focal_loss(logits, beyond), sigmoid_focal_loss(logits, torch.full((6,), 4)))


@pytest.mark.parametrize("shape", [(5,), (1, 1), (3, 2, 5, 4), (17, 257)], ids=str)
def test_any_shape(shape):
    logits, labels, _ = slots(*shape)
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels), reference.sigmoid_focal_loss(logits, labels))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 7, 2)], ids=str)
def test_no_elements(shape, reduction):
    logits, labels = torch.empty(shape), torch.zeros(shape[:-1], dtype=torch.int64)
    loss = sigmoid_focal_loss(logits, labels, reduction=reduction)
    torch.testing.assert_close(loss, reference.sigmoid_focal_loss(logits, labels, reduction=reduction), equal_nan=True)
    assert gradient(sigmoid_focal_loss, logits, labels, reduction=reduction).shape == shape


def test_not_contiguous():
    logits, labels, mask = slots(9, 4, 5)
    got = sigmoid_focal_loss(logits.transpose(0, 1), labels.T, mask.T)
    assert torch.equal(got, sigmoid_focal_loss(logits, labels, mask).transpose(0, 1))
    wide = torch.zeros(9, 4, 10)
    wide[..., ::2] = logits
    assert torch.equal(sigmoid_focal_loss(wide[..., ::2], labels, mask), sigmoid_focal_loss(logits, labels, mask))


def test_autocast():
    """What a layer under autocast gives, bfloat16, is read as it is."""
    logits, labels, mask = slots(50, 6, dtype=torch.bfloat16)
    outside = sigmoid_focal_loss(logits, labels, mask, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigmoid_focal_loss(logits, labels, mask, reduction="sum")
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_are_deterministic_and_independent_of_threads(reduction):
    logits, labels, mask = slots(4000, 80)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            loss = sigmoid_focal_loss(logits, labels, mask, reduction=reduction)
            results.append((loss, gradient(sigmoid_focal_loss, logits, labels, mask, reduction=reduction)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
    if reduction == "sum":
        exact = reference.sigmoid_focal_loss(logits.double(), labels, mask, reduction="sum")
        assert results[0][0].item() == pytest.approx(exact.item(), rel=1e-6)


def test_gradients_accumulate_and_the_graph_can_be_kept():
    logits, labels, mask = slots(30, 6)
    once = gradient(sigmoid_focal_loss, logits, labels, mask)
    leaf = logits.requires_grad_()
    loss = 2 * sigmoid_focal_loss(leaf, labels, mask, reduction="sum")
    for times in (1, 2):
        loss.backward(retain_graph=times == 1)
        torch.testing.assert_close(leaf.grad, 2 * times * once)
    each = torch.rand(30, 6, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(sigmoid_focal_loss(leaf, labels, mask), leaf, each)
    torch.testing.assert_close(got, each * once)


def test_second_derivative_is_an_error():
    logits, labels, _ = slots(3, 4)
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels, reduction="sum")
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: differentiable once only"):
        first.sum().backward()


def test_forward_mode_is_an_error_and_not_a_missing_tangent():
    logits, labels, _ = slots(3, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits))
        with pytest.raises(NotImplementedError, match="logits: expected a tensor without a tangent"):
            sigmoid_focal_loss(dual, labels)


def test_fake_tensors_have_the_gradients_shapes():
    with FakeTensorMode():
        logits = torch.rand(5, 4, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(5, dtype=torch.int64)
        for reduction in REDUCTIONS:
            loss = sigmoid_focal_loss(logits, labels, reduction=reduction)
            assert loss.shape == (logits.shape if reduction == "none" else ()) and loss.dtype == torch.float32
            (slope,) = torch.autograd.grad(loss.sum(), logits)
            assert slope.shape == (5, 4) and slope.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", range(3))
def test_opcheck(reduction, dtype):
    logits, labels, mask = slots(5, 4, dtype=dtype)
    arguments = (logits.requires_grad_(), labels, mask, 0.25, 2.0, reduction, True)
    torch.library.opcheck(torch.ops.libra_ops.sigmoid_focal_loss, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(reduction, dtype):
    def loss(logits, labels, mask):
        return sigmoid_focal_loss(logits, labels, mask, reduction=reduction)

    arguments = slots(9, 4, dtype=dtype)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), loss(*arguments))
    torch.testing.assert_close(gradient(compiled, *arguments), gradient(loss, *arguments))


LOGITS, LABELS = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS.long(), LABELS), {}, TypeError, r"logits: expected a floating dtype .*int64 \[2, 4\]"),
        ((torch.tensor(1.0), LABELS), {}, ValueError, r"logits: expected shape \[..., C\], got float32 \[\]"),
        ((LOGITS, LABELS.int()), {}, TypeError, "labels: expected dtype int64, got int32"),
        ((LOGITS, LOGITS.long()), {}, ValueError, r"labels: expected shape \[2\] .*got int64 \[2, 4\]"),
        ((LOGITS, LABELS.to("meta")), {}, ValueError, "labels: expected on cpu like logits, got meta"),
        ((LOGITS, LABELS, LABELS), {}, TypeError, "mask: expected dtype bool, got int64"),
        ((LOGITS, LABELS, LOGITS > 0), {}, ValueError, r"mask: expected shape \[2\] .*got bool \[2, 4\]"),
        ((LOGITS, LABELS), {"alpha": 1.5}, ValueError, "alpha: expected a finite number >= 0 and <= 1, got 1.5"),
        ((LOGITS, LABELS), {"gamma": -1}, ValueError, "gamma: expected a finite number >= 0 .*, got -1"),
        ((LOGITS, LABELS), {"gamma": "2"}, TypeError, "gamma: expected a number, got str"),
        ((LOGITS, LABELS), {"reduction": "avg"}, ValueError, "reduction: expected one of 'none', 'sum', 'mean', got"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sigmoid_focal_loss(*arguments, **options)


def on_both(dtype: torch.dtype, reduction: str, unaligned: bool = False) -> list[tuple[Tensor, Tensor]]:
    logits, labels, mask = slots(3001, 7, dtype=dtype)
    results = []
    for device in ("cpu", "cuda", "cuda"):
        rest = [x.to(device) for x in (labels, mask)]
        own = torch.cat([torch.zeros(1, 7, dtype=dtype), logits]).to(device).flatten()
        own = own[3 if unaligned else 7 :][: logits.numel()].view(logits.shape)
        own.copy_(logits)
        loss = sigmoid_focal_loss(own, *rest, reduction=reduction)
        results.append((loss.cpu(), gradient(sigmoid_focal_loss, own, *rest, reduction=reduction).cpu()))
    return results


@pytest.mark.cuda
@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_cuda(dtype, reduction, unaligned):
    cpu, first, second = on_both(dtype, reduction, unaligned)
    assert all(map(torch.equal, first, second))
    for got, expected in zip(first, cpu, strict=True):
        torch.testing.assert_close(got, expected)
