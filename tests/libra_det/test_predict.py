"""Predicting: boxes in pixels of the original image, whatever its shape, rotation and form."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import libra_det
from libra_det import cli
from libra_det.config import Config, DataConfig, ModelConfig
from libra_det.data import load_image
from libra_det.data.images import pil_to_tensor
from libra_det.inference import Inference, flipped
from libra_det.models import build_model
from libra_det.photos import by_padded_size, find_images
from libra_det.predict import Detector, predict_files
from libra_det.structures import Batch, Detections, Proposals
from libra_det.train import Trainer
from libra_det.weights.classes import coco_categories

CPU = torch.device("cpu")
RED = (230, 20, 20)


class FindsRed(torch.nn.Module):
    """Finds what is red: its box in the resized image, scaled to the original size; a second, weaker one; padding."""

    config = ModelConfig()

    def detect(self, batch: Batch) -> Detections:
        assert not torch.is_grad_enabled()
        found = [self._detect(*one) for one in zip(batch.images, batch.sizes, batch.original_sizes, strict=True)]
        return Detections(*map(torch.stack, zip(*found, strict=True)))

    def _detect(self, image, size, original_size):
        rows, columns = torch.nonzero((image[0] > 150) & (image[1] < 90), as_tuple=True)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        scale = (original_size / size).flip(0).repeat(2)  # x, y, x, y
        boxes = torch.stack([box * scale, box * scale / 2, torch.zeros(4)])
        scores, labels = torch.tensor([0.9, 0.2, 0.0]), torch.tensor([1, 0, 0])
        return boxes, scores, labels, torch.tensor([True, True, False])


@pytest.fixture
def detector() -> Detector:
    config = Config("test", data=DataConfig(short_side=100, long_side=140))
    return Detector(FindsRed(), config, [(4, "blue thing"), (9, "red thing")], CPU)


def picture(size, box) -> Image.Image:
    image = Image.new("RGB", size, (128, 128, 128))
    ImageDraw.Draw(image).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], fill=RED)
    return image


@pytest.mark.parametrize("size", [(400, 100), (90, 300), (33, 47)])
def test_boxes_are_in_pixels_of_images_of_any_shape(detector, tmp_path, size):
    box = [size[0] // 4, size[1] // 3, size[0] // 2, size[1] * 2 // 3]
    image = picture(size, box)
    image.save(tmp_path / "red.png")
    pixel = max(size) / 140 + min(size) / 100 + 1  # of the resized image, and one
    for form in (tmp_path / "red.png", str(tmp_path / "red.png"), image, load_image(tmp_path / "red.png")):
        found = detector.predict(form)
        assert found.boxes.dtype == torch.float32 and found.boxes.shape == (2, 4)
        torch.testing.assert_close(found.boxes[0], torch.tensor(box).float(), atol=pixel, rtol=0)
        assert found.names == ["red thing", "blue thing"] and found.labels.tolist() == [1, 0]
        assert len(found) == 2


def test_exif_rotation_is_applied_to_files_and_pil_images(detector, tmp_path):
    upright = picture((200, 100), [120, 20, 180, 60])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    for form in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        found = detector.predict(form)
        torch.testing.assert_close(found.boxes[0], torch.tensor([120.0, 20, 180, 60]), atol=3, rtol=0)


def test_a_list_gives_a_list_and_weak_detections_can_be_left_out(detector):
    images = [picture((60, 40), [10, 10, 30, 30]), picture((40, 60), [10, 10, 30, 30])]
    found = detector.predict(images, score_threshold=0.5)
    assert [entry.names for entry in found] == [["red thing"], ["red thing"]]
    assert detector.predict([]) == []


def test_other_types_are_explained(detector):
    with pytest.raises(TypeError, match=r"expected a path, a PIL image.*got ndarray.*fromarray"):
        detector.predict(load_image_as_numpy())
    with pytest.raises(ValueError, match=r"expected uint8 RGB \[3, H, W\], got torch.float32 \[3, 4, 4\]"):
        detector.predict(torch.zeros(3, 4, 4))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        detector.predict("nowhere.jpg")


def load_image_as_numpy():
    return torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()


def test_files_are_drawn_and_written_and_damaged_ones_reported(detector, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture((300, 120), [30, 30, 90, 100]).save(folder / "wide.png")
    picture((120, 300), [30, 30, 90, 100]).save(folder / "more" / "wide.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no image")
    picture((300, 120), [60, 30, 90, 100]).save(tmp_path / "wide.png")
    output = tmp_path / "out"
    found = predict_files(detector, [folder, tmp_path / "wide.png"], output, score_threshold=0.5)
    assert found.images == 3 and len(found.failures) == 1 and "broken.jpg" in found.failures[0]
    entries = json.loads((output / "predictions.json").read_text())
    assert [(entry["image_id"], entry["file_name"]) for entry in entries] == [
        (2, "more/wide.png"),  # 1 is broken.jpg
        (3, "wide.png"),
        (4, str(tmp_path / "wide.png")),
    ]
    for entry, box in zip(entries, ([30, 30, 60, 70], [30, 30, 60, 70], [60, 30, 30, 70]), strict=True):
        assert entry["bbox"] == pytest.approx(box, abs=4)
        assert (entry["category_id"], entry["category"], entry["score"]) == (9, "red thing", pytest.approx(0.9))
    pictures = sorted(str(file.relative_to(output)) for file in output.rglob("*.jpg"))
    assert pictures == ["more/wide.jpg", "wide-2.jpg", "wide.jpg"]


@pytest.mark.parametrize("output", [".", "below"])
def test_photos_are_never_written_over_and_drawings_never_predicted(detector, tmp_path, output):
    output = tmp_path / output
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "a.jpg")
    photo = (tmp_path / "a.jpg").read_bytes()
    for _ in range(2):
        found = predict_files(detector, [tmp_path], output, score_threshold=0.5)
        assert (found.images, found.failures) == (1, [])
    name = "a-2.jpg" if output == tmp_path else "a.jpg"
    assert {file for file in tmp_path.rglob("*.jpg")} == {tmp_path / "a.jpg", output / name}
    assert (tmp_path / "a.jpg").read_bytes() == photo
    with pytest.raises(FileNotFoundError, match="no images in this folder but pictures that libra predict has drawn"):
        (tmp_path / "a.jpg").unlink()
        find_images([tmp_path])


def test_files_that_are_neither_inputs_nor_drawings_are_kept(detector, tmp_path):
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_bytes(b"something else")
    predict_files(detector, [tmp_path / "a.png"], tmp_path, score_threshold=0.5)
    assert (tmp_path / "a.jpg").read_bytes() == b"something else"
    assert (tmp_path / "a-2.jpg").exists()


def test_an_interrupt_keeps_what_was_found(detector, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        picture((300, 120), [30, 30, 90, 100]).save(tmp_path / name)
    answers = iter([[detector.predict(tmp_path / "a.png")]])

    def predict_batch(batch, score_threshold):
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(detector, "predict_batch", predict_batch)
    with pytest.raises(KeyboardInterrupt):
        predict_files(detector, [tmp_path], tmp_path / "out", score_threshold=0.5, json_file=tmp_path / "found.json")
    for file in (tmp_path / "out" / "predictions.json", tmp_path / "found.json"):
        assert {entry["file_name"] for entry in json.loads(file.read_text())} == {"a.png"}


def test_pil_images_are_read_as_files_are(detector, tmp_path):
    levels = np.full((60, 90), 0x4000, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert pil_to_tensor(Image.open(tmp_path / "deep.png")).unique().tolist() == [0x40]
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "cut.png")
    file = tmp_path / "cut.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut\.png: cannot be decoded"):
        detector.predict(Image.open(file))


def test_missing_inputs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such image file or folder"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="no images in this folder"):
        find_images([tmp_path])


def test_the_three_lines_of_the_readme(tiny_config, tiny_data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_config(epochs=1, ema_decay=0.5)
    trainer = Trainer(config, run, CPU)
    trainer.train()

    detector = libra_det.load(run, device="cpu")
    found = detector.predict(tiny_data / "val_1.png")
    assert len(found) > 0 and set(found.names) <= {"red box", "green box"}
    assert ((found.boxes >= 0) & (found.boxes <= torch.tensor([64.0, 48, 64, 48]))).all()
    assert (found.scores[:-1] >= found.scores[1:]).all()

    # The averaged weights are used, and a checkpoint file is as good as the folder.
    averaged = Detector(trainer.average.module, config, detector.categories, CPU).predict(tiny_data / "val_1.png")
    torch.testing.assert_close(found.scores, averaged.scores)
    again = libra_det.load(run / "checkpoints" / "epoch_0001.pt", device="cpu").predict(tiny_data / "val_1.png")
    torch.testing.assert_close(found.boxes, again.boxes)


def test_loading_needs_no_backbone_weights(tiny_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(tiny_config(epochs=1), run, CPU)
    trainer.config = replace(trainer.config, model=replace(trainer.config.model, backbone_weights="/gone/weights.pth"))
    trainer._save()
    assert libra_det.load(run, device="cpu").config.model.backbone_weights is None


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_batches_and_workers_change_nothing(detector, tmp_path, batch_size, workers):
    sizes = [(300, 120), (120, 300), (300, 121), (80, 80), (300, 120)]
    boxes = [[30, 30, 90, 100], [20, 60, 100, 200], [60, 30, 90, 100], [10, 20, 50, 60], [0, 0, 150, 60]]
    for number, (size, box) in enumerate(zip(sizes, boxes, strict=True)):
        picture(size, box).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_bytes(b"broken")
    found = predict_files(detector, [tmp_path], None, 0.5, batch_size=batch_size, workers=workers)
    assert [entry["file_name"] for entry in found.entries] == [f"{number}.png" for number in range(5)]
    assert found.images == 5 and len(found.failures) == 1 and "2b.png" in found.failures[0]
    for number, entry in enumerate(found.entries):
        x, y, width, height = entry["bbox"]
        alone = detector.predict(tmp_path / f"{number}.png").boxes[0]
        assert [x, y, x + width, y + height] == pytest.approx(alone.tolist(), abs=1e-4)
    assert list(tmp_path.iterdir()) == list(tmp_path.glob("*.png"))  # nothing was drawn


def test_a_batch_holds_images_of_one_padded_size():
    config = DataConfig(short_side=100, long_side=140, size_divisor=32)
    sizes = [(400, 300), (300, 400), None, (401, 300), (100, 100), (200, 150)]
    assert by_padded_size(sizes, config, 2) == [[2], [4], [0, 3], [5], [1]]


def test_the_json_file_holds_all_detections_and_nothing_else(detector, tmp_path):
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "a.png")
    predict_files(detector, [tmp_path / "a.png"], None, json_file=tmp_path / "new" / "found.json")
    entries = json.loads((tmp_path / "new" / "found.json").read_text())
    assert [entry["score"] for entry in entries] == pytest.approx([0.9, 0.2])
    assert set(entries[0]) == {"bbox", "category_id", "score", "file_name"}
    assert entries[0]["bbox"] == pytest.approx([30, 30, 60, 70], abs=4)
    assert (entries[0]["category_id"], entries[0]["file_name"]) == (9, str(tmp_path / "a.png"))
    predict_files(detector, [tmp_path / "a.png"], None, 0.5, json_file=tmp_path / "found.json")
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1
    predict_files(detector, [tmp_path / "a.png"], tmp_path / "out", json_file=tmp_path / "found.json")
    assert len(json.loads((tmp_path / "found.json").read_text())) == 2
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1


def test_images_of_one_name_in_two_folders_are_told_apart(detector, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        picture((300, 120), [30, 30, 90, 100]).save(tmp_path / folder / "a.png")
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "two" / "b.png")
    found = predict_files(detector, [tmp_path / "one", tmp_path / "two"], None, 0.5)
    names = [str(tmp_path / "one" / "a.png"), str(tmp_path / "two" / "a.png"), "b.png"]
    assert [entry["file_name"] for entry in found.entries] == names


def test_an_image_without_detections_is_drawn_and_has_no_entries(detector, tmp_path):
    picture((300, 120), [30, 30, 90, 100]).save(tmp_path / "a.png")
    found = predict_files(detector, [tmp_path / "a.png"], tmp_path / "out", 0.95, json_file=tmp_path / "found.json")
    assert (found.images, found.entries) == (1, [])
    assert json.loads((tmp_path / "found.json").read_text()) == []
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert (tmp_path / "out" / "a.jpg").exists()


class FindsRedOnTheLeft(FindsRed):
    """Sees only what lies in the left half of an image, and is less sure of what is further right."""

    def _detect(self, image, size, original_size):
        boxes, _, labels, valid = super()._detect(image, size, original_size)
        score = 1 - boxes[0, 0] / original_size[1]
        valid = torch.stack([score > 0.5, torch.tensor(False), torch.tensor(False)])
        return boxes, torch.stack([score, score * 0, score * 0]), labels, valid


def test_mirrored_images_find_more_and_double_finds_are_merged(detector):
    seeing_left = Detector(FindsRedOnTheLeft(), detector.config, detector.categories, CPU, Inference(flip=True))
    box = [200, 30, 280, 100]
    found = seeing_left.predict(picture((300, 120), box))
    torch.testing.assert_close(found.boxes, torch.tensor([box]).float(), atol=4, rtol=0)
    assert found.scores.tolist() == pytest.approx([1 - 20 / 300], abs=0.02)  # its distance from the right edge
    for box in ([30, 30, 90, 100], [100, 30, 200, 100]):  # found as it is, and both ways
        found = seeing_left.predict(picture((300, 120), box))
        torch.testing.assert_close(found.boxes, torch.tensor([box]).float(), atol=4, rtol=0)


def test_mirroring_keeps_the_padding_and_moves_proposals():
    images = torch.arange(2 * 3 * 2 * 8, dtype=torch.uint8).view(2, 3, 2, 8)
    images[1, :, :, 5:] = 0  # padding
    sizes = torch.tensor([[2.0, 8], [2, 5]])
    proposals = Proposals(
        torch.tensor([[[1.0, 0, 4, 2]], [[1.0, 0, 4, 2]]]), torch.ones(2, 1), torch.tensor([[True], [False]])
    )
    mirrored = flipped(Batch(images, sizes, sizes, None, [0, 1], ["", ""], proposals))
    assert torch.equal(mirrored.images[0], images[0].flip(2))
    assert torch.equal(mirrored.images[1, :, :, :5], images[1, :, :, :5].flip(2))
    assert mirrored.images[1, :, :, 5:].sum() == 0
    assert mirrored.proposals.boxes[:, 0].tolist() == [[4.0, 0, 7, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["tiny_faster", "tiny_retina"])
def test_half_precision_finds_the_same(tiny_recipes, tiny_data, name):
    config = tiny_recipes[name]
    torch.manual_seed(3)
    model = build_model(config.model, 2)
    categories = [(3, "red box"), (7, "green box")]
    full, half = (
        Detector(model, config, categories, CPU, Inference(half=half)).predict(tiny_data / "val_1.png")
        for half in (False, True)
    )
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    assert 0 < (half.scores[0] - full.scores[0]).abs() < 0.02


def test_the_published_detector_gives_the_same_detections(libra_goldens, tmp_path):
    """From a published file and a photo to the reference implementation's detections, through the command."""
    spec = importlib.util.spec_from_file_location("detdata", libra_goldens / "detdata.py")
    detdata = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(detdata)
    weights, out = tmp_path / "W.pth", tmp_path / "OUT.json"
    state = detdata.build_state_dict(torch.load(libra_goldens / "g_weights_faster_r50.pt", weights_only=True))
    torch.save({"meta": {}, "state_dict": state}, weights)
    photo = libra_goldens / "raw480x640_bgr.png"
    assert cli.main(["predict", "--weights", str(weights), "--json", str(out), "--device", "cpu", str(photo)]) == 0
    entries = json.loads(out.read_text())
    label = {id: position for position, (id, _) in enumerate(coco_categories())}
    boxes = torch.tensor([entry["bbox"] for entry in entries])
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([label[entry["category_id"]] for entry in entries])
    scores = torch.tensor([entry["score"] for entry in entries])
    wanted = torch.load(libra_goldens / "g_raw_faster_r50.pt", weights_only=True)["dets"][0]
    distance = torch.cdist(wanted["bboxes"], boxes, p=torch.inf)
    nearest, index = distance.masked_fill(wanted["labels"][:, None] != labels, torch.inf).min(1)
    assert len(entries) == 100 and {entry["file_name"] for entry in entries} == {str(photo)}
    assert nearest.max() < 5e-3  # px; 98% within 0.5 px were asked for
    torch.testing.assert_close(scores[index], wanted["scores"], rtol=0, atol=1e-4)
