"""RetinaNet: its head, what its anchors learn, awkward batches, and its detections."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import libra_ops
from libra_det.models import RetinaNet, build_model
from libra_det.models.anchors import AnchorPredictions
from libra_det.models.retinanet import STRIDES, RetinaHead
from libra_det.structures import Batch, Targets
from libra_ops import box_iou

RETINA = {"detector": "retinanet", "anchor_scales_per_octave": 3, "refine_level": 1, "box_loss_beta": 0.11}


@pytest.fixture
def small_retina(small_config):
    """small_retina(norm="group_norm", ...) -> a RetinaNet of three classes."""
    return lambda **changes: build_model(small_config(**{**RETINA, **changes}), 3)


def _pyramid(batch: int = 2, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    return [torch.randn(batch, 16, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def _sizes(*sizes: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(sizes)


def _targets(boxes: list, labels: list[int], crowd: list[bool] | None = None) -> Targets:
    boxes, labels = torch.tensor([boxes], dtype=torch.float32).reshape(1, -1, 4), torch.tensor([labels])
    crowd = torch.tensor([crowd]) if crowd else torch.zeros_like(labels, dtype=torch.bool)
    return Targets(boxes, labels, ~crowd, crowd)


def test_predictions_line_up_with_their_anchors(small_config) -> None:
    head = RetinaHead(small_config(**RETINA), 3)
    features = _pyramid()
    predictions = head(features)
    assert predictions.level_sizes == tuple(x.shape[2] * x.shape[3] * 9 for x in features)
    assert predictions.logits.shape == (2, sum(predictions.level_sizes), 3)
    # the second level's cell in row 3, column 5, its seventh anchor, class 2
    hidden = features[1]
    for conv in head.cls_convs:
        hidden = conv(hidden)
    position = predictions.level_sizes[0] + (3 * features[1].shape[3] + 5) * 9 + 6
    torch.testing.assert_close(predictions.logits[:, position, 2], head.retina_cls(hidden)[:, 6 * 3 + 2, 3, 5])
    assert predictions.cells[position].tolist() == [5 * 16, 3 * 16]


def test_at_first_every_class_is_unlikely(small_retina, make_batch) -> None:
    model = small_retina(norm="group_norm").eval()
    batch = make_batch()
    logits = model.bbox_head(model.features(model.normalise(batch.images, batch.sizes))).logits
    torch.testing.assert_close(logits.sigmoid().mean().item(), 0.01, rtol=0.2, atol=0)


def _perfect(head: RetinaHead, targets: Targets, classes: int = 3) -> AnchorPredictions:
    """Predictions for one 96 x 128 image that hit the first target from every anchor that is positive."""
    predictions = head(_pyramid(1))
    state = head.match(predictions, _sizes((96, 128)), targets).state[0]
    logits = torch.full((len(state), classes), -20.0)
    logits[state == 1, targets.labels[0, 0]] = 20.0
    deltas = libra_ops.encode_boxes(predictions.anchors, targets.boxes[0, :1].expand_as(predictions.anchors))
    return predictions._replace(logits=logits[None], deltas=deltas[None])


def test_losses_vanish_for_perfect_predictions_only(small_config) -> None:
    head = RetinaHead(small_config(**RETINA, box_loss="l1", class_loss_weight=2.0, box_loss_weight=3.0), 3)
    targets, sizes = _targets([(30, 20, 61, 50)], [1]), _sizes((96, 128))
    perfect = _perfect(head, targets)
    losses = head.losses(perfect, sizes, targets)
    assert set(losses) == {"class", "box"}
    assert losses["class"] < 1e-6 and losses["box"] < 1e-6
    positives = (perfect.logits > 0).sum()
    # an error of 1 in the four deltas of each positive, over the positives
    moved = perfect._replace(deltas=perfect.deltas + 1)
    assert head.losses(moved, sizes, targets)["box"].item() == pytest.approx(3 * 4, rel=1e-4)
    # one anchor that overlaps nothing says a class: alpha is 0.75 there, and -log(1 - p) 20, over the positives
    wrong = perfect.logits.clone()
    wrong[0, 0, 2] = 20.0
    loss = head.losses(perfect._replace(logits=wrong), sizes, targets)["class"]
    torch.testing.assert_close(loss, 2 * 0.75 * 20 / positives, rtol=1e-4, atol=1e-5)


def test_anchors_between_the_thresholds_and_in_the_batch_padding_learn_nothing(small_config) -> None:
    head = RetinaHead(small_config(**RETINA), 3)
    predictions = head(_pyramid())
    logits = predictions.logits.detach().requires_grad_()
    one = torch.ones(2, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[4.0, 4, 28, 28]]] * 2), torch.zeros(2, 1, dtype=torch.int64), one, ~one)
    head.losses(predictions._replace(logits=logits), _sizes((96, 128), (32, 32)), targets)["class"].backward()
    learns = logits.grad.abs().sum(-1) > 0  # [B, N]
    beyond = (predictions.cells >= 32).any(1)
    assert not learns[1, beyond].any() and learns[0, beyond].any()
    iou = box_iou(predictions.anchors, targets.boxes[0])[:, 0]
    assert learns[0].equal((iou < 0.4) | (iou >= 0.5))


def test_a_target_that_no_anchor_fits_claims_its_best_and_one_without_overlap_none(small_config) -> None:
    head = RetinaHead(small_config(**RETINA), 3)
    predictions, sizes = head(_pyramid(1)), _sizes((96, 128))
    thin = _targets([(10, 10, 100, 14)], [1])
    iou = box_iou(predictions.anchors, thin.boxes[0])[:, 0]
    assert iou.max() < 0.4
    assert head.match(predictions, sizes, thin).state[0].eq(1).equal(iou == iou.max())
    for lost in ((10, 10, 10, 10), (5000, 5000, 5030, 5030)):
        assert not head.match(predictions, sizes, _targets([lost], [1])).state.eq(1).any()


def test_an_image_without_positives_counts_as_one(small_config) -> None:
    head = RetinaHead(small_config(**RETINA), 3)
    predictions, sizes = head(_pyramid(1)), _sizes((96, 128))
    nothing = _targets([(0, 0, 0, 0)], [0])._replace(valid=torch.tensor([[False]]))
    losses = head.losses(predictions, sizes, nothing)
    margin = -predictions.logits
    wanted = (-0.75 * torch.sigmoid(-margin) ** 2 * torch.nn.functional.logsigmoid(margin)).sum()
    torch.testing.assert_close(losses["class"], wanted, rtol=1e-4, atol=0)
    assert losses["box"] == 0


def test_anchors_in_a_crowd_are_not_negatives(small_config) -> None:
    head = RetinaHead(small_config(**RETINA), 3)
    predictions = head(_pyramid(1))
    logits = predictions.logits.detach().requires_grad_()
    targets = _targets([(4, 4, 30, 30), (64, 0, 128, 96)], [0, 1], crowd=[False, True])
    head.losses(predictions._replace(logits=logits), _sizes((96, 128)), targets)["class"].backward()
    learns = logits.grad.abs().sum((0, 2)) > 0
    inside = (predictions.anchors[:, 0] >= 64) & (predictions.anchors[:, 2] <= 128)
    inside &= (predictions.anchors[:, 1] >= 0) & (predictions.anchors[:, 3] <= 96)
    assert inside.any() and not learns[inside].any() and learns[~inside].any()


def test_every_parameter_that_trains_gets_a_gradient_and_no_other(small_retina, make_batch) -> None:
    model = small_retina(frozen_stages=1, norm="frozen_batch_norm")
    model.neck[1].refine.conv_out.conv.weight.data.normal_(std=0.1)  # zero at first, and then all before it has none
    losses, features = model.losses(make_batch())
    assert set(losses) == {"class", "box"} and [x.shape[2] for x in features] == [12, 6, 3, 2, 1]
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
        assert (parameter.grad is None) == frozen, name
        if not frozen and name != "neck.1.refine.phi.conv.bias":
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("slots", [0, 3])
def test_a_batch_without_objects(small_retina, make_batch, slots: int) -> None:
    model = small_retina()
    losses = model(make_batch(objects=0, slots=slots))
    assert losses["box"] == 0 and losses["class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_targets_that_are_not_numbers_or_have_no_area_harm_nothing(small_retina, make_batch) -> None:
    model = small_retina()
    batch = make_batch()
    batch.targets.boxes[0, 0] = torch.nan
    batch.targets.boxes[1, 0] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_images_of_one_pixel(small_retina) -> None:
    model = small_retina(norm="group_norm")
    one = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([[1]]), one, ~one)
    size = torch.ones(1, 2)
    batch = Batch(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8), size, size.clone(), targets, [0], ["dot.png"])
    losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert model.eval()(batch).boxes.amax() <= 1


def test_target_padding_changes_nothing(small_retina, make_batch) -> None:
    model = small_retina(norm="group_norm")
    first, second = (model(make_batch(slots=slots)) for slots in (3, 9))
    assert first == second


def test_the_training_step_has_fixed_shapes(small_retina, make_batch) -> None:
    """No shape and no branch of the losses depends on what the tensors hold: they can be traced without any values."""
    batch = make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = small_retina()
        fake = {name: mode.from_tensor(getattr(batch, name)) for name in ("images", "sizes", "original_sizes")}
        targets = Targets(*map(mode.from_tensor, batch.targets))
        losses, _ = model.losses(dataclasses.replace(batch, **fake, targets=targets))
        sum(losses.values()).backward()
    assert all(loss.shape == () for loss in losses.values())


def test_amp_gives_float32_losses(small_retina, make_batch) -> None:
    model = small_retina()
    plain = model(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses, features = model.losses(make_batch())
    assert features[0].dtype == torch.bfloat16
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(plain[name].item(), rel=0.1)


def _trained(model: RetinaNet, batch: Batch, steps: int) -> tuple[RetinaNet, list[float]]:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(steps):
        total = sum(model.train()(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return model.eval(), totals


@pytest.mark.parametrize("box_loss", ["iou", "giou", "diou", "ciou"])
def test_a_few_steps_with_an_overlap_loss_bring_boxes_nearer(small_retina, make_batch, box_loss: str) -> None:
    model = small_retina(norm="group_norm", retina_convs=1, box_loss=box_loss)
    batch = make_batch(batch=1, height=64, objects=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(12):
        found = model(batch)
        losses.append(found["box"].item())
        optimizer.zero_grad()
        sum(found.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0], losses


def test_it_learns_and_finds_what_it_was_shown(small_retina, make_batch) -> None:
    """Overfitting one batch, the detector returns its objects, in the pixels of originals twice the size."""
    batch = make_batch(batch=1, height=64, objects=2)
    model, totals = _trained(small_retina(norm="group_norm", retina_convs=2), batch, steps=40)
    assert totals[-1] < 0.3 * totals[0]
    batch.original_sizes = batch.sizes * 2
    found = model(batch)
    assert found.boxes.shape == (1, 20, 4)
    for box, label in zip(batch.targets.boxes[0, :2] * 2, batch.targets.labels[0, :2], strict=True):
        same = found.valid[0] & (found.labels[0] == label)
        assert (box_iou(found.boxes[0], box[None])[:, 0] * same * (found.scores[0] > 0.3)).max() > 0.6


def test_detections_take_the_best_pairs_of_anchor_and_class_of_each_level(small_config) -> None:
    """By hand: one anchor is likely two classes, a second overlaps it, a third has too low a score."""
    head = RetinaHead(small_config(**RETINA, score_threshold=0.3, retina_candidates_per_level=3), 3)
    predictions = head(_pyramid(1))
    anchors = predictions.anchors
    logits = torch.full_like(predictions.logits, -20.0)
    chosen = int(((anchors - torch.tensor([32.0, 32, 64, 64])).abs().sum(1)).argmin())
    logits[0, chosen, 0], logits[0, chosen, 2], logits[0, chosen + 1, 0] = 3.0, 2.0, 1.0  # the first level's best three
    logits[0, chosen + 40, 1] = 0.5  # its fourth
    coarse = predictions.level_sizes[0] + 9
    logits[0, coarse, 1] = -2.0
    predictions = predictions._replace(logits=logits, deltas=torch.zeros_like(predictions.deltas))
    found = head.detect(predictions, _sizes((96, 128)), _sizes((48, 64)))
    assert found.valid.sum() == 2 and found.labels[0, :2].tolist() == [0, 2]
    torch.testing.assert_close(found.scores[0, :2], torch.tensor([3.0, 2.0]).sigmoid())
    torch.testing.assert_close(found.boxes[0, 0], anchors[chosen] / 2)
    assert not found.boxes[0, 2:].any() and not found.scores[0, 2:].any()


def test_weights_that_are_not_numbers_do_not_crash_detection(small_retina, make_batch) -> None:
    model = small_retina().eval()
    torch.nn.init.constant_(model.backbone.layer4[0].conv1.weight, torch.nan)
    found = model(make_batch())
    assert found.boxes.isfinite().all() and found.scores.isfinite().all() and not found.valid.all()


def test_matching_equals_the_reference_on_its_anchors(golden, small_config) -> None:
    """The published thresholds on the goldens' anchors; where a target overlaps nothing, the reference errs."""
    cases = golden("d_assigner")
    config = small_config(**RETINA)
    for case in cases["cases"]:
        if case["setting"] != "retina" or case["scene"] in ("zero_area_gt", "far_gt", "no_box"):
            continue
        scene = cases["scenes"][case["scene"]]
        matches = libra_ops.match_boxes(
            scene["boxes"],
            scene["gts"][None],
            torch.ones(1, len(scene["gts"]), dtype=torch.bool),
            positive_iou=config.retina_positive_iou,
            negative_iou=config.retina_negative_iou,
            min_positive_iou=config.retina_min_positive_iou,
        )
        found = torch.where(matches.state == 1, matches.index + 1, matches.state.long())[0]
        assert found.equal(case["gt_inds"].long()), case["scene"]
