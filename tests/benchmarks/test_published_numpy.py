"""The NumPy baseline does what the published implementation did, as far as its goldens tell."""

import numpy as np
import pytest
import torch

from benchmarks import published_numpy as published
from libra_ops import reference

TRIALS = 300


def test_iou_and_assignment_are_the_reference_s():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(220, 2, 2, generator=generator) * 100
    boxes = torch.cat([corners.amin(-2), corners.amax(-2)], -1)
    candidates, targets = boxes[:200], boxes[200:]
    iou = published.box_iou(candidates.numpy(), targets.numpy())
    torch.testing.assert_close(torch.from_numpy(iou), reference.box_iou(targets, candidates))
    for rules in ((0.5, 0.5, None), (0.6, 0.3, 0.3)):
        assignment, best = published.assign(iou, *rules)
        index, expected, state = reference.match_boxes(candidates, targets[None], torch.ones(1, 20).bool(), *rules)
        torch.testing.assert_close(torch.from_numpy(best), expected[0])
        expected = torch.where(state[0] == 1, index[0] + 1, state[0].long())
        assert torch.equal(torch.from_numpy(assignment), expected)


@pytest.mark.parametrize("setting", ["rpn", "rcnn", "rcnn_lowq", "retina"])
def test_assignment_is_that_of_the_goldens(libra_goldens, setting):
    """All scenes with targets: ties, targets without area or overlap, and the claims that follow."""
    golden = torch.load(libra_goldens / "d_assigner.pt", weights_only=True)
    rules = golden["settings"][setting]
    for case in golden["cases"]:
        scene = golden["scenes"][case["scene"]]
        if case["setting"] != setting or not len(scene["gts"]) or not len(scene["boxes"]):
            continue
        least = rules["min_pos_iou"] if rules.get("match_low_quality", True) else None
        iou = published.box_iou(scene["boxes"].numpy(), scene["gts"].numpy())
        assignment, best = published.assign(iou, rules["pos_iou_thr"], rules["neg_iou_thr"], least)
        assert torch.equal(torch.from_numpy(assignment), case["gt_inds"].long()), case["scene"]
        assert torch.equal(torch.from_numpy(best), case["max_overlaps"]), case["scene"]


@pytest.mark.parametrize("phase", ["first_call", "steady"])
@pytest.mark.parametrize("case", ["base_std", "base_nogtadded", "many_zeros", "few_upper_bin", "expected_gt_negatives"])
def test_negatives_of_each_bin_are_as_published(libra_goldens, case, phase):
    """Mean number of negatives per bin, and of IoU 0, over many draws."""
    golden = torch.load(libra_goldens / "f_iou_balanced_neg.pt", weights_only=True)["cases"][case]
    best, assignment, count = golden["max_overlaps"].numpy(), golden["gt_inds"].numpy(), golden["num_expected"]
    edges = golden[phase]["bin_edges"]
    rng = np.random.default_rng(0)
    per_bin, zeros = [], []
    for _ in range(TRIALS):
        drawn = published.sample_negatives(assignment, best, count, rng, first_call=phase == "first_call")
        assert len(set(drawn.tolist())) == len(drawn) == golden[phase]["mean_total"]
        assert (assignment[drawn] == 0).all()
        per_bin.append(np.histogram(best[drawn], edges)[0])
        zeros.append((best[drawn] == 0).sum())
    # Draws without replacement vary by less than sqrt(count); the golden is a mean of 2000 of them.
    tolerance = 5 * np.sqrt(count / TRIALS)
    np.testing.assert_allclose(np.mean(per_bin, 0), golden[phase]["mean_per_bin"], atol=tolerance)
    assert abs(np.mean(zeros) - golden[phase]["mean_exact_zero"]) < tolerance


@pytest.mark.parametrize("case", ["balanced_many", "fewer_than_expected", "skewed_extra_needed", "many_gts"])
def test_positives_of_each_target_are_as_published(libra_goldens, case):
    """Where the published sampler's top-up draws no duplicates; where it does, ours has none."""
    golden = torch.load(libra_goldens / "f_instance_balanced_pos.pt", weights_only=True)["cases"][case]
    assignment, count = golden["gt_inds"].numpy(), golden["num_expected"]
    rng = np.random.default_rng(0)
    per_target = []
    for _ in range(TRIALS):
        drawn = published.sample_positives(assignment, count, rng)
        assert len(set(drawn.tolist())) == len(drawn) == min(count, int((assignment > 0).sum()))
        per_target.append(np.bincount(assignment[drawn], minlength=len(golden["counts"]) + 1)[1:])
    if golden["mean_unique"] == golden["mean_raw"]:
        np.testing.assert_allclose(np.mean(per_target, 0), golden["mean_per_gt"], atol=5 * np.sqrt(count / TRIALS))


def test_the_third_bin_is_empty_where_targets_are_among_the_candidates():
    """The published bug: with an IoU of 1 about, the bins are thirds of [0, 1), and negatives end at 0.5."""
    rng = np.random.default_rng(0)
    best = np.concatenate([np.ones(10), rng.random(3000) * 0.5]).astype(np.float32)
    assignment = np.where(best >= 0.5, 1, 0)
    drawn = published.sample_negatives(assignment, best, 384, rng)
    assert (best[drawn] < 2 / 3).all()
    assert (best[drawn] < 1 / 3).sum() > 128 < (best[drawn] >= 1 / 3).sum()  # each its quota, the third's refilled


def test_without_overlap_is_drawn_last_but_for_the_first_call():
    rng = np.random.default_rng(0)
    best = np.concatenate([np.zeros(1000), np.full(1000, 0.2), [1.0]]).astype(np.float32)
    assignment = np.where(best >= 0.5, 1, 0)
    later = published.sample_negatives(assignment, best, 300, rng)
    first = published.sample_negatives(assignment, best, 300, rng, first_call=True)
    short = published.sample_negatives(assignment, best, 1500, rng)
    assert (best[later] == 0).sum() == 0 < (best[first] == 0).sum()
    assert (best[short] == 0).sum() == 500
