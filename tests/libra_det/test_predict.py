"""Predicting: boxes in pixels of the original image, whatever its shape, rotation and form."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import libra_det
from libra_det.config import Config, DataConfig
from libra_det.data import load_image
from libra_det.data.images import pil_to_tensor
from libra_det.predict import Detector, find_images, predict_files
from libra_det.structures import Batch, Detections
from libra_det.train import Trainer

CPU = torch.device("cpu")
RED = (230, 20, 20)


class FindsRed(torch.nn.Module):
    """Finds what is red: its box in the resized image, scaled to the original size; a second, weaker one; padding."""

    def detect(self, batch: Batch) -> Detections:
        assert len(batch.images) == 1 and not torch.is_grad_enabled()
        image = batch.images[0].int()
        rows, columns = torch.nonzero((image[0] > 150) & (image[1] < 90), as_tuple=True)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        scale = (batch.original_sizes[0] / batch.sizes[0]).flip(0).repeat(2)  # x, y, x, y
        boxes = torch.stack([box * scale, box * scale / 2, torch.zeros(4)])[None]
        scores, labels = torch.tensor([[0.9, 0.2, 0.0]]), torch.tensor([[1, 0, 0]])
        return Detections(boxes, scores, labels, torch.tensor([[True, True, False]]))


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
    images, failures = predict_files(detector, [folder, tmp_path / "wide.png"], output, score_threshold=0.5)
    assert images == 3 and len(failures) == 1 and "broken.jpg" in failures[0]
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
        assert predict_files(detector, [tmp_path], output, score_threshold=0.5) == (1, [])
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
    answers = iter([detector.predict(tmp_path / "a.png")])

    def predict(image, score_threshold):
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(detector, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        predict_files(detector, [tmp_path], tmp_path / "out", score_threshold=0.5)
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} == {"a.png"}


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
    assert libra_det.load(run, device="cpu").config.model.backbone_weights == "/gone/weights.pth"
