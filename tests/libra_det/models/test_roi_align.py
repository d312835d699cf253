"""Pooling of boxes: the op, and what exported models hold, against the reference implementation and torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision

from libra_det.models.roi_align import multiscale_roi_align, roi_levels

STRIDES = (4, 8, 16, 32)


def test_equals_the_reference(golden) -> None:
    case = golden("x_ops_losses")["roi"]
    rois = case["rois"]
    assert torch.equal(roi_levels(rois[:, 1:], 56.0, 4), case["levels"])
    for image in (0, 1):  # pool every box in every image, and compare those that the golden took from this one
        boxes = rois[:, 1:].expand(2, -1, -1)
        pooled = multiscale_roi_align(case["feats"], boxes, strides=STRIDES).unflatten(0, (2, -1))
        chosen = rois[:, 0] == image
        torch.testing.assert_close(pooled[image][chosen], case["out"][chosen], rtol=1e-4, atol=1e-4)


def test_one_level_with_two_points_equals_the_reference(golden) -> None:
    case = golden("x_ops_losses")["roi"]
    boxes = case["rois"][:, 1:].expand(2, -1, -1)
    pooled = multiscale_roi_align(case["feats"][:1], boxes, strides=(4,), sampling_ratio=2).unflatten(0, (2, -1))
    pooled = pooled[case["rois"][:, 0].long(), torch.arange(len(case["rois"]))]
    torch.testing.assert_close(pooled, case["roialign_s4_sr2"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_equals_torchvision(sampling_ratio: int) -> None:
    """Boxes of all sizes, some partly or wholly outside the maps, some without area; values and gradients."""
    features = [torch.randn(2, 5, size, size + 3, requires_grad=True) for size in (40, 20, 10, 5)]
    corner = torch.rand(2, 60, 2) * 260 - 60
    boxes = torch.cat((corner, corner + torch.rand(2, 60, 2) ** 2 * 300), -1)
    boxes[:, 0] = 0
    boxes[:, 1] = 1000
    levels = roi_levels(boxes, 56.0, 4).flatten()
    assert levels.unique().tolist() == [0, 1, 2]
    image = torch.arange(2).repeat_interleave(60)[:, None]
    wanted = torch.stack(
        [
            torchvision.ops.roi_align(
                features[level],
                torch.cat((image, boxes.reshape(-1, 4)), 1)[i : i + 1],
                7,
                1 / STRIDES[level],
                sampling_ratio,
                True,
            )[0]
            for i, level in enumerate(levels.tolist())
        ]
    )
    pooled = multiscale_roi_align(features, boxes, strides=STRIDES, sampling_ratio=sampling_ratio)
    torch.testing.assert_close(pooled, wanted, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(pooled)
    for a, b in zip(
        torch.autograd.grad(pooled, features, cotangent),
        torch.autograd.grad(wanted, features, cotangent, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_no_boxes_and_boxes_that_are_not_finite(sampling_ratio: int) -> None:
    features = [torch.randn(2, 3, size, size) for size in (8, 4, 2, 1)]
    pooled = multiscale_roi_align(features, torch.zeros(2, 0, 4), strides=STRIDES, sampling_ratio=sampling_ratio)
    assert pooled.shape == (0, 3, 7, 7)
    boxes = torch.tensor([[0, 0, torch.nan, 8], [torch.nan] * 4, [0, -torch.inf, 4, torch.inf]]).expand(2, 3, 4)
    features[0].requires_grad_()
    pooled = multiscale_roi_align(features, boxes, strides=STRIDES, sampling_ratio=sampling_ratio)
    assert pooled.shape == (6, 3, 7, 7) and pooled.isfinite().all()
    pooled.sum().backward()
    assert features[0].grad.isfinite().all()
    boxes = torch.tensor([[0, 0, 1e30, 1e30]]).expand(2, 1, 4)
    pooled = multiscale_roi_align(features, boxes, strides=STRIDES, sampling_ratio=sampling_ratio)
    assert pooled.shape == (2, 3, 7, 7) and pooled.isfinite().all()


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_needs_no_value_from_the_device(sampling_ratio: int) -> None:
    """Shapes are known before the inputs: it runs on tensors without data."""
    features = [torch.empty(2, 3, size, size, device="meta") for size in (8, 4, 2, 1)]
    boxes = torch.empty(2, 5, 4, device="meta")
    pooled = multiscale_roi_align(features, boxes, strides=STRIDES, sampling_ratio=sampling_ratio)
    assert pooled.shape == (10, 3, 7, 7)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_exported_pooling_is_the_same(sampling_ratio: int) -> None:
    class Pool(torch.nn.Module):
        def forward(self, features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
            return multiscale_roi_align(features, boxes, strides=STRIDES, sampling_ratio=sampling_ratio)

    features = [torch.randn(2, 3, size, size + 3) for size in (40, 20, 10, 5)]
    corner = torch.rand(2, 30, 2) * 150 - 30
    boxes = torch.cat((corner, corner + torch.rand(2, 30, 2) ** 2 * 300), -1)
    run = torch.export.export(Pool(), (features, boxes), strict=False).module()
    for these in (boxes, boxes.flip(1), boxes * 0):  # other levels than those of the example
        torch.testing.assert_close(run(features, these), Pool()(features, these), rtol=1e-4, atol=1e-4)
