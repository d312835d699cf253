"""The CUDA kernel of sample_iou_balanced, run on the CPU in every order of threads: exactly the twin's samples.

The last image of every batch has no ignored candidate, and draws as many samples as asked for wherever it can, so that
a read or write just beyond the batch shows.
"""

import itertools

import pytest
import torch
from torch import Tensor

from libra_ops import reference
from libra_ops.sample_iou_balanced import Samples

from .harness import Kernels, empty, out

SHARED_POSITIVES = 2048  # sorted in shared memory; more in the workspace
OPTIONS = {
    "num_samples": 64,
    "max_positives": 16,
    "num_bins": 3,
    "interval": (0.0, 0.5),
    "max_negatives_per_positive": None,
    "positives": "instance_balanced",
    "bins": "paper",
}


def scene(images, candidates, targets=5, shares=(0.1, 0.7, 0.2), seed=0, grid=None):
    """index, iou, state; shares: of positive, negative and ignored candidates. grid: IoU is a multiple of 1 / grid."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([1, 0, -1], dtype=torch.int8)
    draws = torch.multinomial(torch.tensor(shares), images * candidates, replacement=True, generator=generator)
    state = kinds[draws].view(images, candidates)
    state[-1][state[-1] < 0] = 0
    iou = torch.rand(images, candidates, generator=generator).square()
    if grid:
        iou = (iou * grid).round() / grid
    return torch.randint(0, targets, (images, candidates), generator=generator), iou, state


def sample(kernels: Kernels, matches: tuple[Tensor, Tensor, Tensor], seed: int, options: dict):
    """As the GPU's wrapper does; all memory the kernel writes starts as poison."""
    images, candidates = matches[0].shape
    samples = options["num_samples"]
    balanced = options["positives"] == "instance_balanced"
    limit = options["max_negatives_per_positive"]
    group = empty(images, candidates, dtype=torch.uint8)
    word = empty(images, candidates, dtype=torch.int32)
    items = empty(images, candidates, 2, dtype=torch.int64) if balanced and candidates > SHARED_POSITIVES else None
    results = [empty(images, samples, dtype=dtype) for dtype in (torch.int64, torch.uint8, torch.uint8)]
    kernels.run(
        "run_sample_iou_balanced",
        *(*matches, torch.tensor([seed]), images, candidates, samples, options["max_positives"], options["num_bins"]),
        *map(float, options["interval"]),
        -1.0 if limit is None else float(limit),
        *(balanced, options["bins"] == "published"),
        *(out(group), out(word), items if items is None else out(items)),
        *map(out, results),
    )
    return results[0], results[1].bool(), results[2].bool()


def assert_exact(kernels: Kernels, matches: tuple[Tensor, Tensor, Tensor], seed: int, **changes) -> None:
    options = {**OPTIONS, **changes}
    wanted = reference.sample_iou_balanced(*matches, seed, **options)
    for name, got, expected in zip(Samples._fields, sample(kernels, matches, seed, options), wanted, strict=True):
        assert torch.equal(got, expected), f"{name} differs for {changes}"


def test_the_sort_in_shared_memory_is_the_one_assumed_here(emulate):
    assert emulate("sample_iou_balanced").library.sample_shared_positives() == SHARED_POSITIVES


@pytest.mark.parametrize("candidates", [1, 31, 300, 1024, 1025, 2000])  # beside a warp and a block of 1024 threads
def test_agrees_with_the_reference(emulate, candidates):
    kernels = emulate("sample_iou_balanced")
    kinds = itertools.product(("paper", "published"), ("instance_balanced", "random"))
    for seed, (bins, positives) in enumerate(kinds):
        matches = scene(3, candidates, seed=candidates + seed)
        assert_exact(kernels, matches, seed - 2, bins=bins, positives=positives)


@pytest.mark.parametrize("num_bins", [1, 2, 32, 33, 64])  # 33: the histograms' digits become narrower
def test_any_number_of_bins(emulate, num_bins):
    matches = scene(2, 1500, seed=num_bins, grid=128)  # many IoUs lie on edges
    for bins in ("paper", "published"):
        assert_exact(emulate("sample_iou_balanced"), matches, 7, num_bins=num_bins, num_samples=300, bins=bins)


@pytest.mark.parametrize(
    "shares", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.9, 0.1, 0), (0.01, 0.02, 0.97)], ids=lambda shares: str(shares)
)
def test_one_kind_of_candidate_prevails(emulate, shares):
    kernels = emulate("sample_iou_balanced")
    for num_samples, max_positives in ((0, 0), (1, 0), (50, 50), (200, 0), (200, 60), (700, 700)):
        changes = {"num_samples": num_samples, "max_positives": max_positives}
        assert_exact(kernels, scene(2, 500, shares=shares), 3, **changes)
        assert_exact(kernels, scene(2, 500, shares=shares), 3, positives="random", bins="published", **changes)


@pytest.mark.parametrize("targets", [1, 3, 200, 10_000])
def test_rounds_of_positives(emulate, targets):
    kernels = emulate("sample_iou_balanced")
    matches = scene(2, 1100, targets, shares=(0.8, 0.1, 0.1), seed=targets)
    for max_positives in (1, 100, 128):
        assert_exact(kernels, matches, 11, num_samples=128, max_positives=max_positives)


def test_more_positives_than_shared_memory_holds(emulate):
    index, iou, state = scene(2, 2500, targets=40, shares=(0.9, 0.1, 0))
    index -= 20  # a target is any number
    assert (state == 1).sum(1).min() > SHARED_POSITIVES
    assert_exact(emulate("sample_iou_balanced"), (index, iou, state), 13, num_samples=512, max_positives=301)


def test_negatives_per_positive(emulate):
    kernels = emulate("sample_iou_balanced")
    for limit, shares in itertools.product((0, 0.5, 3, 1e12), ((0.02, 0.98, 0), (0, 1.0, 0))):
        assert_exact(kernels, scene(3, 400, shares=shares), 17, max_negatives_per_positive=limit)
    changes = {"num_samples": 400, "max_positives": 100, "max_negatives_per_positive": 1.15}  # 114.99999999999999
    assert_exact(kernels, scene(2, 400, shares=(0.5, 0.5, 0)), 17, **changes)


def test_iou_that_is_not_finite(emulate):
    kernels = emulate("sample_iou_balanced")
    for values in ((float("nan"), 0.7), (float("nan"), float("inf"))):
        index, iou, state = scene(2, 300)
        iou[:, ::3], iou[:, 1::7] = values
        for bins, num_samples in itertools.product(("paper", "published"), (30, 250)):
            assert_exact(kernels, (index, iou, state), 5, bins=bins, num_samples=num_samples)


def test_equal_words_go_by_index(emulate):
    candidates, seed, quota = 20_000, 24, 17_653
    words = reference.philox(seed, 0, torch.arange(candidates))[0]
    assert words[2683] == words[3281] == words.sort()[0][quota - 1]
    zeros = torch.zeros(1, candidates, dtype=torch.int64)
    matches = (zeros, zeros.float(), zeros.to(torch.int8))
    changes = {"num_samples": quota, "max_positives": 0, "num_bins": 1, "positives": "random"}
    assert_exact(emulate("sample_iou_balanced"), matches, seed, **changes)


def test_no_candidates_and_no_images(emulate):
    kernels = emulate("sample_iou_balanced")
    for images, candidates in ((2, 0), (0, 5), (0, 0)):
        matches = (
            torch.empty(images, candidates, dtype=torch.int64),
            torch.empty(images, candidates),
            torch.empty(images, candidates, dtype=torch.int8),
        )
        assert_exact(kernels, matches, 19)
