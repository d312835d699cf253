"""How often sample_iou_balanced draws whom: against the closed form, and against the reference implementation's record.

The images of one call are independent draws, so thousands of trials are one call with a large batch.
"""

import math

import pytest
import torch
from torch import Tensor

from libra_ops import reference
from libra_ops.sample_iou_balanced import Samples, sample_iou_balanced


def same_for_all(images: int, iou: Tensor, state: Tensor, index: Tensor | None = None):
    """One scene [N] as a batch: every image is an independent draw."""
    index = torch.zeros(len(iou), dtype=torch.int64) if index is None else index
    return tuple(tensor.expand(images, -1) for tensor in (index, iou, state))


def inclusion_probability(group: Tensor, count: int, num_bins: int) -> Tensor:
    """[N] -> [N]: of negatives with groups as reference.negative_groups gives them (-1: no negative), `count` in all.

    Bin k gives n_k = min(count // K, M_k), so p = n_k / M_k; of those left, u, the rest r is drawn with p = r / u.
    """
    quota = count // num_bins
    sizes = [(group == k).sum().item() for k in range(num_bins + 2)]
    given = [min(quota, size) for size in sizes[:num_bins]]
    rest = count - sum(given)
    left = sum(sizes[: num_bins + 1]) - sum(given)
    refill = min(1.0, rest / left) if left else 0.0
    last_resort = min(1.0, (rest - min(rest, left)) / sizes[-1]) if sizes[-1] else 0.0
    table = [(n / m if m else 0.0) for n, m in zip(given, sizes, strict=False)]
    table = [p + (1 - p) * refill for p in table] + [refill, last_resort, 0.0]
    return torch.tensor(table, dtype=torch.float64)[group]


def frequency(samples: Samples, candidates: int, which: Tensor) -> Tensor:
    """[N]: the share of images in which a candidate was drawn, as one of `which`."""
    counts = torch.zeros(candidates, dtype=torch.float64)
    counts.index_add_(0, samples.index[which], torch.ones(int(which.sum()), dtype=torch.float64))
    return counts / len(samples.index)


def assert_frequencies(measured: Tensor, expected: Tensor, variance: Tensor) -> None:
    """No candidate off by 4.5 standard deviations; those with probability 0 or 1 exact."""
    certain = variance == 0
    assert torch.equal(measured[certain], expected[certain])
    z = (measured - expected)[~certain] / variance[~certain].sqrt()
    assert len(z) == 0 or z.abs().max() < 4.5


def assert_uniform(measured: Tensor, expected: Tensor, trials: int) -> None:
    """Chi-square of one group drawn without replacement, of which all members have one probability."""
    p, size = expected[0].item(), len(expected)
    assert (expected == p).all() and 0 < p < 1 and size > 30
    chi_square = ((measured - p) ** 2).sum().item() * trials / (p * (1 - p)) * (size - 1) / size
    assert abs(chi_square - (size - 1)) < 4.5 * math.sqrt(2 * (size - 1))


@pytest.mark.parametrize("bins", ["paper", "published"])
@pytest.mark.parametrize("num_bins", [1, 3, 5])
def test_negatives_have_the_probabilities_of_the_paper(bins, num_bins):
    generator = torch.Generator().manual_seed(num_bins)
    candidates, trials, count = 900, 4000, 151  # not a multiple of K: a refill is always needed
    iou = torch.rand(candidates, generator=generator).pow(2.5) * 0.6  # the last bins are short
    iou[:60] = 0
    state = torch.zeros(candidates, dtype=torch.int8)
    state[-100:-50], state[-50:] = 1, -1
    iou[-50] = 1.0  # the largest is an ignored candidate's
    torch.manual_seed(7)
    samples = sample_iou_balanced(
        same_for_all(trials, iou, state), num_samples=count, positive_fraction=0, num_bins=num_bins, bins=bins
    )
    assert samples.valid.all() and not samples.positive.any()
    group = reference.negative_groups(iou, num_bins, (0.0, 0.5), bins)
    group[state != 0] = -1
    expected = inclusion_probability(group, count, num_bins)
    measured = frequency(samples, candidates, samples.valid)
    assert_frequencies(measured, expected, expected * (1 - expected) / trials)
    tested = 0
    for k in range(num_bins + 2):
        members = group == k
        if members.sum() > 30 and 0 < expected[members][0] < 1:
            assert_uniform(measured[members], expected[members], trials)
            tested += 1
    assert tested >= 1


