"""Proposals computed before: their file, how a data set reads them, and Fast R-CNN trained on them."""

import dataclasses
import json
import pickle

import pytest
import torch

from libra_det.commands.proposals import WriteProposals
from libra_det.data import DetectionDataset, load_annotations, make_loader
from libra_det.data.proposal_file import ProposalFile, ProposalWriter
from libra_det.models import build_model
from libra_det.predict import Detector
from libra_det.proposals import check_proposals_are_named, write_proposals
from libra_det.recipes import recipe
from libra_det.train import Trainer

CPU = torch.device("cpu")


def new_detector(config, **changes) -> Detector:
    torch.manual_seed(0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm="group_norm", **changes))
    return Detector(build_model(config.model, 2), config, [(3, "red box"), (7, "green box")], CPU)


def read(config, split, training=False, **changes) -> DetectionDataset:
    data = dataclasses.replace(config.data, **changes)
    return DetectionDataset(load_annotations(data, split), data, training, seed=0)


@pytest.fixture
def ground_truth_as_proposals(tiny_config, tmp_path):
    """The configuration of the tiny data set with a file whose proposals are its objects, for both splits."""
    config = tiny_config()
    for split, field in (("train", "proposals"), ("val", "eval_proposals")):
        images = load_annotations(config.data, split).images
        writer = ProposalWriter(tmp_path / f"{split}.safetensors", len(images), limit=2)
        for image in images:
            writer.add(image.id, image.file_name, image.boxes, torch.linspace(1, 0.5, len(image.boxes)))
        writer.write(model="truth", data="tiny", split=split)
        data = dataclasses.replace(config.data, **{field: str(tmp_path / f"{split}.safetensors")})
        config = dataclasses.replace(config, data=data)
    return config


def test_a_file_gives_back_what_was_written(tmp_path):
    file = tmp_path / "new" / "folder" / "proposals.safetensors"
    writer = ProposalWriter(file, images=4, limit=10)
    torch.manual_seed(0)
    corners = torch.rand(13, 2, 2).sort(dim=1).values.flatten(1) * 640  # [13, 4] xyxy
    written = {9: corners[:10], 2: torch.zeros(0, 4), 5: corners[10:], 7: torch.zeros(0, 4)}
    for image_id, boxes in written.items():
        writer.add(image_id, f"{image_id} ü.jpg", boxes, torch.linspace(1, 0, len(boxes)))
    assert writer.write(model="runs/x") == 13
    for proposals in (ProposalFile(file), pickle.loads(pickle.dumps(ProposalFile(str(file))))):
        assert proposals.facts["model"] == "runs/x"
        for image_id, boxes in written.items():
            found, scores = proposals.read(image_id, limit=100)
            assert torch.equal(found, boxes)
            torch.testing.assert_close(scores, torch.linspace(1, 0, len(boxes)), rtol=1e-3, atol=0)
        assert torch.equal(proposals.read(9, limit=4)[0], written[9][:4])
    assert not list(file.parent.glob("*.unfinished"))


def test_reading_does_not_change_the_file(tmp_path):
    writer = ProposalWriter(tmp_path / "p", images=1, limit=1)
    writer.add(1, "a", torch.ones(1, 4), torch.ones(1))
    writer.write()
    proposals = ProposalFile(tmp_path / "p")
    proposals.read(1, 1)[0].zero_()
    assert proposals.read(1, 1)[0].tolist() == [[1, 1, 1, 1]]


def test_a_file_with_nothing_in_it(tmp_path):
    writer = ProposalWriter(tmp_path / "p", images=1, limit=1)
    writer.add(1, "a", torch.zeros(0, 4), torch.zeros(0))
    writer.write()
    assert ProposalFile(tmp_path / "p").read(1, 5)[0].shape == (0, 4)


def test_files_that_are_missing_damaged_or_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"proposals: there is no file .*none; `libra proposals RUN"):
        ProposalFile(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"\x10\0\0\0\0\0\0\0 not a header")
    with pytest.raises(ValueError, match=r"proposals: .*damaged is not what `libra proposals` writes"):
        ProposalFile(tmp_path / "damaged")
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"weights is not what .* format is None"):
        ProposalFile(tmp_path / "weights")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"horizontal_flip": 1.0, "vertical_flip": 1.0},
        {"scale_jitter": (0.5, 2.0), "vertical_flip": 0.5, "color_jitter": 0.3},
        {"short_side": 96, "long_side": 256, "cache_mb": 1},
    ],
)
def test_proposals_are_changed_exactly_as_the_objects_are(ground_truth_as_proposals, changes):
    dataset = read(ground_truth_as_proposals, "train", training=True, **changes)
    for epoch in range(3):
        for batch in make_loader(dataset, epoch=epoch):
            boxes, scores, valid = batch.proposals
            assert boxes.shape == (2, 8, 4) and boxes.dtype == scores.dtype == torch.float32
            assert torch.equal(boxes[:, :2], batch.targets.boxes[:, :2])
            assert torch.equal(valid, batch.targets.valid)
            assert not boxes[~valid].any() and (scores[valid] >= 0.5).all() and not scores[~valid].any()


