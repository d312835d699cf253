"""topk_per_level: equal to its twin, to torch.topk where that is settled, and to what its docstring says."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from libra_ops import reference, topk_per_level

LEVELS = [3000, 750, 190, 48, 12]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_scores(images: int = 3, count: int = sum(LEVELS), seed: int = 0) -> Tensor:
    return torch.randn(images, count, generator=torch.Generator().manual_seed(seed))


def with_peculiar_values(scores: Tensor) -> Tensor:
    """Zeros of both signs, infinities and NaN of both signs, and ties."""
    scores = scores.clone()
    for first, value in enumerate((0.0, -0.0, -math.inf, math.inf, math.nan, 1.0)):
        scores[:, first::17] = value
    scores[:, 6::17] = -torch.tensor(math.nan)
    return scores


def check(scores: Tensor, level_sizes: list[int], k: int, threshold: float | None = None) -> None:
    values, index = topk_per_level(scores, level_sizes, k, threshold=threshold)
    expected_values, expected_index = reference.topk_per_level(scores, level_sizes, k, threshold)
    assert values.dtype == scores.dtype and index.dtype == torch.int64
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 1, 20, 1000, 10**6])
def test_equals_the_twin(dtype, k):
    check(random_scores().to(dtype), LEVELS, k)
    check(with_peculiar_values(random_scores()).to(dtype), LEVELS, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [-math.inf, -1.23456789, -1e-30, 0.0, 0.5, 1.0000001, 2.9, 1e30, math.inf])
def test_threshold(dtype, threshold):
    check(with_peculiar_values(random_scores()).to(dtype), LEVELS, 100, threshold)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "threshold", [0.05, 0.1, 0.3, 1 / 3, -0.7, 1.0, 1 + 2**-11 + 2**-40, 2.9e-8, 65519.9, 1e300, -1e300]
)
def test_a_score_equal_to_the_rounded_threshold_is_not_above_it(dtype, threshold):
    """As in PyTorch's scores > threshold: float32's 0.05 is larger than the number 0.05, but not above it."""
    rounded = torch.tensor(threshold, dtype=dtype)
    below, above = (torch.nextafter(rounded, rounded.new_tensor(limit)) for limit in (-math.inf, math.inf))
    scores = torch.stack((below, rounded, above, rounded.new_tensor(math.nan)))[None]
    values, index = topk_per_level(scores, [4], 4, threshold=threshold)
    wanted = [2] if above > rounded else []  # nothing is above infinity
    assert (scores > threshold)[0].nonzero()[:, 0].tolist() == wanted
    assert index.tolist() == [wanted + [0] * (4 - len(wanted))]
    assert (values[0, len(wanted) :] == -math.inf).all()
    check(scores, [4], 4, threshold)


def test_slots_that_are_left_over_can_be_gathered_with():
    values, index = topk_per_level(torch.tensor([[3.0, 1.0, 2.0, 0.0, 0.0]]), [3, 2], 2, threshold=2.5)
    assert values.tolist() == [[3.0, -math.inf, -math.inf, -math.inf]]
    assert index.tolist() == [[0, 0, 3, 3]]


def test_torch_topk():
    scores = random_scores()
    values, index = topk_per_level(scores, LEVELS, 50)
    first, slot = 0, 0
    for size in LEVELS:
        expected = scores[:, first : first + size].topk(min(size, 50), dim=1)
        assert torch.equal(values[:, slot : slot + min(size, 50)], expected.values)
        assert torch.equal(index[:, slot : slot + min(size, 50)], expected.indices + first)
        first, slot = first + size, slot + min(size, 50)


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_sorted_and_equal_scores(order):
    """A rising level is the hardest: every score is better than all before it. Larger than a piece of the CPU's."""
    scores = torch.arange(300_000, dtype=torch.float32)[None].repeat(2, 1)
    scores = {"rising": scores, "falling": -scores, "equal": scores * 0}[order]
    values, index = topk_per_level(scores, [300_000], 500)
    best = torch.arange(500) if order != "rising" else torch.arange(300_000 - 1, 300_000 - 501, -1)
    assert torch.equal(index, best.expand(2, -1)) and torch.equal(values, scores.gather(1, index))


def test_a_level_in_pieces():
    scores = with_peculiar_values(random_scores(1, 400_000))
    check(scores, [300_000, 100_000], 2000)
    check(scores, [300_000, 100_000], 2000, threshold=3.5)
    check(scores, [400_000], 399_999)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_empty(shape):
    values, index = topk_per_level(torch.rand(shape), [shape[1]] if shape[1] else [], 3)
    assert values.shape == index.shape == (shape[0], min(shape[1], 3))
    assert topk_per_level(torch.rand(2, 3), [0, 3, 0], 2)[0].shape == (2, 2)


