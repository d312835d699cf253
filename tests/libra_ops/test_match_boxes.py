"""match_boxes: equal to its twin, to the reference implementation, and to what its docstring says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from libra_ops import match_boxes, reference

ROOT = Path(__file__).resolve().parent.parent.parent
RPN = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
INFINITY = float("inf")
ROI = {"positive_iou": 0.5, "negative_iou": 0.5}


def random_boxes(*shape: int, seed: int = 0, size: float = 100.0) -> torch.Tensor:
    """[*shape, 4] float32 xyxy within size x size pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator) * size
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def twin(boxes, targets, valid, *, positive_iou, negative_iou, min_positive_iou=None, crowd=None):
    return reference.match_boxes(boxes, targets, valid, positive_iou, negative_iou, min_positive_iou, crowd)


def assert_equal(matches, expected):
    for name, got, want in zip(("index", "iou", "state"), matches, expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("rules", [RPN, ROI, {**ROI, "negative_iou": 0.1, "min_positive_iou": 0.0}])
@pytest.mark.parametrize(
    ("batch", "count", "targets"),
    [(1, 1, 1), (2, 513, 3), (3, 2000, 50), (1, 5000, 1), (2, 700, 0), (2, 0, 5), (0, 9, 9)],
)
def test_equals_the_twin(batch, count, targets, rules):
    boxes, truth = random_boxes(batch, count), random_boxes(batch, targets, seed=1)
    valid = torch.rand(batch, targets) < 0.8
    if batch:
        valid[-1] = True
    crowd = random_boxes(batch, 2, seed=2, size=60)
    assert_equal(match_boxes(boxes, truth, valid, **rules), twin(boxes, truth, valid, **rules))
    assert_equal(
        match_boxes(boxes, truth, valid, crowd=crowd, **rules), twin(boxes, truth, valid, crowd=crowd, **rules)
    )


def test_ties_between_many_chunks():
    """Anchors on a grid tie exactly and often; the second pass has to find every tie, and the later target wins."""
    y, x = torch.meshgrid(torch.arange(0, 800, 8.0), torch.arange(0, 1000, 8.0), indexing="ij")
    centre = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    boxes = (centre + torch.tensor([[-16.0, -16, 16, 16], [-32, -32, 32, 32], [-45, -23, 45, 23]])).reshape(-1, 4)
    truth = torch.cat(
        [torch.tensor([[[400.0, 400, 404, 404], [400, 400, 404, 404]]]), random_boxes(1, 40, size=800)], 1
    )
    valid = torch.ones(1, 42, dtype=torch.bool)
    matches = match_boxes(boxes, truth, valid, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.0)
    assert_equal(matches, twin(boxes[None], truth, valid, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.0))
    assert not (matches.index[matches.state == 1] == 0).any()  # target 1 is the same box as target 0, and later
    assert (matches.index == 1).sum() > 10


@pytest.mark.parametrize("targets", [15, 16, 33, 200])  # from 16 on, boxes in no order are sorted inside
@pytest.mark.parametrize("count", [127, 128, 2047, 2049, 5000])
def test_boxes_in_any_order(count, targets):
    """Small boxes all over the image, one inverted, one empty, one not a number, and copies of the best ones."""
    centres = random_boxes(2, count, seed=3, size=500)[..., :2]
    boxes = torch.cat([centres, centres + random_boxes(2, count, seed=4, size=40)[..., 2:]], -1)
    truth = boxes[:, torch.randperm(count)[:targets]] + 1.5
    boxes[:, 5], boxes[:, 61, 2:], boxes[1, 40, 0] = boxes[:, 5, [2, 3, 0, 1]], boxes[:, 61, :2], float("nan")
    boxes[:, -count // 8 :] = boxes[:, : -(-count // 8)]  # the same boxes again, far away in memory
    valid = torch.ones(truth.shape[:2], dtype=torch.bool)
    for rules in (RPN, {**ROI, "min_positive_iou": 0.0}):
        for crowd in (None, random_boxes(2, 3, seed=5, size=400)):
            assert_equal(
                match_boxes(boxes, truth, valid, crowd=crowd, **rules), twin(boxes, truth, valid, crowd=crowd, **rules)
            )


def test_huge_boxes_leave_the_others_alone():
    boxes, truth = random_boxes(1, 3000, size=50), random_boxes(1, 40, seed=1, size=50)
    valid = torch.ones(1, 40, dtype=torch.bool)
    expected = match_boxes(boxes, truth, valid, **RPN)
    places = torch.tensor([3, 40, 1000, 2100])
    others = torch.ones(3000 + len(places), dtype=torch.bool)
    others[places] = False
    more = torch.empty(1, len(others), 4)
    more[:, others] = boxes
    more[:, places] = torch.tensor([[-1e20, -1e20, 1e20, 1e20], [0, 0, 1e30, 9], [-1e19, 0, 0, 9], [0, 0, 9, INFINITY]])
    assert_equal([tensor[:, others] for tensor in match_boxes(more, truth, valid, **RPN)], expected)


def test_many_exact_ties_in_any_order():
    """Corners on a grid of 6 x 6: most IoUs occur many times, with several targets and with several boxes."""
    boxes, truth = (random_boxes(2, n, seed=n, size=5).round() for n in (3000, 60))
    valid = torch.ones(2, 60, dtype=torch.bool)
    for minimum in (0.0, 0.5, 1.0):
        rules = {**ROI, "min_positive_iou": minimum}
        assert_equal(match_boxes(boxes, truth, valid, **rules), twin(boxes, truth, valid, **rules))


@pytest.mark.parametrize("setting", ["rpn", "rcnn", "rcnn_lowq", "retina", "rpn_ignore"])
def test_reference_implementation(libra_goldens, setting):
    golden = torch.load(libra_goldens / "d_assigner.pt", weights_only=True)
    rules = golden["settings"][setting]
    cases = [case for case in golden["cases"] if case["setting"] == setting]
    assert cases
    for case in cases:
        scene = golden["scenes"][case["scene"]]
        if setting == "retina" and case["scene"] in ("zero_area_gt", "far_gt"):
            continue  # there a target without overlap claims every box; here it claims nothing (next test)
        matches = match_boxes(
            scene["boxes"],
            scene["gts"][None],
            torch.ones(1, len(scene["gts"]), dtype=torch.bool),
            positive_iou=rules["pos_iou_thr"],
            negative_iou=rules["neg_iou_thr"],
            min_positive_iou=rules["min_pos_iou"] if rules.get("match_low_quality", True) else None,
            crowd=scene["ignore"][None] if rules["ignore_iof_thr"] > 0 else None,
        )
        got = torch.where(matches.state[0] == 1, matches.index[0] + 1, matches.state[0].long())
        assert torch.equal(got, case["gt_inds"].long()), case["scene"]
        seen = case["max_overlaps"] >= 0  # the reference writes -1 for boxes in ignored regions
        assert torch.equal(matches.iou[0][seen], case["max_overlaps"][seen]), case["scene"]


@pytest.mark.parametrize(
    "target", [[50.0, 50, 50, 60], [500.0, 500, 600, 600], [60.0, 60, 50, 50], [float("nan"), 0, 9, 9]]
)
def test_a_target_without_overlap_claims_nothing(target):
    boxes = random_boxes(1, 600)
    matches = match_boxes(
        boxes,
        torch.tensor([[target]]),
        torch.tensor([[True]]),
        positive_iou=0.5,
        negative_iou=0.4,
        min_positive_iou=0.0,
    )
    assert (matches.state == 0).all()


def test_boxes_that_are_not_finite_are_ignored():
    boxes = random_boxes(1, 8)
    boxes[0, 1, 2], boxes[0, 3, 0], boxes[0, 4, 3] = float("nan"), float("-inf"), float("inf")
    truth = boxes[:, :1].clone()
    matches = match_boxes(boxes, truth, torch.tensor([[True]]), **RPN)
    assert matches.state[0, [1, 3, 4]].tolist() == [-1, -1, -1]
    assert matches.iou[0, [1, 3, 4]].tolist() == [0, 0, 0]
    assert matches.state[0, 0] == 1


def test_huge_boxes_do_not_overflow():
    boxes = torch.tensor([[[0.0, 0, 1e20, 1e20], [0, 0, 1e20, 0.6e20], [0, 0, 10, 10]]])
    truth = torch.tensor([[[0.0, 0, 1e20, 1e20], [0, 0, 10, 8]]])
    matches = match_boxes(boxes, truth, torch.ones(1, 2, dtype=torch.bool), **RPN)
    torch.testing.assert_close(matches.iou, torch.tensor([[1.0, 0.6, 0.8]]))
    assert matches.state.tolist() == [[1, -1, 1]]
    assert matches.index.tolist() == [[0, 0, 1]]


def test_image_without_targets_is_negative_but_crowds_count():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]])
    none = torch.zeros(1, 2, dtype=torch.bool)
    truth = torch.tensor([[[0.0, 0, 100, 12], [0, 0, 1, 1]]])
    assert match_boxes(boxes, truth, none, **RPN).state.tolist() == [[0, 0]]
    crowd = torch.tensor([[True, False]])  # counts although `valid` is False
    assert match_boxes(boxes, truth, none, crowd=crowd, **RPN).state.tolist() == [[-1, 0]]


