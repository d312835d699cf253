"""The detectors that are compared are the same but for what is named, and the tables show what was measured."""

from dataclasses import replace

import pytest
import torch

from benchmarks import detectors, loader, photos, train_step
from benchmarks.breakdown import break_down, part_of
from benchmarks.case import Mismatch, Plan
from benchmarks.clock import CpuClock
from benchmarks.detectors import TINY, TINY_RETINA
from benchmarks.harness import run_case
from benchmarks.sides import Detector, same_work

CPU = torch.device("cpu")
TINY_PLAN = Plan(CPU, sizes="tiny")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(setting=TINY, seed=0):
    return photos.batch_tensors(torch.Generator().manual_seed(seed), setting)


@pytest.mark.parametrize("setting", [TINY, TINY_RETINA], ids=["faster_rcnn", "retinanet"])
def test_both_sides_do_the_same_work(setting):
    ours = Detector(setting, CPU, True, ours=True, channels_last=True, amp=False)
    theirs = Detector(setting, CPU, True, ours=False, channels_last=True, amp=False)
    works = [side(*side.prepare(batch(setting))) for side in (ours, theirs)]
    words = same_work(*works)
    assert "images [2, 3, 64, 64]" in words
    if setting is TINY:
        assert works[0].regions == works[1].regions == TINY.batch * TINY.samples
        assert works[0].proposals > 0
    for other in (replace(TINY, channels=16), replace(TINY, height=96)):
        with pytest.raises(Mismatch):
            side = Detector(other, CPU, True, ours=False, channels_last=False, amp=False)
            same_work(works[0], side(*side.prepare(batch(other))))


def test_the_shared_weights_give_the_same_features_and_scores():
    images = batch()[0]
    ours = detectors.our_detector(TINY, images, pyramid="none").eval()
    theirs = detectors.torchvision_detector(TINY, ours).eval()
    with torch.no_grad():
        normalised = ours.normalise(images, torch.tensor([[64.0, 64.0]] * 2))
        mine, other = ours.features(normalised), theirs.backbone(normalised)
        for one, two in zip(mine, other.values(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        pooled = torch.randn(3, TINY.channels, 7, 7)
        scores, boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        hidden = ours.roi_head.bbox_head(pooled)
        torch.testing.assert_close(ours.roi_head.bbox_head.classes(hidden), scores.roll(-1, 1))
        torch.testing.assert_close(ours.roi_head.bbox_head.deltas(hidden).flatten(1), boxes[:, 4:])


def test_a_step_trains_and_an_inference_does_not():
    for training, ours in ((True, True), (True, False), (False, True)):
        side = Detector(TINY, CPU, training, ours, channels_last=False, amp=training)
        arguments = side.prepare(batch())
        side(*arguments)
        model = side.model
        before = [value.detach().clone() for value in model.parameters()]
        side(*arguments)
        moved = [not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True)]
        frozen = [not value.requires_grad for value in model.parameters()]
        assert any(moved) == training and not any(a and b for a, b in zip(moved, frozen, strict=True))
        side.release()
        assert side.model is None


def test_batches_are_of_the_size_with_boxes_inside():
    images, boxes, labels, valid = batch(replace(TINY, height=70, width=90))
    assert images.shape == (2, 3, 96, 96) and images[:, :, 70:].sum() == 0 == images[..., 90:].sum()
    assert valid.any(1).all() and (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()
    assert boxes[valid].amax(0).le(torch.tensor([90.0, 70.0, 90.0, 70.0]) + 1e-3).all() and labels.max() < 3


def test_a_breakdown_adds_up_and_names_what_it_finds():
    layer = torch.nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def call(x):
        optimizer.zero_grad()
        layer(x).mean().backward()
        optimizer.step()
        return x[x > 0].sum().item()

    found = break_down(call, [(torch.randn(2, 3, 16, 16),)], TINY_PLAN)
    parts = found["parts"]
    assert {"convolution, forward", "convolution, backward", "optimizer"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(found["seconds"], rel=0.05)
    assert found["counts"] == {"values read by the host": 1, "nonzero": 1}
    assert found["multiply-adds"] == 2 * 2 * 8 * 14 * 14 * 3 * 9  # forward, and backward for the weights


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mkldnn_convolution", "convolution, forward"),
        ("aten::convolution_backward", "convolution, backward"),
        ("libra_ops::match_boxes", "libra_ops"),
        ("torchvision::_roi_align_backward", "torchvision's operations"),
        ("aten::addmm", "fully connected"),
        ("aten::copy_", "element-wise, copies and others"),
    ],
)
def test_operations_count_for_the_part_that_is_theirs(name, part):
    assert part_of(name) == part


def test_what_a_gpu_runs_runs_at_a_tiny_size_too():
    """All but the graph, which needs one."""
    case = train_step._on_gpu(TINY_PLAN, TINY)
    sides = {name: side for name, side in case.sides.items() if name != train_step.GRAPH}
    found = run_case(
        replace(case, sides=sides), replace(TINY_PLAN, samples=1, fewest=1, seconds=0, memory="none"), CpuClock()
    )
    assert found["failures"] == [] and "trained; images" in found["checks"]["torchvision"]
    assert found["sides"]["torchvision"]["breakdown"]["counts"]["nonzero"] > 0
    loading = loader._on_the_gpu(TINY_PLAN, (48, 64), images=2)
    assert "median" in run_case(loading, TINY_PLAN, CpuClock())["sides"][loader.GPU_DECODE]
