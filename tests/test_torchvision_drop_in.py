"""The example of `libra_ops` in torchvision's Faster R-CNN trains, and changes nothing but training."""

import importlib.util
from pathlib import Path

import pytest
import torch

from libra_det.data.shapes import CLASSES, draw_data_set

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "torchvision_faster_rcnn.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("torchvision_faster_rcnn", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    draw_data_set(folder / "drawn", {"train": 5})
    return example.shapes(folder / "drawn")


@pytest.fixture
def model(example):
    torch.manual_seed(0)
    return example.small_model(len(CLASSES) + 1)


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 120


def test_the_loss_falls(example, data, model):
    history = example.train(example.use_libra(model), data[:2], steps=8, batch_size=2)
    assert sum(history[-3:]) < 0.8 * sum(history[:3])
    with torch.no_grad():
        (found,) = model.eval()([data[0][0]])
    assert set(found) == {"boxes", "scores", "labels"} and found["boxes"].isfinite().all()


def test_parameters_and_detections_stay_torchvisions(example, data, model):
    model.eval()
    model.roi_heads.score_thresh = 0.0
    names = list(model.state_dict())
    with torch.no_grad():
        (before,) = model([data[0][0]])
        (after,) = example.use_libra(model)([data[0][0]])
    assert list(model.state_dict()) == names and len(before["scores"]) > 0
    for name in before:
        assert torch.equal(before[name], after[name])


def test_samples_are_balanced_and_padding_is_none(example, model):
    """Two images with another number of proposals; the second has no target at all."""
    torch.manual_seed(1)
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 60, 60], [80, 80, 120, 120]]), "labels": torch.tensor([3, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    moved = targets[0]["boxes"].repeat(150, 1) + torch.rand(300, 1) * 30
    proposals = [torch.cat((moved, torch.rand(100, 4).cumsum(-1) * 40)), torch.rand(20, 4).cumsum(-1) * 40]
    heads = example.use_libra(model).roi_heads
    boxes, labels, valid, wanted = heads.select_training_samples(proposals, targets)
    assert boxes.shape == (2, 64, 4) and wanted.shape == (2, 64, 4) and wanted[0].isfinite().all()
    assert valid.sum(1).tolist() == [64, 20]  # all that the second has, and no padding
    assert (labels[1] == 0).all()
    positive = labels[0] > 0
    assert positive.sum() == 16 and (labels[0] == 3).sum() == (labels[0] == 1).sum() == 8
    iou = example.match_boxes(
        boxes[:1], targets[0]["boxes"][None], torch.ones(1, 2, dtype=torch.bool), positive_iou=0.5, negative_iou=0.5
    ).iou[0]
    assert (iou[positive] >= 0.5).all() and (iou[~positive] < 0.5).all()
    per_bin = torch.histc(iou[~positive], 3, 0.0, 0.5)
    assert (per_bin >= 16).all()  # 48 negatives over three bins
    known = heads.box_coder.decode(wanted[0], [boxes[0]])[:, 0]  # the deltas lead to the targets
    assert torch.allclose(known[labels[0] == 3], targets[0]["boxes"][:1].expand(8, 4), atol=1e-3)