def test_crowd_mask_and_crowd_boxes_agree():
    boxes, truth = random_boxes(2, 900), random_boxes(2, 12, seed=3)
    valid, mask = torch.rand(2, 12) < 0.8, torch.rand(2, 12) < 0.3
    expected = match_boxes(boxes, truth, valid & ~mask, crowd=truth * mask[..., None], **RPN)
    assert_equal(match_boxes(boxes, truth, valid, crowd=mask, **RPN), expected)
    assert (expected.state == -1).any()


def test_exactly_half_in_a_crowd_is_not_ignored():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.9]]])
    crowd = torch.tensor([[[0.0, 0, 10, 5]]])
    empty = torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool)
    assert match_boxes(boxes, *empty, crowd=crowd, **RPN).state.tolist() == [[0, -1]]


def test_thresholds_are_closed_below():
    """IoU equal to positive_iou is positive, equal to negative_iou is not negative."""
    boxes = torch.tensor([[[0.0, 0, 10, 5], [0, 0, 10, 2.5]]])
    matches = match_boxes(
        boxes, torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[True]]), positive_iou=0.5, negative_iou=0.25
    )
    assert matches.state.tolist() == [[1, -1]]


def test_shared_boxes_dtypes_and_strides():
    boxes, truth = random_boxes(700), random_boxes(3, 6, seed=1)
    valid = torch.ones(3, 6, dtype=torch.bool)
    expected = match_boxes(boxes, truth, valid, **RPN)
    assert_equal(match_boxes(boxes.expand(3, -1, -1), truth, valid, **RPN), expected)
    assert_equal(match_boxes(boxes.double(), truth.double(), valid, **RPN), expected)
    strided = torch.stack([boxes, boxes], 1)[:, 1]
    assert_equal(match_boxes(strided, truth.mT.contiguous().mT, valid, **RPN), expected)
    half = boxes.half()
    assert_equal(match_boxes(half, truth, valid, **RPN), match_boxes(half.float(), truth, valid, **RPN))
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(match_boxes(boxes, truth, valid, **RPN), expected)


