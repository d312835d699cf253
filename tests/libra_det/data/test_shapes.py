"""The embedded data set: the same everywhere, learnable and long-tailed."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from libra_det.config import DataConfig
from libra_det.data import find_splits, load_annotations, load_image, shapes

LABELS_SHA256 = "f2b480ef8fde877ca3ec1bab29be12efc78062b426e7bc1993df7f410b64cd43"
"""Of the annotations of ten training and four validation images."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    shapes.draw_data_set(folder, {"train": 10, "val": 4})
    return folder


def test_labels_are_the_same_on_every_machine(small):
    text = (small / "train.json").read_text() + (small / "val.json").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() == LABELS_SHA256, "a changed drawing needs another VERSION"


def test_images_are_the_same_on_every_call(small, tmp_path):
    shapes.draw_data_set(tmp_path, {"train": 3})
    for i in range(1, 4):
        name = f"train/{i:05d}.jpg"
        assert (small / name).read_bytes() == (tmp_path / name).read_bytes()


def test_boxes_enclose_their_objects(small):
    """What is inside differs from the rim of the box's surroundings, and boxes keep to the image."""
    annotations = load_annotations(DataConfig(data=str(small)), "train")
    assert not set(annotations.problems.counts) - {"no_objects"}
    differences = []
    for image in annotations.images:
        pixels = load_image(image.file).numpy().astype(float)
        for x1, y1, x2, y2 in image.boxes.round().int().tolist():
            middle = pixels[:, (y1 + y2) // 2 - 1 : (y1 + y2) // 2 + 2, x1 + 1 : x2 - 1].mean((1, 2))
            corner = pixels[:, y1 : y1 + 1, x1 : x1 + 1].mean((1, 2))
            differences.append(np.abs(middle - corner).sum())
    assert np.median(differences) > 60


def test_classes_have_a_long_tail_and_sizes_a_wide_range():
    objects = [item for index in range(150) for item in shapes.draw_image("train", index)[1]]
    counts = Counter(label for label, _ in objects)
    total = sum(counts.values())
    for label, share in enumerate(shapes.CLASSES.values()):
        assert counts[label] / total == pytest.approx(share, abs=0.06)
    sides = [max(x2 - x1, y2 - y1) for _, (x1, y1, x2, y2) in objects]
    assert min(sides) < 12 and max(sides) > 96
    assert all(0 <= value <= shapes.IMAGE_SIZE for _, box in objects for value in box)


def test_the_folder_is_drawn_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shapes, "SPLITS", {"train": 2, "val": 1})
    config = DataConfig(data="shapes")
    assert find_splits(config) == ["train", "val"]
    annotations = load_annotations(config, "val")
    assert annotations.images[0].file.is_file() and [c.name for c in annotations.categories] == list(shapes.CLASSES)
    written = (tmp_path / "cache" / f"shapes-v{shapes.VERSION}" / "train.json").stat().st_mtime_ns
    assert (shapes.shapes_folder() / "train.json").stat().st_mtime_ns == written
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [f"shapes-v{shapes.VERSION}"]
    assert len(json.loads((shapes.shapes_folder() / "train.json").read_text())["images"]) == 2


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBRA_CACHE", str(tmp_path / "cache"))

    def interrupt(split, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.shapes_folder()
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIBRA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set LIBRA_CACHE to a folder that can"):
        shapes.shapes_folder()
