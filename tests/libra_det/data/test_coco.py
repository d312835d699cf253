"""COCO JSON: what is wrong in a file is handled and counted, or named in an error."""

import dataclasses
import math

import numpy as np
import pytest

from libra_det.data import find_splits, load_annotations


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ([30, 20, 100, 100], "partly_outside", [30, 20, 40, 30]),
        ([-5, 2, 10, 10], "partly_outside", [0, 2, 5, 12]),
        ([-0.4, 0, 10.4, 30.3], None, [0, 0, 10, 30]),
        ([41, 2, 10, 10], "outside", None),
        ([-20, 2, 20, 10], "outside", None),
        ([5, 5, 0, 10], "no_area", None),
        ([5, 5, -3, 10], "inverted", None),
        ([math.nan, 5, 3, 10], "not_finite", None),
        ([5, 5, math.inf, 10], "not_finite", None),
        ([1e308, 5, 1e308, 10], "not_finite", None),
        ([5, 6, 1e308, 1e308], "partly_outside", [5, 6, 40, 30]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_unusual_boxes_are_handled_and_counted(coco_folder, bbox, kind, kept):
    coco_folder.content["annotations"][1]["bbox"] = bbox
    annotations = load_annotations(coco_folder.write(), "train")
    assert annotations.images[1].boxes.tolist() == ([kept] if kept else [])
    assert annotations.images[0].boxes.tolist() == [[5, 6, 15, 14]]
    counts = dict(annotations.problems.counts)
    assert counts.pop("no_objects", 0) == (kept is None)
    assert counts == ({kind: 1} if kind else {})
    if kind:
        assert "train.json: annotation 101 in 1.png" in annotations.problems.summary()


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("annotations", {"bbox": [1, 2, 3]}, r"annotation 101: expected a bbox of 4 numbers .* got \[1, 2, 3\]"),
        ("annotations", {"bbox": "1,2,3,4"}, "annotation 101: expected a bbox of 4 numbers"),
        ("annotations", {"bbox": [1, 2, None, 4]}, "annotation 101: expected a bbox of 4 numbers"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "annotation 101: expected a bbox of 4 numbers"),
        ("annotations", {"bbox": None}, "annotation 101: expected a bbox of 4 numbers"),
        ("annotations", {"category_id": 5}, "annotation 101: category 5 is unknown; the file lists the ids 7, 90"),
        ("annotations", {"category_id": "cat"}, "annotation 101: expected a 64-bit integer category_id, got 'cat'"),
        ("annotations", {"id": 100}, "annotation 100: this id is used before"),
        ("annotations", {"id": None}, "annotation None: expected a 64-bit integer id"),
        ("annotations", {"id": 2**64}, "annotation 18446744073709551616: expected a 64-bit integer id"),
        ("annotations", {"iscrowd": [1]}, "annotation 101: expected iscrowd 0 or 1"),
        ("images", {"id": 10}, r"image 10 \(1.png\): this id is used before"),
        ("images", {"id": "11"}, r"image 11 \(1.png\): expected a 64-bit integer id, got '11'"),
        ("images", {"file_name": 3}, "image 11: expected a file_name, got 3"),
        ("images", {"width": 0}, r"image 11 \(1.png\): expected width and height in whole pixels, got 0 and 30"),
        (
            "images",
            {"width": None, "height": None, "file_name": "x.png"},
            r"image 11 \(x.png\): has no width .*x.png.* missing",
        ),
        ("categories", {"id": 7}, "category id 7 is used for both 'cat' and 'dog'"),
        ("categories", {"name": None}, r"categories\[1\]: expected a 64-bit integer id and a name"),
    ],
)
def test_mistakes_are_errors_that_name_file_and_entry(coco_folder, where, change, message):
    coco_folder.content[where][1].update(change)
    with pytest.raises(ValueError, match=rf"train\.json: {message}"):
        load_annotations(coco_folder.write(), "train")


