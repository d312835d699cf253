"""nms_padded: equal to its twin, to torchvision image by image and class by class, and to what its docstring says."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import nms

from libra_ops import nms_padded, reference

RULES = {"iou_threshold": 0.5, "max_output": 100}
INFINITY, NAN = float("inf"), float("nan")


def scene(batch: int, count: int, groups: int, seed: int = 0, grid: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """boxes [B, N, 4] in heaps of about eight, scores [B, N], groups [B, N]; with `grid`, boxes and scores tie."""
    generator = torch.Generator().manual_seed(seed)
    heaps = torch.rand(batch, count // 8 + 1, 4, generator=generator) * torch.tensor([400.0, 400, 80, 80]) + 10
    own = torch.randint(0, heaps.shape[1], (batch, count), generator=generator)
    centre, size = heaps[torch.arange(batch)[:, None], own].split(2, -1)
    centre = centre + torch.randn(batch, count, 2, generator=generator) * 5
    size = size * (1 + 0.2 * torch.rand(batch, count, 2, generator=generator))
    boxes, scores = torch.cat([centre - size / 2, centre + size / 2], -1), torch.rand(batch, count, generator=generator)
    if grid:
        boxes, scores = (boxes / grid).round() * grid, (scores * 20).round() / 20
    return boxes, scores, torch.randint(0, groups, (batch, count), generator=generator) * 7 - 9


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's `_batched_nms_vanilla` of one image, with a stable sort in the end."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in groups.unique():
        index = (groups == group).nonzero()[:, 0]
        kept[index[nms(boxes[index], scores[index], iou_threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def check_torchvision(boxes, scores, groups, iou_threshold, max_output, found=None) -> int:
    if found is None:
        found = nms_padded(boxes, scores, groups, iou_threshold=iou_threshold, max_output=max_output)
    assert found.index.dtype == torch.int64 and found.valid.dtype == torch.bool
    assert found.index.shape == found.valid.shape == (len(boxes), min(max_output, boxes.shape[1]))
    for image, (index, valid) in enumerate(zip(*found, strict=True)):
        expected = batched_nms(boxes[image], scores[image], groups[image], iou_threshold)[:max_output]
        assert valid.sum() == len(expected) and valid[: len(expected)].all()
        assert torch.equal(index[: len(expected)], expected) and not index[len(expected) :].any()
    return int(found.valid.sum())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize(
    ("batch", "count", "groups", "max_output"),
    [(1, 1, 1, 1), (3, 33, 2, 100), (2, 700, 5, 64), (4, 1500, 5, 500), (1, 3000, 80, 3000), (2, 900, 900, 900)],
)
def test_equals_torchvision(batch, count, groups, max_output, threshold):
    kept = check_torchvision(*scene(batch, count, groups), threshold, max_output)
    assert 0 < kept and (groups > 1 or threshold > 0.5 or kept < batch * count or count == 1)


def test_equals_torchvision_at_ten_thousand_boxes():
    """One group, and as many groups as boxes."""
    boxes, scores, groups = scene(1, 10_000, 1)
    assert check_torchvision(boxes, scores, groups, 0.5, 10_000) > 1000
    everyone = torch.arange(10_000)[None]
    found = nms_padded(boxes, scores, everyone, iou_threshold=0.0, max_output=10_000)
    assert torch.equal(found.index, scores.argsort(descending=True, stable=True)) and found.valid.all()


@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.5, 1.0])
def test_ties_of_scores_and_ious_at_the_threshold(threshold):
    """On a grid, many IoUs are exactly 1/3, 1/2 or 1, and twenty scores serve 600 boxes."""
    boxes, scores, groups = scene(2, 600, 3, grid=16.0)
    check_torchvision(boxes, scores, groups, threshold, 600)
    found = nms_padded(boxes, scores, groups, iou_threshold=threshold, max_output=600)
    expected = reference.nms_padded(boxes, scores, groups, iou_threshold=threshold, max_output=600)
    assert all(map(torch.equal, found, expected))


def test_equals_the_twin_with_everything_at_once():
    boxes, scores, groups = scene(3, 300, 4)
    boxes[0, 5, 2], boxes[1, 7, 0], boxes[2, 9] = NAN, -INFINITY, torch.tensor([0, 0, INFINITY, INFINITY])
    boxes[0, 11], boxes[0, 12] = boxes[0, 13, [2, 3, 0, 1]], boxes[0, 13, [2, 1, 0, 3]]  # inverted on two and one sides
    boxes[1, :20, 2] = boxes[1, :20, 0]  # without area
    boxes[2, 30] = torch.tensor([-3e38, -3e38, 3e38, 3e38])
    scores[0, 40:44] = torch.tensor([NAN, INFINITY, -INFINITY, -0.0])
    scores[0, 44:46] = torch.tensor([0.0, -0.0])
    valid = torch.rand(3, 300) < 0.8
    for limit in (0, 1, 40, 1000):
        for more in ({}, {"valid": valid}, {"score_threshold": 0.3}, {"valid": valid, "score_threshold": 0.6}):
            rules = {"iou_threshold": 0.4, "max_output": limit, **more}
            for own in (groups, None):
                found, expected = (
                    nms_padded(boxes, scores, own, **rules),
                    reference.nms_padded(boxes, scores, own, **rules),
                )
                assert all(map(torch.equal, found, expected)), (limit, more.keys(), own is None)


def test_what_takes_no_part():
    """Not valid, NaN, not more than the score's threshold, not finite; it does not suppress either."""
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 6])
    boxes[0, 3, 1] = INFINITY
    scores = torch.tensor([[0.9, NAN, 0.5, 0.8, 0.7, 0.6]])
    valid = torch.tensor([[False, True, True, True, True, True]])
    found = nms_padded(boxes, scores, valid=valid, score_threshold=0.7, **RULES)
    assert not found.valid.any() and not found.index.any() and found.index.shape == (1, 6)
    found = nms_padded(boxes, scores, valid=valid, score_threshold=0.65, **RULES)
    assert found.index[found.valid].tolist() == [4]