def test_boxes_may_require_a_gradient():
    boxes, truth, valid = random_boxes(1, 50), random_boxes(1, 3, seed=1), torch.ones(1, 3, dtype=torch.bool)
    expected = match_boxes(boxes, truth, valid, **RPN)
    matches = match_boxes(boxes.clone().requires_grad_(), truth.clone().double().requires_grad_(), valid, **RPN)
    assert_equal(matches, expected)
    assert not any(tensor.requires_grad for tensor in matches)
    ones = torch.func.grad(lambda boxes: match_boxes(boxes, truth, valid, **RPN).iou.sum() + boxes.sum())(boxes)
    assert torch.equal(ones, torch.ones_like(boxes))


def test_result_does_not_depend_on_threads():
    boxes, truth = random_boxes(2, 40_000), random_boxes(2, 30, seed=1)
    valid = torch.ones(2, 30, dtype=torch.bool)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(match_boxes(boxes, truth, valid, **RPN))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_equal(result, results[0])


def test_memory_does_not_grow_with_the_product():
    """200,000 x 10,000 would be 8 GB as a matrix; a process grows by far less."""
    program = """
import resource, torch
from libra_ops import match_boxes
x = torch.rand(200_000, 2)
boxes, truth = torch.cat([x * 2000, x * 2000 + 9], 1), torch.cat([x[:10_000] * 40, x[:10_000] * 40 + 9], 1)[None]
rules = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
match_boxes(boxes[:10], truth[:, :10], torch.ones(1, 10, dtype=torch.bool), **rules)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
match_boxes(boxes, truth, torch.ones(1, 10_000, dtype=torch.bool), **rules)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pytest.importorskip("resource", reason="Windows does not tell a process's peak memory")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100_000  # KiB, or on macOS bytes


def test_more_pairs_than_32_bits_count():
    """70,000 x 40,000 is beyond 2^31; the one target that is valid is the last."""
    boxes, truth = random_boxes(70_000), torch.zeros(1, 40_000, 4)
    valid = torch.zeros(1, 40_000, dtype=torch.bool)
    truth[0, -1], valid[0, -1] = boxes[-1], True
    matches = match_boxes(boxes, truth, valid, **RPN)
    assert matches.index[0, -1] == 39_999 and matches.iou[0, -1] == 1 and matches.state[0, -1] == 1
    expected = match_boxes(boxes, truth[:, -1:], valid[:, -1:], **RPN)
    assert torch.equal(matches.iou, expected.iou) and torch.equal(matches.state, expected.state)


@pytest.mark.parametrize("crowd", [None, random_boxes(2, 1, seed=5)])
@pytest.mark.parametrize("minimum", [None, 0.3])
def test_opcheck(crowd, minimum):
    arguments = (random_boxes(2, 20), random_boxes(2, 3, seed=1), torch.ones(2, 3, dtype=torch.bool), crowd, 0.7, 0.3)
    torch.library.opcheck(torch.ops.libra_ops.match_boxes.default, (*arguments, minimum))


def test_compiles_and_fakes():
    boxes, truth, valid = random_boxes(2, 50), random_boxes(2, 5, seed=1), torch.ones(2, 5, dtype=torch.bool)
    compiled = torch.compile(lambda *a: match_boxes(*a, **RPN), fullgraph=True, backend="aot_eager")
    assert_equal(compiled(boxes, truth, valid), match_boxes(boxes, truth, valid, **RPN))
    with FakeTensorMode() as mode:
        fake = match_boxes(*map(mode.from_tensor, (boxes, truth, valid)), **RPN)
    assert [tuple(t.shape) for t in fake] == [(2, 50)] * 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes: expected a torch.Tensor, got list"),
        ({"boxes": torch.zeros(3, 5)}, ValueError, "boxes: expected xyxy boxes"),
        ({"boxes": torch.zeros(3, 7, 4)}, ValueError, "boxes: expected .* batch of 2"),
        ({"boxes": torch.zeros(2, 7, 4, dtype=torch.int64)}, TypeError, "boxes: expected a floating dtype"),
        ({"targets": torch.zeros(5, 4)}, ValueError, "targets: expected xyxy boxes"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "valid: expected shape"),
        ({"valid": torch.ones(2, 3)}, TypeError, "valid: expected dtype bool"),
        ({"positive_iou": 1.5}, ValueError, "positive_iou: expected a finite number"),
        ({"negative_iou": float("nan")}, ValueError, "negative_iou"),
        ({"negative_iou": 0.8}, ValueError, "negative_iou: expected at most positive_iou"),
        ({"min_positive_iou": "0.3"}, TypeError, "min_positive_iou: expected a number, got str"),
        ({"crowd": torch.zeros(2, 4, dtype=torch.bool)}, ValueError, "crowd: expected shape"),
        ({"crowd": torch.zeros(3, 1, 4)}, ValueError, "crowd: expected a batch of 2"),
        (
            {"crowd": torch.zeros(2, 3, dtype=torch.int64)},
            TypeError,
            r"crowd: .*bool \[B, G\].*floating .*int64 \[2, 3",
        ),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = {
        "boxes": random_boxes(2, 7),
        "targets": random_boxes(2, 3),
        "valid": torch.ones(2, 3, dtype=torch.bool),
        **RPN,
    }
    with pytest.raises(error, match=words):
        match_boxes(**{**arguments, **change})


@pytest.mark.cuda
@pytest.mark.parametrize("rules", [RPN, ROI])
def test_cuda_equals_cpu(rules):
    boxes, truth = random_boxes(3, 5000), random_boxes(3, 200, seed=1)
    valid = torch.rand(3, 200) < 0.7
    valid[-1] = True
    crowd = random_boxes(3, 2, seed=4, size=60)
    boxes[0, 7], boxes[1, 8] = float("nan"), torch.tensor([0, 0, 1e20, 1e20])
    expected = match_boxes(boxes, truth, valid, crowd=crowd, **rules)
    found = match_boxes(boxes.cuda(), truth.cuda(), valid.cuda(), crowd=crowd.cuda(), **rules)
    assert_equal([t.cpu() for t in found], expected)