def test_all_mistakes_are_listed_at_once(coco_folder):
    for annotation in coco_folder.content["annotations"]:
        annotation["bbox"] = [1, 2, 3]
    with pytest.raises(ValueError) as error:
        load_annotations(coco_folder.write(), "train")
    assert all(f"annotation {100 + i}:" in str(error.value) for i in range(4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected a JSON object .* got a list; a list is the form of results"),
        ('{"images": [], "categories": []}', "expected a list under 'annotations', got nothing"),
        ('{"images": {}, "annotations": [], "categories": []}', "expected a list under 'images', got an object"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\]: expected an object, got a number"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
    ],
)
def test_malformed_files_are_named(coco_folder, text, message):
    (coco_folder.folder / "train.json").write_text(text)
    with pytest.raises(ValueError, match=rf"train\.json: {message}"):
        load_annotations(coco_folder.config, "train")


def test_annotations_of_unlisted_images_are_left_out(coco_folder):
    coco_folder.content["annotations"][1]["image_id"] = 999
    annotations = load_annotations(coco_folder.write(), "train")
    assert annotations.problems.counts == {"unknown_image": 1, "no_objects": 1}
    assert len(annotations.coco()["annotations"]) == 3


def test_missing_sizes_and_optional_fields_are_filled_in(coco_folder):
    for entry in coco_folder.content["images"]:
        del entry["width"], entry["height"]
    del coco_folder.content["annotations"][0]["area"], coco_folder.content["annotations"][0]["iscrowd"]
    coco_folder.content["annotations"][1]["iscrowd"] = None
    annotations = load_annotations(coco_folder.write(), "train")
    assert not annotations.images[1].crowd.any()
    image = annotations.images[0]
    assert (image.width, image.height, image.areas.tolist(), image.crowd.tolist()) == (40, 30, [80.0], [False])


def test_labels_are_positions_among_sorted_ids(coco_folder):
    coco_folder.content["categories"].reverse()
    coco_folder.content["annotations"][2]["category_id"] = 90
    annotations = load_annotations(coco_folder.write(), "train")
    assert [category.name for category in annotations.categories] == ["cat", "dog"]
    assert [image.labels.item() for image in annotations.images] == [0, 0, 1, 0]


def test_evaluation_uses_the_classes_of_training(coco_folder):
    coco_folder.write("train")
    # Another tool has given the same classes other ids, and lists one that has no object.
    coco_folder.content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "cow"}]
    for annotation, category in zip(coco_folder.content["annotations"], (1, 2, 2, 2), strict=True):
        annotation["category_id"] = category
    annotations = load_annotations(coco_folder.write("val"), "val")
    assert [category.name for category in annotations.categories] == ["cat", "dog"]
    assert [image.labels.item() for image in annotations.images] == [1, 0, 0, 0]
    assert [entry["category_id"] for entry in annotations.coco()["annotations"]] == [90, 7, 7, 7]
    assert annotations.problems.counts == {"category_by_name": 2}

    coco_folder.content["annotations"][3]["category_id"] = 3
    with pytest.raises(
        ValueError, match=r"annotation 103: category 3 \('cow'\) is not among the classes trained on \(cat"
    ):
        load_annotations(coco_folder.write("val"), "val")


def test_ground_truth_is_the_file_itself(coco_folder):
    entries = coco_folder.content["annotations"]
    entries[0]["bbox"] = [30.25, 20.125, 100, 100]  # an evaluator sees it unclipped
    entries[1].update(bbox=[5, 5, 0, 10], area=0.5)
    entries[2]["bbox"] = [math.nan, 1, 2, 3]
    entries[3].update(iscrowd=1, area=12.5)
    truth = load_annotations(coco_folder.write(), "train").coco()
    assert truth["annotations"] == [entries[0], entries[1], entries[3]]
    assert truth["images"] == coco_folder.content["images"]
    assert truth["categories"] == coco_folder.content["categories"]