def test_workers_read_the_same(ground_truth_as_proposals):
    alone = list(make_loader(read(ground_truth_as_proposals, "train", training=True)))
    helped = list(make_loader(read(ground_truth_as_proposals, "train", training=True, workers=2)))
    for one, other in zip(alone, helped, strict=True):
        assert all(map(torch.equal, one.proposals, other.proposals))


def test_the_best_are_taken_where_fewer_are_asked_for(ground_truth_as_proposals):
    dataset = read(ground_truth_as_proposals, "val", max_proposals=1)
    batch = next(iter(make_loader(dataset)))
    assert batch.proposals.valid.sum(1).tolist() == [1, 1]
    assert torch.equal(batch.proposals.boxes[:, 0], batch.targets.boxes[:, 0])


def test_without_a_file_there_are_no_proposals(tiny_config):
    assert next(iter(make_loader(read(tiny_config(), "val")))).proposals is None


def test_missing_images_are_counted_and_named(ground_truth_as_proposals):
    """The file of the evaluated split knows three of the eight training images by their id."""
    config = ground_truth_as_proposals
    with pytest.raises(ValueError) as error:
        read(config, "train", training=True, proposals=config.data.eval_proposals)
    message = str(error.value)
    assert "val.safetensors has none for 5 of the 8 images of train" in message
    assert "train_3.png (id 4), train_4.png (id 5)" in message
    assert "it holds 3 images (model truth, data tiny, split val)" in message


def test_equal_ids_of_other_images_are_noticed(ground_truth_as_proposals):
    config = ground_truth_as_proposals
    with pytest.raises(
        ValueError, match=r"3 of the 3 ids of val belong to other files .*1 is val_0.png, there train_0"
    ):
        read(config, "val", eval_proposals=config.data.proposals)


def test_they_are_those_that_the_detector_would_judge(tiny_config, tmp_path):
    """In original pixels, of all images; Fast R-CNN with the same weights then detects the same."""
    config = tiny_config()
    detector = new_detector(config)
    images, total = write_proposals(detector, config.data, "val", tmp_path / "p", source="x")
    assert images == 3 and 0 < total <= 60
    fast = new_detector(config, detector="fast_rcnn")
    state = detector.model.state_dict()
    fast.model.load_state_dict({key: value for key, value in state.items() if not key.startswith("rpn_head")})
    for batch in make_loader(read(config, "val", eval_proposals=str(tmp_path / "p"))):
        wanted = detector.model.propose(batch, limit=20)
        count = wanted.boxes.shape[1]
        torch.testing.assert_close(batch.proposals.boxes[:, :count], wanted.boxes, rtol=0, atol=1e-3)
        assert torch.equal(batch.proposals.valid[:, :count], wanted.valid)
        for found, own in zip(fast.model.detect(batch), detector.model.detect(batch), strict=True):
            torch.testing.assert_close(found, own, rtol=0, atol=1e-3)


def test_their_number_can_be_limited(tiny_config, tmp_path):
    config = tiny_config()
    images, total = write_proposals(new_detector(config), config.data, "train", tmp_path / "p", source="x", limit=3)
    assert (images, total) == (8, 24)


def test_a_detector_without_regions_cannot_propose(tiny_config, tmp_path):
    config = tiny_config()
    detector = new_detector(config, detector="retinanet")
    with pytest.raises(ValueError, match=r"expected a Faster R-CNN.* got retinanet \(runs/x\)"):
        write_proposals(detector, config.data, "val", tmp_path / "p", source="runs/x")


def test_fast_rcnn_without_files_is_an_error_before_training(ground_truth_as_proposals):
    check_proposals_are_named(recipe("libra_faster_rcnn_r50"))
    config = recipe("libra_fast_rcnn_r50")
    with pytest.raises(ValueError, match=r"^proposals: expected a file of `libra proposals`, got none"):
        check_proposals_are_named(config)
    named = ground_truth_as_proposals.data
    check_proposals_are_named(dataclasses.replace(config, data=named))
    with pytest.raises(ValueError, match=r"^eval_proposals: "):
        check_proposals_are_named(dataclasses.replace(config, data=dataclasses.replace(named, eval_proposals=None)))


def test_from_a_run_through_the_command_to_fast_rcnn(tiny_config, tmp_path, capsys):
    """Faster R-CNN is trained and writes its proposals of both splits; Fast R-CNN is trained on them and evaluated."""
    config = tiny_config(epochs=1)
    (tmp_path / "faster").mkdir()
    Trainer(config, tmp_path / "faster", CPU).train()
    for split in ("train", "val"):
        assert WriteProposals(run=tmp_path / "faster", output=tmp_path / split, split=split, device="cpu")() == 0
    printed = capsys.readouterr().out
    assert "regions of 8 images" in printed and "regions of 3 images" in printed
    data = dataclasses.replace(config.data, proposals=str(tmp_path / "train"), eval_proposals=str(tmp_path / "val"))
    model = dataclasses.replace(config.model, detector="fast_rcnn")
    fast = tmp_path / "fast"
    fast.mkdir()
    evaluation = Trainer(dataclasses.replace(config, model=model, data=data), fast, CPU).train()
    assert evaluation.results
    losses = json.loads((fast / "log.jsonl").read_text().splitlines()[0])
    assert {name for name in losses if name.startswith("loss/")} == {"loss/roi_class", "loss/roi_box", "loss/total"}