@pytest.mark.parametrize("threshold", [0.05, 0.7, 1 / 3])
def test_a_score_equal_to_the_rounded_threshold_is_not_above_it(threshold):
    """As in PyTorch's scores > threshold: float32's 0.05 is larger than the number 0.05, but not above it."""
    rounded = torch.tensor(threshold)
    scores = torch.stack((rounded, torch.nextafter(rounded, torch.tensor(1.0))))[None]
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    found = nms_padded(boxes, scores, score_threshold=threshold, **RULES)
    assert torch.equal(found.valid.sum(1), (scores > threshold).sum(1)) and found.index[found.valid].tolist() == [1]


def test_boxes_without_area_do_not_suppress_each_other():
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [5, 0, 5, 10]]])
    found = nms_padded(boxes, torch.tensor([[0.1, 0.2, 0.3, 0.4]]), iou_threshold=0.0, max_output=4)
    assert found.index.tolist() == [[3, 2, 1, 0]] and found.valid.all()


def test_groups_are_any_numbers():
    boxes, scores, _ = scene(1, 64, 1)
    groups = torch.tensor([2**63 - 1, -(2**63), 0, -1, 2**32, 2**33, 1, 3]).repeat(8)[None]
    check_torchvision(boxes, scores, groups, 0.1, 64)
    alike = nms_padded(boxes, scores, torch.full_like(groups, -5), **RULES)
    assert all(map(torch.equal, alike, nms_padded(boxes, scores, **RULES)))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_nothing_to_keep(shape):
    found = nms_padded(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), **RULES)
    assert found.index.shape == found.valid.shape == (shape[0], min(100, shape[1]))
    found = nms_padded(torch.zeros(2, 5, 4), torch.zeros(2, 5), valid=torch.zeros(2, 5, dtype=torch.bool), **RULES)
    assert not found.valid.any() and not found.index.any()
    assert nms_padded(torch.zeros(2, 5, 4), torch.zeros(2, 5), iou_threshold=0.5, max_output=0).index.shape == (2, 0)


def test_dtypes_strides_and_gradients():
    boxes, scores, groups = scene(3, 200, 3)
    expected = nms_padded(boxes, scores, groups, **RULES)
    strided = boxes.mT.contiguous().mT, scores.T.contiguous().T, torch.stack([groups, groups], -1)[..., 0]
    assert all(map(torch.equal, nms_padded(*strided, **RULES), expected))
    assert all(map(torch.equal, nms_padded(boxes.double(), scores.double(), groups, **RULES), expected))
    half = boxes.half(), scores.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = nms_padded(*half, groups, **RULES)
    assert all(map(torch.equal, found, nms_padded(half[0].float(), half[1].float(), groups, **RULES)))
    found = nms_padded(boxes.clone().requires_grad_(), scores.clone().requires_grad_(), groups, **RULES)
    assert all(map(torch.equal, found, expected)) and not any(tensor.requires_grad for tensor in found)