def test_published_bins_agree_with_the_reference_implementation(libra_goldens):
    cases = torch.load(libra_goldens / "f_iou_balanced_neg.pt", weights_only=True)["cases"]
    tested = 0
    for name, case in cases.items():
        kwargs = case["kwargs"]
        if kwargs["floor_fraction"] or kwargs["floor_thr"] > 0:
            continue
        state = case["gt_inds"].sign().to(torch.int8)
        iou, trials, count = case["max_overlaps"], 4000, case["num_expected"]
        torch.manual_seed(3)
        samples = sample_iou_balanced(
            same_for_all(trials, iou, state),
            **{"num_samples": count, "positive_fraction": 0, "num_bins": kwargs["num_bins"], "bins": "published"},
        )
        assert (samples.valid.sum(1) == case["steady"]["mean_total"]).all(), name
        measured, theirs = frequency(samples, len(iou), samples.valid), case["steady"]["freq"].double()
        pooled = (measured * trials + theirs * case["trials"]) / (trials + case["trials"])
        variance = pooled * (1 - pooled) * (1 / trials + 1 / case["trials"])
        assert_frequencies(measured, theirs, variance.clamp(min=1e-12))
        tested += 1
    assert tested >= 13


def test_positives_are_equal_per_target(libra_goldens):
    cases = torch.load(libra_goldens / "f_instance_balanced_pos.pt", weights_only=True)["cases"]
    for name, case in cases.items():
        targets, count, trials = case["gt_inds"], case["num_expected"], 2000  # 0: negative; targets are 1..G
        state = targets.sign().to(torch.int8)
        torch.manual_seed(5)
        matches = same_for_all(trials, torch.ones(len(targets)), state, targets - 1)
        samples = sample_iou_balanced(matches, num_samples=count, positive_fraction=1.0, max_negatives_per_positive=0)
        has = torch.bincount(targets)[1:]  # [G]
        drawn = min(count, int(has.sum()))
        assert (samples.positive.sum(1) == drawn).all() and torch.equal(samples.positive, samples.valid), name
        chosen = torch.zeros(trials, len(targets), dtype=torch.float64)
        chosen.scatter_add_(1, samples.index[:, :drawn], torch.ones(trials, drawn, dtype=torch.float64))
        assert chosen.max() == 1, f"{name}: a positive was drawn twice"
        gave = torch.zeros(trials, len(has) + 1, dtype=torch.float64).index_add_(1, targets, chosen)[:, 1:]  # [B, G]
        most = gave.amax(1, keepdim=True)
        assert ((gave >= most - 1) | (gave == has)).all(), f"{name}: a target gave fewer than others and had more"
        # Full rounds for all; then the last places go at random to targets with more left.
        rounds = max(r for r in range(count + 1) if has.clamp(max=r).sum() <= drawn)
        mean = has.clamp(max=rounds).double()
        more = has > rounds
        mean[more] += (drawn - mean.sum()) / more.sum()
        p = torch.cat([torch.zeros(1), mean / has])[targets].double()
        assert_frequencies(chosen.mean(0), p, p * (1 - p) / trials)
        if case["mean_unique"] == case["mean_raw"]:  # where the reference implementation drew nobody twice
            torch.testing.assert_close(gave.mean(0), case["mean_per_gt"].double(), atol=0.15, rtol=0)


def test_random_positives_are_uniform():
    trials, targets = 4000, torch.tensor([0] * 300 + [1] * 20)
    matches = same_for_all(trials, torch.ones(320), torch.ones(320, dtype=torch.int8), targets)
    samples = sample_iou_balanced(matches, num_samples=64, positive_fraction=0.5, positives="random")
    measured = frequency(samples, 320, samples.positive)
    assert samples.valid.sum(1).eq(32).all()
    assert_uniform(measured, torch.full((320,), 0.1, dtype=torch.float64), trials)


def test_images_and_calls_are_independent():
    trials = 4000
    matches = same_for_all(trials, torch.zeros(40), torch.zeros(40, dtype=torch.int8))
    options = {"num_samples": 10, "positive_fraction": 0, "num_bins": 1}
    draws = [sample_iou_balanced(matches, **options).index for _ in range(2)]
    first, second = (torch.zeros(trials, 40).scatter_(1, index, 1) for index in draws)
    for other in (second, first.roll(1, 0)):
        both = (first * other).sum(1).mean()  # of 10 and 10 of 40: 2.5 in common, hypergeometric
        deviation = math.sqrt(10 * 0.25 * 0.75 * 30 / 39 / trials)
        assert abs(both - 2.5) < 4.5 * deviation