def test_not_contiguous_or_not_aligned():
    scores = random_scores()
    expected = topk_per_level(scores, LEVELS, 30)[1]
    assert torch.equal(topk_per_level(scores.T.contiguous().T, LEVELS, 30)[1], expected)
    half = scores.bfloat16()
    shifted = torch.cat([half.new_zeros(1), half.flatten()])[1:].view_as(half)
    assert torch.equal(topk_per_level(shifted, LEVELS, 30)[1], topk_per_level(half, LEVELS, 30)[1])


def test_values_have_no_gradient():
    scores = random_scores().requires_grad_()
    values, index = topk_per_level(scores, LEVELS, 30)
    assert not values.requires_grad
    assert torch.equal(scores.gather(1, index).detach(), values)


def test_independent_of_threads():
    scores = with_peculiar_values(random_scores(2, 400_000))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(topk_per_level(scores, [300_000, 100_000], 700)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_opcheck():
    torch.library.opcheck(torch.ops.libra_ops.topk_per_level, (random_scores(), LEVELS, 30, None))
    torch.library.opcheck(torch.ops.libra_ops.topk_per_level, (random_scores().bfloat16(), LEVELS, 30, 0.5))


def test_fake_tensors():
    with FakeTensorMode():
        values, index = topk_per_level(torch.rand(3, 100, dtype=torch.bfloat16), [90, 10], 20)
        assert values.shape == index.shape == (3, 30) and values.dtype == torch.bfloat16


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile(dynamic):
    """Levels as sizes of tensors: where they are unknown at first, torch.compile fixes them."""
    torch._dynamo.reset()

    def best(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        return topk_per_level(torch.cat(maps, 1), [level.shape[1] for level in maps], 7, threshold=0.25)

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for count in (40, 50):
        maps = [random_scores(2, count), random_scores(2, 5, seed=1)]
        for got, expected in zip(compiled(maps), best(maps), strict=True):
            assert torch.equal(got, expected)


SCORES = torch.rand(2, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], [1], 1), TypeError, "scores: expected a torch.Tensor, got list"),
        ((SCORES.double(), [6], 1), TypeError, r"scores: expected dtype float32, .* got float64 \[2, 6\]"),
        ((SCORES[0], [6], 1), ValueError, r"scores: expected shape \[B, N\], got float32 \[6\]"),
        ((SCORES, [4, 1], 1), ValueError, r"level_sizes: expected a sum of 6 .* got 5"),
        ((SCORES, [7, -1], 1), ValueError, "level_sizes: expected an int >= 0"),
        ((SCORES, 6, 1), TypeError, "level_sizes: expected a sequence of ints, got int"),
        ((SCORES, [6.0], 1), TypeError, "level_sizes: expected an int, got float"),
        ((SCORES, [1] * 17, 1), ValueError, "level_sizes: expected at most 16 levels, got 17"),
        ((SCORES, [6], -1), ValueError, "k: expected an int >= 0"),
        ((SCORES, [6], 1.0), TypeError, "k: expected an int, got float"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        topk_per_level(*arguments)
    with pytest.raises(ValueError, match="threshold: expected a finite number"):
        topk_per_level(SCORES, [6], 1, threshold=math.nan)
    for huge in (10**400, 10**5000):
        with pytest.raises(ValueError, match="threshold: expected a finite number"):
            topk_per_level(SCORES, [6], 1, threshold=huge)
    with pytest.raises(TypeError, match="threshold: expected a number, got Tensor"):
        topk_per_level(SCORES, [6], 1, threshold=torch.ones(2))


def test_the_operator_checks_too():
    op = torch.ops.libra_ops.topk_per_level
    with pytest.raises(RuntimeError, match="scores: expected dtype"):
        op(SCORES.double(), [6], 1, None)
    with pytest.raises(RuntimeError, match="level_sizes: expected a sum of 6"):
        op(SCORES, [5], 1, None)
    with pytest.raises(RuntimeError, match="level_sizes: expected 0 to 2"):
        op(SCORES, [7, -1], 1, None)
    with pytest.raises(RuntimeError, match="k: expected 0 to 2"):
        op(SCORES, [6], -1, None)


@pytest.mark.cuda
@pytest.mark.parametrize("threshold", [None, 0.5, 3.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_the_cpu(dtype, threshold):
    scores = with_peculiar_values(random_scores(2, 400_000)).to(dtype)
    for k in (1, 500, 2000, 6000):
        expected = topk_per_level(scores, [300_000, 99_000, 1000], k, threshold=threshold)
        for _ in range(2):
            found = topk_per_level(scores.cuda(), [300_000, 99_000, 1000], k, threshold=threshold)
            assert torch.equal(found[1].cpu(), expected[1])
            torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
def test_cuda_says_which_argument_is_too_large():
    if torch.cuda.mem_get_info()[0] < 6e9:
        pytest.skip("needs 6 GB of free GPU memory")
    scores = torch.zeros(2**30, 2, dtype=torch.float16, device="cuda")
    with pytest.raises(RuntimeError, match=r"scores: expected .* at most 2\^31 - 1 blocks.* got 1073741824 images"):
        topk_per_level(scores, [1, 1], 1)
