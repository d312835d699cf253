"""The loaders on real annotated photos: counts as published, VOC and COCO of the same photos alike, the official AP."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from libra_det.config import DataConfig
from libra_det.data import DetectionDataset, check_data, find_splits, load_annotations, make_loader

COUNTS = {  # folder: images of each split, objects and crowds in all, classes
    "bccd": ({"train": 205, "val": 87, "test": 72}, 4886, 0, 3),
    "bccd/BCCD": ({"train": 205, "val": 87, "test": 72}, 4886, 0, 3),
    "coco_free": ({"train": 21, "val": 16}, 225, 2, 80),
    "nuclei": ({"train": 72, "val": 24}, 2702, 0, 1),
    "deeppcb": ({"train": 80, "val": 20}, 676, 0, 6),
}
SMALL = DataConfig(short_side=120, long_side=160, batch_size=4, workers=0)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_as_published(libra_data, name):
    images, objects, crowds, classes = COUNTS[name]
    config = replace(SMALL, data=str(libra_data / name))
    assert find_splits(config) == list(images)
    splits = {split: load_annotations(config, split) for split in images}
    assert {split: len(annotations.images) for split, annotations in splits.items()} == images
    records = [image for annotations in splits.values() for image in annotations.images]
    crowd = torch.cat([image.crowd for image in records])
    assert (int((~crowd).sum()), int(crowd.sum())) == (objects, crowds)
    assert all(len(annotations.categories) == classes for annotations in splits.values())


@pytest.mark.parametrize("name", COUNTS)
def test_every_photo_goes_into_a_batch(libra_data, name):
    config = replace(SMALL, data=str(libra_data / name))
    data = DetectionDataset(load_annotations(config, "val"), config, training=False, seed=0)
    seen = 0
    for batch in make_loader(data):
        height, width = batch.images.shape[2:]
        assert height % 32 == width % 32 == 0
        limits = batch.sizes.flip(1).repeat(1, 2)[:, None]  # [B, 1, 4] width, height, width, height
        boxes, present = batch.targets.boxes, batch.targets.valid | batch.targets.crowd
        assert ((boxes >= 0) & (boxes <= limits + 1e-3))[present].all()
        assert (boxes[..., 2:] > boxes[..., :2])[present].all()
        seen += int(present.sum())
    assert seen == sum(len(image.boxes) for image in data.annotations.images)


def test_voc_and_coco_of_the_same_photos_agree(libra_data):
    useless = 0
    for split in ("train", "val", "test"):
        coco, voc = (
            load_annotations(replace(SMALL, data=str(libra_data / name)), split) for name in ("bccd", "bccd/BCCD")
        )
        useless += voc.problems.counts.get("no_area", 0)
        names = {label: category.name for label, category in enumerate(coco.categories)}
        by_file = {image.file: image for image in voc.images}
        for image in coco.images:
            other = by_file[image.file]
            assert (image.boxes - other.boxes).abs().max() <= 1.0
            assert [names[label] for label in image.labels.tolist()] == [
                voc.categories[label].name for label in other.labels.tolist()
            ]
    assert useless == 2


def test_the_two_useless_boxes_are_named(libra_data):
    config = replace(SMALL, data=str(libra_data / "bccd" / "BCCD"))
    examples = [load_annotations(config, split).problems.examples.get("no_area", "") for split in ("train", "val")]
    assert "BloodImage_00343.xml: object 4" in examples[0] and "BloodImage_00338.xml: object 13" in examples[1]


def test_conversions_are_reported(libra_data):
    assert "72 images have an alpha channel" in check_data(replace(SMALL, data=str(libra_data / "nuclei")))
    summary = check_data(replace(SMALL, data=str(libra_data / "deeppcb")))
    assert "77 images are grayscale" in summary and "20 images are grayscale" in summary
    assert "2 images are empty" in check_data(replace(SMALL, data=str(libra_data / "coco_free")))


def test_crowds_and_sparse_ids(libra_data):
    annotations = load_annotations(replace(SMALL, data=str(libra_data / "coco_free")), "val")
    assert [category.id for category in annotations.categories][-1] == 90
    content = json.loads((libra_data / "coco_free" / "val.json").read_text())
    for image in annotations.images:
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image.id]
        assert [annotations.categories[label].id for label in image.labels] == [e["category_id"] for e in entries]
        assert image.crowd.int().tolist() == [entry["iscrowd"] for entry in entries]
        np.testing.assert_allclose(image.areas, [entry["area"] for entry in entries], rtol=1e-6)


def test_ground_truth_gives_the_official_result(libra_data):
    """Every number of pycocotools' table is that of the file itself."""
    folder = libra_data / "coco_eval_fixture"
    config = replace(SMALL, data=str(folder), eval_annotations="gts.json")
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = load_annotations(config, "val").coco()
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    (expected,) = folder.glob("expected_*.json")
    np.testing.assert_allclose(evaluation.stats, list(json.loads(expected.read_text()).values()), atol=1e-12)