def test_annotation_id_0_is_shifted_for_pycocotools(coco_folder):
    for i, entry in enumerate(coco_folder.content["annotations"]):
        entry["id"] = i
    truth = load_annotations(coco_folder.write(), "train").coco()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("annotation_file", "images"),
    [
        ("train.json", "."),
        ("train.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_usual_layouts_are_found(coco_folder, annotation_file, images):
    folder = coco_folder.folder
    coco_folder.write()
    for part in (folder / annotation_file, folder / images / "x"):
        part.parent.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").rename(folder / annotation_file)
    for picture in folder.glob("*.png"):
        picture.rename(folder / images / picture.name)
    assert find_splits(coco_folder.config) == ["train"]
    annotations = load_annotations(coco_folder.config, "train")
    assert all(image.file.is_file() for image in annotations.images)


def test_one_missing_image_does_not_hide_the_others(coco_folder):
    (coco_folder.folder / "images").mkdir()
    for i in range(1, 4):
        (coco_folder.folder / f"{i}.png").rename(coco_folder.folder / "images" / f"{i}.png")
    (coco_folder.folder / "0.png").unlink()
    annotations = load_annotations(coco_folder.write(), "train")
    assert [image.file.is_file() for image in annotations.images] == [False, True, True, True]


def test_files_of_any_name_are_taken(coco_folder, tmp_path):
    coco_folder.write("mine")
    coco_folder.content["images"].pop()
    coco_folder.content["annotations"].pop()
    coco_folder.write("yours")
    for data in (str(tmp_path), "shapes", str(tmp_path / "nowhere")):
        config = dataclasses.replace(
            coco_folder.config,
            data=data,
            train_annotations=str(tmp_path / "mine.json"),
            eval_annotations=str(tmp_path / "yours.json"),
            image_folder=str(tmp_path),
        )
        assert find_splits(config) == ["train", "val"]
        assert [len(load_annotations(config, split).images) for split in ("train", "val")] == [4, 3]
        assert all(image.file.is_file() for image in load_annotations(config, "val").images)
    with pytest.raises(FileNotFoundError, match="train_annotations: expected a COCO JSON file"):
        load_annotations(dataclasses.replace(config, train_annotations="none.json"), "train")
    with pytest.raises(FileNotFoundError, match="eval_annotations: needed for split 'val'"):
        load_annotations(dataclasses.replace(config, eval_annotations=None), "val")


def test_an_unknown_layout_is_explained(coco_folder, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        find_splits(coco_folder.config)
    for part in ("train.json", "instances_train.json", "ImageSets/Main/train.txt", "image_folder", "Pascal VOC"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        find_splits(dataclasses.replace(coco_folder.config, data=str(tmp_path / "nowhere")))


def test_a_split_that_is_there_is_suggested(coco_folder):
    coco_folder.write("train")
    with pytest.raises(FileNotFoundError, match="no annotations of split 'val'; there is train: --eval-split train "):
        load_annotations(coco_folder.config, "val")
    (coco_folder.folder / "train.json").rename(coco_folder.folder / "test.json")
    with pytest.raises(FileNotFoundError, match="no annotations of split 'train'; there is test: --train-split test "):
        load_annotations(coco_folder.config, "train")


def test_large_files_are_read_without_waste(coco_folder):
    """Ten thousand annotations, some useless, keep their order and image."""
    random = np.random.default_rng(0)
    coco_folder.content["annotations"] = [
        {"id": i, "image_id": int(random.integers(10, 14)), "category_id": 7, "bbox": [i % 39, 0, i % 3, 5]}
        for i in range(1, 10001)
    ]
    annotations = load_annotations(coco_folder.write(), "train")
    for image in annotations.images:
        entries = [e for e in coco_folder.content["annotations"] if e["image_id"] == image.id and e["bbox"][2] > 0]
        assert image.boxes[:, 0].tolist() == [entry["bbox"][0] for entry in entries]
    assert annotations.problems.counts["no_area"] == 3333
