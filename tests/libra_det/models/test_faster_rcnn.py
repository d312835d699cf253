"""The whole detector: its names, its training step on awkward batches, its ablations and its detections."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from libra_det.config import ModelConfig
from libra_det.models import FasterRCNN, build_model
from libra_det.structures import Batch, Proposals, Targets
from libra_ops import box_iou

LOSSES = {"rpn_class", "rpn_box", "roi_class", "roi_box"}

OVERLAP = {"norm": "group_norm", "box_loss": "giou", "rpn_box_loss": "iou", "box_loss_weight": 4.0}


def test_every_parameter_that_trains_gets_a_gradient_and_no_other(small_config, make_batch) -> None:
    model = build_model(small_config(frozen_stages=1, norm="frozen_batch_norm"), 3)
    model.neck[1].refine.conv_out.conv.weight.data.normal_(std=0.1)  # zero at first, and then all before it has none
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses, features = model.losses(make_batch())
    assert set(losses) == LOSSES and len(features) == 5
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
        assert (parameter.grad is None) == frozen, name
        if not frozen and name != "neck.1.refine.phi.conv.bias":
            assert parameter.grad.abs().sum() > 0, name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("changes", [{"norm": "group_norm"}, {"norm": "batch_norm"}, OVERLAP], ids=str)
def test_a_few_steps_reduce_the_loss(small_config, make_batch, changes: dict) -> None:
    model = build_model(small_config(**changes), 3)
    batch = make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    totals = []
    for _ in range(32):
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        totals.append(total.item())
    # Proposals and samples change from step to step, and with them the loss: means of several steps are compared.
    assert sum(totals[-8:]) / 8 < 0.8 * sum(totals[:3]) / 3, totals


@pytest.mark.parametrize(("slots", "changes"), [(0, {}), (3, {}), (3, OVERLAP)], ids=str)
def test_a_batch_without_objects(small_config, make_batch, slots: int, changes: dict) -> None:
    model = build_model(small_config(**changes), 3)
    losses = model(make_batch(objects=0, slots=slots))
    assert losses["rpn_box"] == 0 and losses["roi_box"] == 0
    assert losses["rpn_class"] > 0 and losses["roi_class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_target_padding_does_not_change_what_the_anchors_learn(small_config, make_batch) -> None:
    model = build_model(small_config(norm="group_norm"), 3)
    results = []
    for slots in (3, 9):
        torch.manual_seed(5)
        results.append(model(make_batch(slots=slots)))
    assert results[0]["rpn_class"] == results[1]["rpn_class"]
    assert results[0]["rpn_box"] == results[1]["rpn_box"]


def test_images_of_one_pixel(small_config) -> None:
    model = build_model(small_config(norm="group_norm"), 3)
    one = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([[1]]), one, ~one)
    size = torch.ones(1, 2)
    batch = Batch(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8), size, size.clone(), targets, [0], ["dot.png"])
    losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    found = model.eval()(batch)
    assert found.boxes.amax() <= 1


@pytest.mark.parametrize("roi_sampling_ratio", [0, 2])
def test_a_target_that_is_not_a_number_harms_nothing(small_config, make_batch, roi_sampling_ratio: int) -> None:
    # more samples than candidates: the slots that stay empty read the first candidate, which is this target
    model = build_model(small_config(roi_sampling_ratio=roi_sampling_ratio, roi_samples=256), 3)
    batch = make_batch()
    batch.targets.boxes[0, 0] = torch.nan
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_training_needs_targets_and_detecting_does_not(small_config, make_batch) -> None:
    model = build_model(small_config(), 3)
    batch = dataclasses.replace(make_batch(), targets=None)
    with pytest.raises(ValueError, match=r"batch\.targets: expected Targets"):
        model(batch)
    assert model.eval()(batch).boxes.shape == (2, 20, 4)


def test_a_model_needs_a_class(small_config) -> None:
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        build_model(small_config(), 0)


def test_padding_is_zero_after_normalisation(small_config) -> None:
    model = build_model(small_config(), 3)
    images = torch.full((2, 3, 8, 10), 255, dtype=torch.uint8)
    normal = model.normalise(images, torch.tensor([[8.0, 10.0], [5.0, 7.0]]))
    wanted = (255 - torch.tensor(ModelConfig().pixel_mean)) / torch.tensor(ModelConfig().pixel_std)
    torch.testing.assert_close(normal[0], wanted[:, None, None].expand(3, 8, 10))
    assert normal[1, :, :5, :7].min() > 1
    assert not normal[1, :, 5:].any() and not normal[1, :, :, 7:].any()


def test_pyramid_ablation_changes_the_parameters_it_should(small_config) -> None:
    names = {}
    for pyramid in ("none", "mean", "conv", "non_local"):
        model = build_model(small_config(pyramid=pyramid), 3)
        names[pyramid] = {name for name, _ in model.named_parameters() if name.startswith("neck.1")}
    assert names["none"] == names["mean"] == set()
    assert names["conv"] == {"neck.1.refine.conv.weight", "neck.1.refine.conv.bias"}
    assert len(names["non_local"]) == 8


def _trained(model: FasterRCNN, batch: Batch, steps: int) -> FasterRCNN:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        total = sum(model.train()(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model.eval()


def test_it_finds_what_it_was_shown(small_config, make_batch) -> None:
    """Overfitting one batch, the detector returns its objects, in the pixels of originals twice the size."""
    batch = make_batch(objects=2)
    model = _trained(build_model(small_config(norm="group_norm"), 3), batch, steps=80)
    batch.original_sizes = batch.sizes * 2
    found = model(batch)
    for image in range(2):
        for box, label in zip(batch.targets.boxes[image, :2] * 2, batch.targets.labels[image, :2], strict=True):
            same = found.valid[image] & (found.labels[image] == label)
            overlap = box_iou(found.boxes[image], box[None])[:, 0] * same * (found.scores[image] > 0.4)
            assert overlap.max() > 0.5


def test_nothing_above_the_threshold(small_config, make_batch) -> None:
    model = build_model(small_config(score_threshold=1.0), 3).eval()
    found = model(make_batch())
    assert not found.valid.any() and not found.boxes.any()


def test_weights_that_are_not_numbers_do_not_crash_detection(small_config, make_batch) -> None:
    model = build_model(small_config(), 3).eval()
    torch.nn.init.constant_(model.backbone.layer4[0].conv1.weight, torch.nan)
    found = model(make_batch())
    assert found.boxes.isfinite().all() and found.scores.isfinite().all()


def test_bfloat16_autocast_and_channels_last_train_with_float32_losses(small_config, make_batch) -> None:
    model = build_model(small_config(), 3).to(memory_format=torch.channels_last)
    batch = make_batch()
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    plain = model(batch)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        losses, features = model.losses(batch)
    assert features[0].dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name in ("rpn_class", "roi_class"):
        assert losses[name].item() == pytest.approx(plain[name].item(), rel=0.1)
    sum(losses.values()).backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(batch).boxes.dtype == torch.float32


def test_equal_seeds_give_equal_losses(small_config, make_batch) -> None:
    def run(seed: int) -> list[float]:
        torch.manual_seed(0)
        model = build_model(small_config(norm="group_norm"), 3)
        torch.manual_seed(seed)
        return [loss.item() for loss in model(make_batch()).values()]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_proposals_in_training_carry_no_gradient(small_config, make_batch) -> None:
    model = build_model(small_config(), 3)
    batch = make_batch()
    features = model.features(model.normalise(batch.images, batch.sizes))
    proposals = model.rpn_head.propose(model.rpn_head(features), batch.sizes, per_level=10, limit=10)
    assert isinstance(proposals, Proposals) and not proposals.boxes.requires_grad
