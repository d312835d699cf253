"""sample_iou_balanced: exactly the samples of its twin, and what else a user notices.

How often it draws whom is in test_sample_iou_balanced_probabilities.py.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from libra_ops import reference
from libra_ops.sample_iou_balanced import Samples, sample_iou_balanced

NAN, INFINITY = float("nan"), float("inf")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
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
    draws = torch.multinomial(torch.tensor(shares), max(1, images * candidates), replacement=True, generator=generator)
    state = kinds[draws][: images * candidates].view(images, candidates)
    iou = torch.rand(images, candidates, generator=generator).square()
    if grid:
        iou = (iou * grid).round() / grid
    return torch.randint(0, targets, (images, candidates), generator=generator), iou, state


def run_op(matches, seed: int, device: str, options: dict):
    o = options
    limit = o["max_negatives_per_positive"]
    return torch.ops.libra_ops.sample_iou_balanced(
        *(tensor.to(device) for tensor in (*matches, torch.tensor([seed]))),
        *(o["num_samples"], o["max_positives"], o["num_bins"], *map(float, o["interval"])),
        *(None if limit is None else float(limit), o["positives"] == "instance_balanced", o["bins"] == "published"),
    )


def assert_exact(device: str, matches, seed: int, **changes) -> None:
    options = {**OPTIONS, **changes}
    wanted = reference.sample_iou_balanced(*matches, seed, **options)
    for name, got, expected in zip(Samples._fields, run_op(matches, seed, device, options), wanted, strict=True):
        assert torch.equal(got.cpu(), expected), f"{name} differs for {changes}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("candidates", [0, 1, 2, 9, 300, 2000, 5000])
def test_agrees_with_the_twin(device, candidates):
    for seed, (bins, positives, num_samples) in enumerate(
        itertools.product(("paper", "published"), ("instance_balanced", "random"), (1, 64, 512))
    ):
        matches = scene(2, candidates, targets=1 + seed * seed, seed=candidates + seed)
        max_positives = num_samples // 4
        changes = {"bins": bins, "positives": positives, "num_samples": num_samples, "max_positives": max_positives}
        assert_exact(device, matches, (seed - 5) * 2**58 + seed, **changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_bins", [1, 2, 3, 32, 33, 64])
def test_any_number_of_bins_with_ious_on_their_edges(device, num_bins):
    for bins, interval in itertools.product(("paper", "published"), ((0.0, 0.5), (0.125, 0.375), (-1.0, 2.0))):
        matches = scene(2, 1500, seed=num_bins, grid=128)
        changes = {"num_bins": num_bins, "num_samples": 300, "bins": bins, "interval": interval}
        assert_exact(device, matches, 7, **changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shares", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.9, 0.1, 0), (0.01, 0.02, 0.97)], ids=lambda shares: str(shares)
)
def test_one_kind_of_candidate_prevails(device, shares):
    for num_samples, max_positives in ((0, 0), (1, 0), (1, 1), (50, 50), (200, 0), (200, 60), (700, 700)):
        changes = {"num_samples": num_samples, "max_positives": max_positives}
        assert_exact(device, scene(2, 500, shares=shares), 3, **changes)
        assert_exact(device, scene(2, 500, shares=shares), 3, positives="random", bins="published", **changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("targets", [1, 3, 200, 10_000])
def test_rounds_of_positives(device, targets):
    index, iou, state = scene(2, 4000, targets, shares=(0.9, 0.1, 0), seed=targets)
    index = (index - 100) * 2**40  # a target is any number
    for max_positives in (1, 100, 512):
        assert_exact(device, (index, iou, state), 11, num_samples=512, max_positives=max_positives)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_words_go_by_index(device):
    candidates, seed, quota = 20_000, 24, 17_653
    words = reference.philox(seed, 0, torch.arange(candidates))[0]
    assert words[2683] == words[3281] == words.sort()[0][quota - 1]
    zeros = torch.zeros(1, candidates, dtype=torch.int64)
    matches = (zeros, zeros.float(), zeros.to(torch.int8))
    changes = {"num_samples": quota, "max_positives": 0, "num_bins": 1, "positives": "random"}
    assert_exact(device, matches, seed, **changes)
    drawn = run_op(matches, seed, device, {**OPTIONS, **changes})[0].cpu()
    assert 2683 in drawn and 3281 not in drawn


@pytest.mark.parametrize("device", DEVICES)
def test_as_many_candidates_as_anchors(device):
    matches = scene(2, 268_569, shares=(0.001, 0.979, 0.02))
    assert_exact(device, matches, 1, num_samples=256, max_positives=128, num_bins=1, positives="random")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("positives", ["instance_balanced", "random"])
@pytest.mark.parametrize("bins", ["paper", "published"])
def test_images_of_several_parts(device, bins, positives):
    """More than 16,384 candidates, which the CPU shares out among threads."""
    matches = scene(2, 40_000, targets=30, shares=(0.05, 0.6, 0.35), grid=64)
    for num_samples in (512, 12_000):
        changes = {"num_samples": num_samples, "max_positives": num_samples // 4, "num_bins": 5}
        assert_exact(device, matches, 13, bins=bins, positives=positives, **changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("word", [0, 1, 2, 3])
def test_all_candidates_have_large_words(device, word):
    """Whoever has the smallest random words is ignored: a search that expects small ones has to look again."""
    candidates, seed = 6000, 41
    index, iou, state = scene(1, candidates, targets=7, shares=(0.3, 0.7, 0))
    words = reference.philox(seed, 0, torch.arange(candidates))[word]
    state[0, words < 2**32 * 3 // 4] = -1
    for positives, bins in (("random", "paper"), ("instance_balanced", "published")):
        assert_exact(device, (index, iou, state), seed, num_samples=256, positives=positives, bins=bins)


@pytest.mark.parametrize("device", DEVICES)
def test_negatives_per_positive(device):
    for limit, shares in itertools.product((0, 0.5, 3, 1e12), ((0.02, 0.98, 0), (0, 1.0, 0))):
        assert_exact(device, scene(3, 400, shares=shares), 17, max_negatives_per_positive=limit)


@pytest.mark.parametrize("device", DEVICES)
def test_negatives_per_positive_are_rounded_as_people_expect(device):
    """1.15 * 100 is 114.99999999999999 in floating point."""
    matches = scene(1, 1000, shares=(0.5, 0.5, 0))
    changes = {"num_samples": 400, "max_positives": 100, "max_negatives_per_positive": 1.15}
    assert_exact(device, matches, 3, **changes)
    _, valid, positive = run_op(matches, 3, device, {**OPTIONS, **changes})
    assert positive.sum() == 100 and (valid & ~positive).sum() == 115


def test_numbers_of_numpy_are_numbers():
    matches = scene(2, 300)
    options = {"num_samples": 64, "positive_fraction": 0.25, "num_bins": 3, "max_negatives_per_positive": 2.0}
    of_numpy = {name: (np.int64 if isinstance(value, int) else np.float32)(value) for name, value in options.items()}
    drawn = []
    for arguments in (options, of_numpy):
        torch.manual_seed(1)
        drawn.append(sample_iou_balanced(matches, **arguments).index)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("device", DEVICES)
def test_samples_are_distinct_ordered_and_never_ignored(device):
    index, iou, state = (tensor.to(device) for tensor in scene(8, 700, seed=5, shares=(0.2, 0.3, 0.5)))
    samples = sample_iou_balanced((index, iou, state), num_samples=300, positive_fraction=0.25)
    assert samples.index.dtype == torch.int64 and samples.valid.dtype == samples.positive.dtype == torch.bool
    drawn = state.gather(1, samples.index)  # [B, S]
    assert (drawn[samples.valid] >= 0).all()
    assert torch.equal(samples.positive, samples.valid & (drawn == 1))
    assert (samples.index[~samples.valid] == 0).all() and (~samples.valid).any()
    assert (samples.positive.sum(1) == 75).all()
    for row, valid, positive in zip(*(tensor.cpu() for tensor in samples), strict=True):
        order = (~valid).int() * 2 + (valid & ~positive).int()
        assert (order.diff() >= 0).all(), "positives, negatives, padding"
        assert (row[positive].diff() > 0).all() and (row[valid & ~positive].diff() > 0).all()


def test_positive_share_is_rounded_as_people_expect():
    matches = scene(1, 200, shares=(1.0, 0, 0))
    assert sample_iou_balanced(matches, num_samples=100, positive_fraction=0.29).positive.sum() == 29


def test_reproducible_from_the_seed_and_from_a_generator():
    matches = scene(2, 500)
    options = {"num_samples": 64, "positive_fraction": 0.25}

    def draw(seed: int, own: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed) if own else None
        if not own:
            torch.manual_seed(seed)
        return torch.stack([sample_iou_balanced(matches, **options, generator=generator).index for _ in range(2)])

    for own in (False, True):
        first = draw(1, own)
        assert torch.equal(first, draw(1, own))
        assert not torch.equal(first, draw(2, own))
        assert not torch.equal(first[0], first[1]), "every call draws anew"
    torch.manual_seed(9)
    before = torch.get_rng_state()
    sample_iou_balanced(matches, **options, generator=torch.Generator())
    assert torch.equal(before, torch.get_rng_state()), "a generator leaves torch's own alone"


@pytest.mark.cuda
def test_cpu_and_cuda_draw_the_same_samples():
    matches = scene(3, 2500, shares=(0.9, 0.1, 0))
    drawn = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(4)
        on_device = tuple(tensor.to(device) for tensor in matches)
        drawn.append(sample_iou_balanced(on_device, num_samples=512, positive_fraction=0.25).index.cpu())
    assert torch.equal(*drawn)


@pytest.mark.cuda
def test_cuda_graph_draws_anew_at_every_replay_without_waiting():
    matches = tuple(tensor.cuda() for tensor in scene(2, 2000))
    options = {"num_samples": 128, "positive_fraction": 0.25}
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample_iou_balanced(matches, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        samples = sample_iou_balanced(matches, **options)
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(samples.index.clone())
    assert not torch.equal(*draws)
    with pytest.raises(ValueError, match="generator"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sample_iou_balanced(matches, **options, generator=torch.Generator())


def test_threads_do_not_change_the_samples():
    threads = torch.get_num_threads()
    for matches in (scene(9, 1200), scene(2, 50_000)):  # images for each thread, and threads for each image
        drawn = []
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                drawn.append(run_op(matches, 5, "cpu", OPTIONS)[0])
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*drawn)


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_and_half_precision_inputs(device):
    matches = tuple(tensor.to(device) for tensor in scene(4, 600, grid=64))
    options = {"num_samples": 64, "positive_fraction": 0.25}

    def draw(matches) -> Tensor:
        torch.manual_seed(3)
        return sample_iou_balanced(matches, **options).index

    wanted = draw(matches)
    assert torch.equal(draw(tuple(tensor.t().contiguous().t() for tensor in matches)), wanted)
    wide = tuple(torch.stack([tensor, tensor], 2)[..., 0] for tensor in matches)
    assert torch.equal(draw(wide), wanted)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # multiples of 1/64 are exact in all of them
        assert torch.equal(draw((matches[0], matches[1].to(dtype), matches[2])), wanted)


def test_iou_may_require_a_gradient():
    index, iou, state = scene(2, 100)
    samples = sample_iou_balanced((index, iou.requires_grad_(), state), num_samples=16, positive_fraction=0.25)
    assert not any(tensor.requires_grad for tensor in samples)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("values", [(NAN, 0.7), (NAN, INFINITY), (NAN, -INFINITY), (NAN, NAN)], ids=str)
def test_iou_that_is_not_finite(device, values):
    index, iou, state = scene(2, 300)
    iou[:, ::3], iou[:, 1::7] = values
    for bins, num_bins in itertools.product(("paper", "published"), (1, 3)):
        for num_samples in (30, 250):
            changes = {"bins": bins, "num_bins": num_bins, "num_samples": num_samples}
            assert_exact(device, (index, iou, state), 5, **changes)
    assert_exact(device, (index, iou * NAN, state), 5, bins="published")


@pytest.mark.parametrize("device", DEVICES)
def test_nan_belongs_to_no_bin(device):
    """Negatives whose IoU is NaN are drawn when the bins are short, and not in place of those of the lowest bin."""
    iou = torch.tensor([[NAN] * 100 + [0.1] * 10 + [0.2] * 10 + [0.4] * 10])
    zeros = torch.zeros(1, 130, dtype=torch.int64)
    matches = (zeros, iou, zeros.to(torch.int8))
    changes = {"num_samples": 30, "max_positives": 0}
    assert_exact(device, matches, 5, **changes)
    drawn = run_op(matches, 5, device, {**OPTIONS, **changes})[0].cpu()
    assert drawn.tolist() == [list(range(100, 130))]


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for bins, limit in ((False, None), (True, 2.0)):
        matches = tuple(tensor.to(device) for tensor in scene(2, 50))
        arguments = (*matches, torch.tensor([5], device=device), 16, 4, 3, 0.0, 0.5, limit, not bins, bins)
        torch.library.opcheck(torch.ops.libra_ops.sample_iou_balanced.default, arguments)


def test_compiles_in_one_graph():
    def draw(index, iou, state):
        return sample_iou_balanced((index, iou, state), num_samples=32, positive_fraction=0.25)

    matches = scene(2, 300)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    torch.manual_seed(8)
    first, second = compiled(*matches), compiled(*matches)
    torch.manual_seed(8)
    assert torch.equal(draw(*matches).index, first.index)
    assert not torch.equal(first.index, second.index), "the seed is no constant of the graph"


@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["of the CPU", "of a GPU"])  # which need not be there
def test_fake_tensors_of_any_device(device, monkeypatch):
    monkeypatch.setattr("libra_ops._extension._HAS_CUDA", False)  # fake tensors need no kernel
    with FakeTensorMode():
        shape = (2, 300)
        matches = (
            torch.empty(shape, dtype=torch.int64, device=device),
            torch.empty(shape, device=device),
            torch.empty(shape, dtype=torch.int8, device=device),
        )
        samples = sample_iou_balanced(matches, num_samples=32, positive_fraction=0.25)
    assert [tensor.dtype for tensor in samples] == [torch.int64, torch.bool, torch.bool]
    assert all(tensor.shape == (2, 32) and tensor.device.type == device for tensor in samples)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"matches": torch.zeros(2, 5)}, TypeError, "matches: expected .index, iou, state."),
        ({"index": torch.zeros(2, 5)}, TypeError, "matches.index: expected dtype int64, got float32"),
        ({"index": torch.zeros(5, dtype=torch.int64)}, ValueError, r"matches.index: .* \[B, N\].*index\[None\]"),
        ({"iou": torch.zeros(2, 5, dtype=torch.int64)}, TypeError, "matches.iou: expected a floating dtype"),
        ({"iou": torch.zeros(2, 4)}, ValueError, r"matches.iou: expected shape \[2, 5\]"),
        ({"state": torch.zeros(2, 5)}, TypeError, "matches.state: expected dtype int8"),
        ({"state": torch.zeros(1, 5, dtype=torch.int8)}, ValueError, r"matches.state: expected shape \[2, 5\]"),
        ({"state": torch.zeros(2, 5, dtype=torch.int8, device="meta")}, ValueError, "matches.state: expected on cpu"),
        ({"num_samples": -1}, ValueError, "num_samples: expected an int >= 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples: expected an int, got float"),
        ({"num_samples": True}, TypeError, "num_samples: expected an int, got bool"),
        ({"positive_fraction": np.bool_(True)}, TypeError, "positive_fraction: expected a number, got bool"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator, got int"),
        ({"positive_fraction": 1.5}, ValueError, "positive_fraction: .* <= 1, got 1.5"),
        ({"positive_fraction": float("nan")}, ValueError, "positive_fraction"),
        ({"num_bins": 0}, ValueError, "num_bins: .* >= 1 and <= 64, got 0"),
        ({"num_bins": 65}, ValueError, "num_bins: .* <= 64, got 65"),
        ({"interval": (0.5, 0.5)}, ValueError, "interval: expected low < high"),
        ({"interval": (0.25,) * 10**5}, ValueError, r"interval: expected .low, high., got .{80}$"),
        ({"interval": 0.5}, ValueError, "interval: expected .low, high., got 0.5"),
        ({"interval": (0.0, float("inf"))}, ValueError, "interval: expected a finite number"),
        ({"max_negatives_per_positive": -1}, ValueError, "max_negatives_per_positive: .* >= 0, got -1"),
        ({"positives": "balanced"}, ValueError, "positives: expected one of 'instance_balanced', 'random'"),
        ({"bins": "equal"}, ValueError, "bins: expected one of 'paper', 'published'"),
    ],
)
def test_errors_name_the_argument(changes, error, words):
    parts = {name: changes.pop(name) for name in ("index", "iou", "state") if name in changes}
    index, iou, state = scene(2, 5)
    matches = tuple({"index": index, "iou": iou, "state": state, **parts}.values())
    arguments = {"matches": matches, "num_samples": 8, "positive_fraction": 0.25, **changes}
    with pytest.raises(error, match=words):
        sample_iou_balanced(**arguments)


def test_a_seed_that_is_given_is_the_one_that_would_be_drawn():
    generator = torch.Generator().manual_seed(2)
    iou = torch.rand(2, 60, generator=generator)
    state = (iou > 0.6).to(torch.int8)
    matches = (torch.zeros(2, 60, dtype=torch.int64), iou, state)
    options = {"num_samples": 16, "positive_fraction": 0.25}
    torch.manual_seed(4)
    drawn = sample_iou_balanced(matches, **options)
    torch.manual_seed(4)
    seed = torch.randint(-(2**63), 2**63 - 1, (1,))
    before = torch.get_rng_state()
    assert all(map(torch.equal, sample_iou_balanced(matches, seed=seed, **options), drawn))
    assert torch.equal(before, torch.get_rng_state())
    for bad, error, message in [
        (seed.int(), TypeError, "seed: expected dtype int64"),
        (seed[0], ValueError, r"seed: expected shape \[1\]"),
        (3, TypeError, "seed: expected a torch.Tensor"),
    ]:
        with pytest.raises(error, match=message):
            sample_iou_balanced(matches, seed=bad, **options)
    with pytest.raises(ValueError, match="generator: expected none beside a seed"):
        sample_iou_balanced(matches, seed=seed, generator=generator, **options)
