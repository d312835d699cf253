"""The CUDA kernels of sample_iou_balanced, run on the CPU in every order of threads: exactly the twin's samples.

The last image of every batch has no ignored candidate, and draws as many samples as asked for wherever it can, so that
a read or write just beyond the batch shows.
"""

import ctypes
import itertools

import pytest
import torch
from torch import Tensor

from libra_ops import reference
from libra_ops.sample_iou_balanced import Samples

from .harness import Kernels, empty, out

ITEMS = 2560  # candidates of an image that one block holds in shared memory; of more, many blocks sift
LISTED_SAMPLES = 768  # so many samples are drawn from what was sifted; more from all candidates
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
    """index, valid, positive as the GPU's wrapper returns them, and how many candidates of each image were listed; all
    memory the kernels write starts as poison."""
    images, candidates = matches[0].shape
    samples = options["num_samples"]
    balanced = options["positives"] == "instance_balanced"
    limit = options["max_negatives_per_positive"]
    chunks = kernels.library.sample_chunks(ctypes.c_int64(candidates))
    length = empty(images, dtype=torch.int32)
    workspace = (
        empty(images, candidates, dtype=torch.uint8),
        empty(images, candidates, dtype=torch.int32),
        empty(images, candidates, 2, dtype=torch.int64) if balanced else None,
        empty(images, chunks),
        empty(images, chunks, kernels.library.sample_max_groups(), dtype=torch.int32),
        empty(images, ITEMS, dtype=torch.int64),
        length,
    )
    results = [empty(images, samples, dtype=dtype) for dtype in (torch.int64, torch.uint8, torch.uint8)]
    kernels.run(
        "run_sample_iou_balanced",
        *(*matches, torch.tensor([seed]), images, candidates, samples, options["max_positives"], options["num_bins"]),
        *map(float, options["interval"]),
        -1.0 if limit is None else float(limit),
        *(balanced, options["bins"] == "published"),
        *(memory if memory is None else out(memory) for memory in workspace),
        *map(out, results),
    )
    return (results[0], results[1].bool(), results[2].bool()), length.tolist()


def assert_exact(kernels: Kernels, matches: tuple[Tensor, Tensor, Tensor], seed: int, **changes) -> list[int]:
    options = {**OPTIONS, **changes}
    wanted = reference.sample_iou_balanced(*matches, seed, **options)
    results, listed = sample(kernels, matches, seed, options)
    for name, got, expected in zip(Samples._fields, results, wanted, strict=True):
        assert torch.equal(got, expected), f"{name} differs for {changes}"
    return listed


def test_the_limits_are_those_assumed_here(emulate):
    library = emulate("sample_iou_balanced").library
    assert (library.sample_items(), library.sample_max_listed_samples()) == (ITEMS, LISTED_SAMPLES)


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


def test_targets_that_do_not_fit_into_a_key(emulate):
    for shift in (-20, 2**20 - 30, 2**62):
        index, iou, state = scene(2, 700, targets=40, shares=(0.6, 0.4, 0), seed=2)
        assert_exact(emulate("sample_iou_balanced"), (index + shift, iou, state), 13, num_samples=200, max_positives=99)


@pytest.mark.parametrize("shares", [(0.02, 0.9, 0.08), (0.2, 0.3, 0.5), (0, 0.05, 0.95), (0.0005, 0.9995, 0)], ids=str)
def test_many_blocks_sift(emulate, shares):
    kernels, candidates = emulate("sample_iou_balanced"), 6001
    kinds = itertools.product(("paper", "published"), ("instance_balanced", "random"))
    intervals = {1: (0.0, 0.5), 3: (0.0, 0.5), 5: (0.97, 2.0), 64: (0.0, 0.5)}  # of 5 bins: they run short
    for (bins, positives), (num_bins, interval) in zip(kinds, intervals.items(), strict=True):
        matches = scene(2, candidates, targets=30, shares=shares, seed=num_bins)
        changes = {"num_samples": 200, "max_positives": 90, "bins": bins, "positives": positives}
        listed = assert_exact(kernels, matches, 23, num_bins=num_bins, interval=interval, **changes)
        assert max(listed) < candidates / 2


def test_a_list_that_does_not_fit(emulate):
    """Very many positives dealt by target, and very many samples: drawn from all candidates in global memory."""
    index, iou, state = scene(2, 4000, targets=40, shares=(0.9, 0.1, 0))
    index -= 20  # a target is any number
    changes = {"num_samples": 512, "max_positives": 301}
    assert min(assert_exact(emulate("sample_iou_balanced"), (index, iou, state), 13, **changes)) > ITEMS
    changes = {"num_samples": LISTED_SAMPLES + 1, "max_positives": 301, "positives": "random"}
    assert min(assert_exact(emulate("sample_iou_balanced"), (index, iou, state), 13, **changes)) < 0  # poison


def test_words_that_are_too_high_for_the_list(emulate):
    """A group whose words are by chance so high that the sift loses some: found, and drawn from all candidates.

    The chance is 10^-9, so the candidates of the only bin are chosen by their words."""
    candidates, seed = 30_000, 3
    word = reference.philox(seed, 0, torch.arange(candidates))[0]
    state = torch.where(word > 2**31, 0, -1).to(torch.int8)[None]
    matches = (torch.zeros(1, candidates, dtype=torch.int64), torch.zeros(1, candidates), state)
    changes = {"num_samples": 200, "max_positives": 0, "num_bins": 1}
    assert assert_exact(emulate("sample_iou_balanced"), matches, seed, **changes) == [0]


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