def test_result_does_not_depend_on_threads_or_on_the_rest_of_the_batch():
    boxes, scores, groups = scene(7, 3000, 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(nms_padded(boxes, scores, groups, **RULES))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    alone = nms_padded(boxes[4:5], scores[4:5], groups[4:5], **RULES)
    assert torch.equal(alone.index[0], results[0].index[4]) and torch.equal(alone.valid[0], results[0].valid[4])


@pytest.mark.parametrize("given", [False, True])
def test_opcheck(given):
    boxes, scores, groups = scene(2, 40, 3)
    own, threshold, valid = (groups, 0.2, scores > 0.5) if given else (None, None, None)
    torch.library.opcheck(torch.ops.libra_ops.nms_padded.default, (boxes, scores, own, 0.5, 30, threshold, valid))


def test_compiles_and_fakes():
    boxes, scores, groups = scene(2, 150, 3)
    compiled = torch.compile(lambda *a: nms_padded(*a, **RULES), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(boxes, scores, groups), nms_padded(boxes, scores, groups, **RULES)))
    with FakeTensorMode() as mode:
        fake = nms_padded(*map(mode.from_tensor, (boxes, scores, groups)), **RULES)
    assert [tuple(tensor.shape) for tensor in fake] == [(2, 100)] * 2


def test_exports_for_any_number_of_images_and_boxes():
    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, groups):
            return nms_padded(boxes, scores, groups, **RULES)

    batch, count = torch.export.Dim("batch"), torch.export.Dim("count", max=5000)
    shapes = {name: {0: batch, 1: count} for name in ("boxes", "scores", "groups")}
    program = torch.export.export(Suppress(), scene(2, 150, 3), dynamic_shapes=shapes, strict=False)
    for size in ((3, 40, 2), (4, 300, 5)):
        assert all(map(torch.equal, program.module()(*scene(*size)), nms_padded(*scene(*size), **RULES)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes: expected a torch.Tensor, got list"),
        ({"boxes": torch.zeros(7, 4)}, ValueError, "boxes: expected xyxy boxes of shape .B, N, 4."),
        ({"boxes": torch.zeros(2, 7, 4, dtype=torch.int64)}, TypeError, "boxes: expected a floating dtype"),
        ({"scores": torch.zeros(2, 8)}, ValueError, "scores: expected shape .2, 7. .one score per box., got"),
        ({"scores": torch.zeros(2, 7, dtype=torch.int64)}, TypeError, "scores: expected a floating dtype"),
        ({"groups": torch.zeros(2, 7)}, TypeError, "groups: expected dtype int64"),
        ({"groups": torch.zeros(7, dtype=torch.int64)}, ValueError, "groups: expected shape"),
        ({"valid": torch.ones(2, 6, dtype=torch.bool)}, ValueError, "valid: expected shape"),
        ({"valid": torch.ones(2, 7)}, TypeError, "valid: expected dtype bool"),
        ({"iou_threshold": 1.5}, ValueError, "iou_threshold: expected a finite number >= 0 and <= 1, got 1.5"),
        ({"iou_threshold": "0.5"}, TypeError, "iou_threshold: expected a number, got str"),
        ({"max_output": -1}, ValueError, "max_output: expected an int >= 0"),
        ({"max_output": 1.0}, TypeError, "max_output: expected an int, got float"),
        ({"score_threshold": math.inf}, ValueError, "score_threshold: expected a finite number"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = {"boxes": torch.zeros(2, 7, 4), "scores": torch.zeros(2, 7), **RULES}
    with pytest.raises(error, match=words):
        nms_padded(**{**arguments, **change})


@pytest.mark.cuda
@pytest.mark.parametrize(("batch", "count", "groups"), [(1, 1, 1), (3, 2500, 1), (16, 8800, 5), (1, 80_000, 80)])
def test_cuda_equals_cpu_and_itself(batch, count, groups):
    boxes, scores, group = scene(batch, count, groups)
    boxes[0, count // 2, 2], scores[-1, count // 3] = NAN, NAN
    valid = torch.rand(batch, count) < 0.9
    for rules in ({"iou_threshold": 0.7, "max_output": 1000}, {"iou_threshold": 0.5, "max_output": count}):
        expected = nms_padded(boxes, scores, group, valid=valid, score_threshold=0.05, **rules)
        on_gpu = boxes.cuda(), scores.cuda(), group.cuda()
        found = [nms_padded(*on_gpu, valid=valid.cuda(), score_threshold=0.05, **rules) for _ in range(2)]
        for result in found:
            assert all(torch.equal(got.cpu(), want) for got, want in zip(result, expected, strict=True))
