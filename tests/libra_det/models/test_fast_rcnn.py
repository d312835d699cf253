"""Fast R-CNN: the second stage on proposals that come with the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from libra_det.models import build_model
from libra_det.structures import Batch, Proposals, Targets
from libra_ops import box_iou


@pytest.fixture
def small_fast(small_config):
    """small_fast(norm="group_norm", ...) -> a Fast R-CNN of three classes."""
    return lambda **changes: build_model(small_config(detector="fast_rcnn", **changes), 3)


@pytest.fixture
def with_proposals(make_batch):
    """A batch with 40 proposals an image, half of them about its objects, and five slots of padding."""

    def make(**options) -> Batch:
        batch = make_batch(**options)
        height, width = batch.images.shape[2:]
        generator = torch.Generator().manual_seed(2)
        corners = torch.rand(len(batch.images), 40, 2, generator=generator) * torch.tensor(
            [width - 40.0, height - 40.0]
        )
        boxes = torch.cat((corners, corners + 16 + 24 * torch.rand(corners.shape, generator=generator)), -1)
        objects = batch.targets.boxes[:, : max(1, int(batch.targets.valid[0].sum()))]
        near = objects.repeat(1, 20, 1)[:, :20]
        boxes[:, :20] = near + 6 * torch.rand(near.shape, generator=generator) - 3
        valid = torch.ones(len(boxes), 40, dtype=torch.bool)
        boxes, valid = torch.nn.functional.pad(boxes, (0, 0, 0, 5)), torch.nn.functional.pad(valid, (0, 5))
        return dataclasses.replace(batch, proposals=Proposals(boxes, valid * 0.5, valid))

    return make


def test_it_learns_and_finds_what_it_was_shown(small_fast, with_proposals) -> None:
    model, batch = small_fast(norm="group_norm"), with_proposals(batch=1, objects=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(30):
        losses = model.train()(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert set(losses) == {"roi_class", "roi_box"}
    assert totals[-1] < 0.5 * totals[0]
    batch.original_sizes = batch.sizes * 2
    found = model.eval()(batch)
    for box, label in zip(batch.targets.boxes[0, :2] * 2, batch.targets.labels[0, :2], strict=True):
        same = found.valid[0] & (found.labels[0] == label)
        assert (box_iou(found.boxes[0], box[None])[:, 0] * same).max() > 0.6


def test_padded_proposals_are_neither_trained_on_nor_detected(small_fast, with_proposals) -> None:
    model, batch = small_fast(norm="group_norm", score_threshold=0.0, detections_per_image=400).eval(), with_proposals()
    more = Proposals(*(torch.cat((part, torch.zeros_like(part)), 1) for part in batch.proposals))
    found, padded = model(batch), model(dataclasses.replace(batch, proposals=more))
    for name in found._fields:
        part = getattr(found, name)
        torch.testing.assert_close(part, getattr(padded, name)[:, : part.shape[1]])
    nothing = batch.proposals._replace(valid=torch.zeros_like(batch.proposals.valid))
    assert not model(dataclasses.replace(batch, proposals=nothing)).valid.any()


@pytest.mark.parametrize("slots", [0, 3])
def test_a_batch_without_objects(small_fast, with_proposals, slots: int) -> None:
    model = small_fast()
    losses = model(with_proposals(objects=0, slots=max(slots, 1)))
    assert losses["roi_box"] == 0 and losses["roi_class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_training_step_has_fixed_shapes(small_fast, with_proposals) -> None:
    """No shape and no branch of the losses depends on what the tensors hold: they can be traced without any values."""
    batch = with_proposals()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = small_fast()
        fake = {name: mode.from_tensor(getattr(batch, name)) for name in ("images", "sizes", "original_sizes")}
        targets = Targets(*map(mode.from_tensor, batch.targets))
        proposals = Proposals(*map(mode.from_tensor, batch.proposals))
        losses, _ = model.losses(dataclasses.replace(batch, **fake, targets=targets, proposals=proposals))
        sum(losses.values()).backward()
    assert all(loss.shape == () for loss in losses.values())


def test_a_batch_without_proposals_is_an_error_that_says_how_to_get_them(small_fast, make_batch) -> None:
    model = small_fast()
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"batch\.proposals: expected Proposals, got None; .*`libra proposals RUN"):
            model.train(mode)(make_batch())


def test_a_faster_rcnn_s_proposals_give_its_own_detections(small_config, make_batch) -> None:
    """What the two-stage detector finds in one go is what Fast R-CNN with the same weights finds on its proposals."""
    whole = build_model(small_config(norm="group_norm"), 3).eval()
    fast = build_model(small_config(norm="group_norm", detector="fast_rcnn"), 3).eval()
    fast.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("rpn_head")})
    batch = make_batch()
    proposals = whole.propose(batch, limit=50)
    assert proposals.boxes.shape == (2, 50, 4)
    for found, wanted in zip(fast(dataclasses.replace(batch, proposals=proposals)), whole(batch), strict=True):
        assert torch.equal(found, wanted)


def test_proposals_move_with_their_batch(with_proposals) -> None:
    batch = with_proposals().to("meta")
    assert all(part.device.type == "meta" for part in batch.proposals)
