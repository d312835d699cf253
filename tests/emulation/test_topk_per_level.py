"""The CUDA kernels of topk_per_level, run on the CPU in every order of threads, against reference.py."""

import struct

import pytest
import torch
from torch import Tensor

from libra_ops import reference

from .harness import FOLDER, EmulationError, Kernels, empty, load, out


def key_above(threshold: float) -> int:
    """The lowest key of a float32 above the threshold, which is one."""
    (bits,) = struct.unpack("<I", struct.pack("<f", threshold))
    return (bits ^ (0xFFFFFFFF if bits >> 31 else 0x80000000)) + 1


def room(kernels: Kernels, level_sizes: list[int], k: int) -> tuple[int, int]:
    """How many levels of an image take counters, and how many candidates its lists hold."""
    found = torch.zeros(2, dtype=torch.int64)
    kernels.run("topk_room", torch.tensor(level_sizes), out(found), len(level_sizes), k)
    return tuple(found.tolist())


def topk(kernels: Kernels, scores: Tensor, level_sizes: list[int], k: int, threshold: float | None = None):
    images, levels = len(scores), len(level_sizes)
    open_levels, listed = room(kernels, level_sizes, k)
    sizes, passes, library = torch.tensor(level_sizes), kernels.library.topk_passes(), kernels.library
    slots = sum(min(size, k) for size in level_sizes)
    values, index = empty(images, slots, dtype=scores.dtype), empty(images, slots, dtype=torch.int64)
    kernels.run(
        f"run_topk_{str(scores.dtype).removeprefix('torch.')}",
        *(scores, sizes, images, levels, k, 0 if threshold is None else key_above(threshold)),
        out(empty(passes, images * open_levels, library.topk_buckets(), dtype=torch.int32)),
        out(empty(passes + 1, images * open_levels, 2, dtype=torch.int64)),
        out(empty(images, listed, dtype=torch.int64)),
        out(empty(2, images * levels, dtype=torch.int32)),
        *(out(values), out(index)),
    )
    return values, index


def check(kernels: Kernels, scores: Tensor, level_sizes: list[int], k: int, threshold: float | None = None) -> None:
    values, index = topk(kernels, scores, level_sizes, k, threshold)
    expected_values, expected_index = reference.topk_per_level(scores, level_sizes, k, threshold)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0, equal_nan=True)


def random_scores(images: int, count: int, seed: int = 1) -> Tensor:
    return torch.randn(images, count, generator=torch.Generator().manual_seed(seed)) - 3


# One level of several blocks, whose list does not hold it; small ones; empty ones; more than are there.
@pytest.mark.parametrize(
    ("images", "level_sizes", "k"),
    [(2, [9001, 300, 0, 5], 40), (1, [1], 1), (2, [0, 7], 3), (1, [5000], 4999), (1, [8191], 0), (1, [6000], 9000)],
    ids=str,
)
def test_agrees_with_the_reference(emulate, images, level_sizes, k):
    check(emulate("topk_per_level"), random_scores(images, sum(level_sizes)), level_sizes, k)


@pytest.mark.parametrize("flavour", ["equal", "two values", "almost equal", "not finite"])
def test_ties_are_settled_by_position(emulate, flavour):
    """Scores that no pass over their own bits can tell apart: the passes over the positions have to."""
    scores = torch.full((2, 9000), 0.75)
    if flavour == "two values":
        scores[:, ::100] = 2.0
    elif flavour == "almost equal":
        scores += torch.randint(0, 3, scores.shape, generator=torch.Generator().manual_seed(1)) * 2**-22
    elif flavour == "not finite":
        scores[:, ::2], scores[:, 1::4] = torch.nan, -torch.inf
        scores[1, 3::4] = torch.nan
    check(emulate("topk_per_level"), scores, [8900, 100], 60)


@pytest.mark.parametrize("threshold", [-2.0, -3.0, 0.0, 9.0, -20.0])
def test_threshold(emulate, threshold):
    """Few above it, which the first pass lists; more than the list holds; fewer than are wanted; none."""
    scores = random_scores(1, 9500)
    scores[0, ::50] = torch.nan
    check(emulate("topk_per_level"), scores, [9000, 500], 30, threshold)


def test_bfloat16_is_read_as_it_is(emulate):
    check(emulate("topk_per_level"), random_scores(1, 9000).bfloat16(), [9000], 50)


def test_a_small_level_takes_memory_for_its_own_scores_alone():
    kernels = load(FOLDER / "topk_per_level_driver.cpp", "random")
    assert room(kernels, [4096, 5, 0], 1000) == (0, 4101)
    assert room(kernels, [100_000, 4097, 300], 1000) == (2, 4096 + 4096 + 300)
    assert room(kernels, [100_000, 6000, 6001], 4000) == (2, 6000 + 6000 + 6000)
    assert room(kernels, [100_000, 5], 0) == (0, 0)


def test_more_blocks_than_a_launch_has_are_refused(emulate):
    kernels, x = emulate("topk_per_level"), torch.zeros(1)
    workspace = [out(x)] * 6
    for images, sizes in ((2**30, [1, 1]), (2**30, [1, 0]), (2**26, [5000])):
        with pytest.raises(EmulationError, match="returned 9"):
            kernels.run("run_topk_float32", x, torch.tensor(sizes), images, len(sizes), 1, 0, *workspace)


def test_a_stale_workspace_does_not_matter():
    kernels = load(FOLDER / "topk_per_level_driver.cpp", "random", seed=3)
    scores = random_scores(1, 9000)
    first, second = (topk(kernels, scores, [9000], 20) for _ in range(2))
    assert torch.equal(first[1], second[1])
