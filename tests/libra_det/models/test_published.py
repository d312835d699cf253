"""The ResNet-50 detector, end to end, against the reference implementation with the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.io import decode_image

from libra_det.config import ModelConfig
from libra_det.models import FasterRCNN, build_model
from libra_det.structures import Batch, Detections, Targets

SIZES = torch.tensor([[256.0, 320.0], [240.0, 300.0]])
ORIGINAL_SIZES = torch.tensor([[256.0, 320.0], [192.0, 240.0]])  # the second image had been enlarged by 1.25


@pytest.fixture(scope="module")
def model(golden, detdata) -> FasterRCNN:
    model = build_model(ModelConfig(), 80)
    model.load_state_dict(detdata.build_state_dict(golden("g_weights_faster_r50")))
    return model.eval()


@pytest.fixture(scope="module")
def images(golden) -> Tensor:
    return golden("g_small_batch_input")["x"].float()


@pytest.fixture(scope="module")
def features(model, images) -> list[Tensor]:
    with torch.no_grad():
        return model.features(images)


def _assert_sampled(values: Tensor, wanted: dict[str, Any]) -> None:
    index = wanted["idx"]
    assert values.shape == wanted["shape"]
    chosen = values[:, index["c"]][:, :, index["y"]][..., index["x"]]
    torch.testing.assert_close(chosen, wanted["vals"], rtol=0, atol=2e-4 * wanted["std"])


def test_maps(golden, model, images, features) -> None:
    wanted = golden("g_small_faster_r50")
    with torch.no_grad():
        maps = model.backbone(images)
        for values, expected in zip(maps, wanted["backbone"], strict=True):
            _assert_sampled(values, expected)
        for values, expected in zip(model.neck[0](maps), wanted["fpn"], strict=True):
            _assert_sampled(values, expected)
    for values, expected in zip(features, wanted["bfp"], strict=True):
        _assert_sampled(values, expected)


def test_proposals(golden, model, features) -> None:
    with torch.no_grad():
        proposals = model.rpn_head.propose(model.rpn_head(features), SIZES, per_level=1000, limit=1000)
    for image, wanted in enumerate(golden("g_small_faster_r50")["proposals"]):
        assert proposals.valid[image].all()
        nearest = torch.cdist(wanted["bboxes"], proposals.boxes[image], p=torch.inf).min(1).values
        # a near-equal score or an overlap at the threshold may swap a few
        assert (nearest > 2e-3).sum() <= 3


def test_head_on_fixed_regions(golden, model, features) -> None:
    wanted = golden("g_small_faster_r50")["fixed_rois"]
    rois = wanted["rois"]
    image = rois[:, 0].long()
    with torch.no_grad():
        pooled = model.roi_head.pool(features, rois[:, 1:].expand(2, -1, -1)).unflatten(0, (2, -1))
        pooled = pooled[image, torch.arange(len(rois))]
        _assert_sampled(pooled, wanted["feat"])
        hidden = model.roi_head.bbox_head(pooled)
        scores, deltas = model.roi_head.bbox_head.classes(hidden), model.roi_head.bbox_head.deltas(hidden)
    torch.testing.assert_close(scores, wanted["cls_score"], rtol=0, atol=2e-4 * wanted["cls_score"].std().item())
    torch.testing.assert_close(deltas.flatten(1), wanted["bbox_pred"], rtol=0, atol=5e-4)


def _assert_same_detections(found: Detections, wanted: list[dict[str, Tensor]], box_tolerance: float) -> None:
    """Matched by label and box, for near-equal scores may swap places."""
    for image, expected in enumerate(wanted):
        assert found.valid[image].all()
        distance = torch.cdist(expected["bboxes"], found.boxes[image], p=torch.inf)
        distance = distance.masked_fill(expected["labels"][:, None] != found.labels[image], torch.inf)
        nearest, index = distance.min(1)
        assert nearest.max() < box_tolerance  # px
        torch.testing.assert_close(found.scores[image][index], expected["scores"], rtol=0, atol=1e-4)


def test_detections(golden, model, features) -> None:
    found = model.detect_from_features(features, SIZES, ORIGINAL_SIZES)
    _assert_same_detections(found, golden("g_small_faster_r50")["dets"], box_tolerance=2e-3)


def test_losses_and_gradients_of_all_samples(golden, model, images) -> None:
    """With as many samples asked for as there are, nothing is random and the whole training step can be compared."""
    config = dataclasses.replace(
        model.config, rpn_samples=20_460, rpn_max_negatives_per_positive=None, roi_samples=1_006
    )
    case = golden("h_train_faster_r50")
    wanted = case["variants"]["sample_all"]
    boxes, labels = (torch.stack([target[key] for target in case["gts"]]) for key in ("bboxes", "labels"))
    valid = torch.ones_like(labels, dtype=torch.bool)
    published = model.config
    parts = (model, model.rpn_head, model.roi_head)
    try:
        for part in parts:
            part.config = config
        model.train()
        losses = model.losses_from_features(model.features(images), SIZES, Targets(boxes, labels, valid, ~valid))
        sum(losses.values()).backward()
    finally:
        for part in parts:
            part.config = published
        model.eval()
    assert losses["rpn_class"].item() == pytest.approx(sum(wanted["losses"]["loss_rpn_cls"]), rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(sum(wanted["losses"]["loss_rpn_bbox"]), rel=1e-5)
    assert losses["roi_class"].item() == pytest.approx(wanted["losses"]["loss_cls"], rel=1e-5)
    assert losses["roi_box"].item() == pytest.approx(wanted["losses"]["loss_bbox"], rel=1e-5)
    norms = wanted["grads"]["norms"]
    for name, parameter in model.named_parameters():
        if name in wanted["grads"]["frozen"]:
            assert parameter.grad is None, name
        elif name != "neck.1.refine.phi.conv.bias":  # mathematically without gradient
            assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=3e-3), name
    model.zero_grad()


def test_a_picture_from_pixels_to_detections(golden, libra_goldens, model) -> None:
    """480 x 640 pixels, resized to 800 x 1067 by the reference implementation, through the public entry point."""
    resized = decode_image(str(libra_goldens / "raw480x640_resized_bgr.png"), mode="RGB")
    images = torch.nn.functional.pad(resized, (0, 1088 - 1067))[None]
    batch = Batch(images, torch.tensor([[800.0, 1067.0]]), torch.tensor([[480.0, 640.0]]), None, [0], ["raw.png"])
    case = golden("g_raw_faster_r50")
    index, wanted = case["input"]["idx"], case["input"]["vals"]
    normal = model.normalise(batch.images, batch.sizes)
    torch.testing.assert_close(normal[:, index["c"]][:, :, index["y"]][..., index["x"]], wanted, rtol=0, atol=1e-5)
    _assert_same_detections(model.detect(batch), case["dets"], box_tolerance=5e-3)
