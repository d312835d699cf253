"""The CUDA kernels of nms_padded, run on the CPU in every order of threads: exactly the twin's boxes."""

import pytest
import torch
from torch import Tensor

from libra_ops import nms_padded, reference

from .harness import Kernels, empty, out

CHUNK, TILE, LISTED = 128, 256, 2048  # candidates at a time, kept boxes at a time, survivors sorted in shared memory


def scene(batch: int, count: int, groups: int, seed: int = 0, heap: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """boxes [B, N, 4] in heaps, scores [B, N] of which many tie, groups [B, N] of any sign."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(batch, count // heap + 1, 2, generator=generator) * 500
    own = torch.randint(0, centres.shape[1], (batch, count), generator=generator)
    corner = centres[torch.arange(batch)[:, None], own] + torch.rand(batch, count, 2, generator=generator) * 12
    boxes = torch.cat([corner, corner + 30 + torch.rand(batch, count, 2, generator=generator) * 20], -1)
    scores = (torch.rand(batch, count, generator=generator) * 200).round() / 200
    return boxes, scores, torch.randint(0, groups, (batch, count), generator=generator) * 13 - 20


def run(kernels: Kernels, boxes, scores, groups, valid=None, score_threshold=None, hash_bits=-1, **rules):
    """index and valid as the GPU's wrapper returns them; all memory the kernels write starts as poison."""
    batch, count = scores.shape
    slots = min(rules["max_output"], count)
    inputs = (boxes, scores, groups, None if valid is None else valid.view(torch.uint8), batch, count, hash_bits)
    keys = empty(batch * count, dtype=torch.int64)
    kernels.run("run_nms_keys", *inputs, float(score_threshold or 0), score_threshold is not None, out(keys))
    keys, order = keys.sort(stable=True)
    numbers, kept = empty(batch * count, dtype=torch.int64), empty(batch * count, 4)
    index, found = empty(batch, slots, dtype=torch.int64), empty(batch, slots, dtype=torch.uint8)
    kernels.run(
        "run_nms_padded",
        *(*inputs, rules["iou_threshold"], slots, keys, order),
        *map(out, (numbers, kept, index, found)),
    )
    return index, found.bool()


def assert_exact(kernels: Kernels, boxes, scores, groups, hash_bits=-1, **rules) -> int:
    found = run(kernels, boxes, scores, groups, hash_bits=hash_bits, **rules)
    expected = reference.nms_padded(boxes, scores, groups, **rules)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])
    assert all(map(torch.equal, nms_padded(boxes, scores, groups, **rules), expected))
    return int(expected[1].sum())


@pytest.mark.parametrize(
    ("batch", "count", "groups", "max_output"),
    [(1, 1, 1, 1), (3, 37, 2, 50), (2, CHUNK + 1, 1, 60), (2, 300, 40, 300), (1, 900, 3, 100)],
)
def test_agrees_with_the_twin(emulate, batch, count, groups, max_output):
    boxes, scores, group = scene(batch, count, groups, seed=count)
    kept = assert_exact(emulate("nms_padded"), boxes, scores, group, iou_threshold=0.4, max_output=max_output)
    assert 0 < kept and (groups > 3 or count < 100 or kept < batch * count)


def test_more_kept_boxes_than_a_tile_holds(emulate):
    boxes, scores, _ = scene(1, 2 * TILE + 150, 1, heap=2)
    assert assert_exact(emulate("nms_padded"), boxes, scores, None, iou_threshold=0.6, max_output=700) > TILE + CHUNK


def test_chains_of_suppression(emulate):
    """Each box overlaps its neighbours: every second one stays, and who stays depends on all before."""
    count = CHUNK + 70
    left = torch.arange(count).float() * 4
    boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], -1)[None]
    scores = 1 - torch.arange(count)[None] / 1000
    assert assert_exact(emulate("nms_padded"), boxes, scores, None, iou_threshold=0.3, max_output=count) == count // 2


def test_what_takes_no_part(emulate):
    boxes, scores, groups = scene(3, 150, 2)
    boxes[0, 5, 2], boxes[1, 7, 0], scores[2, 9] = float("nan"), float("-inf"), float("nan")
    scores[0, 10:13] = torch.tensor([float("inf"), -0.0, 0.0])
    valid = torch.rand(3, 150, generator=torch.Generator().manual_seed(1)) < 0.7
    valid[1] = False
    kernels = emulate("nms_padded")
    rules = {"iou_threshold": 0.3, "max_output": 150}
    assert assert_exact(kernels, boxes, scores, groups, valid=valid, score_threshold=0.4, **rules)
    assert assert_exact(kernels, boxes, scores, groups, valid=valid, **rules)
    assert not assert_exact(kernels, boxes, scores, groups, valid=torch.zeros_like(valid), **rules)


@pytest.mark.parametrize("max_output", [3, 40, 200])
@pytest.mark.parametrize("hash_bits", [0, 1, 2])
def test_groups_whose_hashes_are_equal(emulate, hash_bits, max_output):
    boxes, scores, groups = scene(2, 200, 5)
    rules = {"iou_threshold": 0.3, "max_output": max_output}
    assert assert_exact(emulate("nms_padded"), boxes, scores, groups, hash_bits=hash_bits, **rules)


def test_more_survivors_than_shared_memory_sorts(emulate):
    """Every box in a group of its own, and one thing more than the list in shared memory holds."""
    generator = torch.Generator().manual_seed(0)
    count = LISTED + 300
    boxes, scores, _ = scene(1, count, 1)
    groups = torch.randperm(count, generator=generator)[None]
    index, found = run(emulate("nms_padded"), boxes, scores, groups, iou_threshold=0.5, max_output=LISTED + 1)
    expected = scores[0].argsort(descending=True, stable=True)[: LISTED + 1]
    assert found.all() and torch.equal(index[0], expected)
