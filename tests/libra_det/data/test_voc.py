"""Pascal VOC folders: coordinates, classes, difficult objects and mistakes."""

import dataclasses

import pytest

from libra_det.data import DetectionDataset, find_splits, load_annotations, make_loader
from libra_det.metrics import evaluate_results

CAT = ("cat", 6, 7, 15, 14, False)


def test_coordinates_count_from_one_and_include_the_last_pixel(voc_folder):
    config = voc_folder({"a": [CAT, ("ant", 1, 1, 40, 30, False)], "b": [("cat", 2.5, 3, 4, 9, True)]})
    annotations = load_annotations(config, "train")
    assert [tuple(category) for category in annotations.categories] == [(1, "ant"), (2, "cat")]
    first, second = annotations.images
    assert first.boxes.tolist() == [[5, 6, 15, 14], [0, 0, 40, 30]]
    assert first.labels.tolist() == [1, 0]
    assert (second.boxes.tolist(), second.difficult.tolist()) == ([[1.5, 2, 4, 9]], [True])
    assert not second.crowd.any() and not second.has_objects and not first.difficult.any()
    assert first.file.is_file()
    truth = annotations.coco()["annotations"]
    assert [entry["bbox"] for entry in truth] == [[5, 6, 10, 8], [0, 0, 40, 30], [1.5, 2, 2.5, 7]]
    assert [entry["iscrowd"] for entry in truth] == [0, 0, 1]
    assert [entry.get("difficult", 0) for entry in truth] == [0, 0, 1]
    assert truth[0]["area"] == 80
    assert "1 objects are marked difficult" in annotations.problems.summary()


def test_difficult_objects_are_neither_right_nor_wrong(voc_folder):
    """As in VOC's development kit; in COCO's numbers they are crowd regions."""
    config = voc_folder({"a": [("cat", 1, 1, 10, 10, False), ("cat", 21, 11, 40, 30, True)]})
    truth = load_annotations(config, "train").coco()

    def ap50(*bboxes):
        scores = (0.9, 0.8, 0.7)
        results = [
            {"image_id": 1, "category_id": 1, "bbox": bbox, "score": score}
            for bbox, score in zip(bboxes, scores, strict=False)
        ]
        metrics = evaluate_results(truth, results)
        return metrics.voc_ap50, metrics.coco["AP50"]

    easy = [0, 0, 10, 10]
    assert ap50(easy) == pytest.approx((1.0, 1.0))
    assert ap50([20, 10, 20, 20], [20, 10, 20, 11], easy) == pytest.approx((1.0, 1.0))
    assert ap50([20, 10, 20, 9], easy) == pytest.approx((0.5, 1.0))  # too little of it


def test_difficult_objects_are_left_out_of_training(voc_folder):
    config = voc_folder({"a": [("cat", 21, 11, 40, 30, True), CAT], "b": [("cat", 1, 1, 9, 9, True)]})
    data = DetectionDataset(load_annotations(config, "train"), config, training=True, seed=0)
    assert len(data) == 1
    (batch,) = make_loader(data)
    assert (batch.targets.valid.sum(), batch.targets.crowd.sum()) == (1, 0)
    assert batch.targets.boxes[0, 0, 2] - batch.targets.boxes[0, 0, 0] == 10  # the other cat, perhaps flipped
    assert not batch.targets.boxes[0, 1:].any()


def test_useless_boxes_are_counted(voc_folder):
    config = voc_folder(
        {
            "a": [CAT, ("cat", 5, 5, 5, 9, False), ("cat", 9, 5, 3, 9, False)],
            "b": [CAT, ("cat", "nan", 5, 3, 9, False), ("cat", 30, 20, 60, 90, False), ("cat", 50, 20, 60, 90, False)],
        }
    )
    annotations = load_annotations(config, "train")
    assert annotations.problems.counts == dict.fromkeys(
        ("no_area", "inverted", "not_finite", "outside", "partly_outside"), 1
    )
    assert "a.xml: object 2" in annotations.problems.examples["no_area"]
    assert len(annotations.coco()["annotations"]) == 3


def test_the_folder_may_lie_one_below(voc_folder, tmp_path):
    config = voc_folder({"a": [CAT]}, root="VOC2007")
    assert find_splits(config) == ["train"]
    assert len(load_annotations(config, "train").images) == 1
    voc_folder({"a": [CAT]}, root="VOC2012")
    with pytest.raises(ValueError, match=r"several VOC folders .*VOC2007, .*VOC2012; give one"):
        load_annotations(config, "train")
    assert load_annotations(dataclasses.replace(config, data=str(tmp_path / "VOC2012")), "train").images


def test_evaluation_uses_the_classes_of_training(voc_folder):
    voc_folder({"a": [CAT, ("dog", 1, 1, 9, 9, False)]}, split="train")
    config = voc_folder({"b": [("dog", 1, 1, 9, 9, False)]}, split="val")
    assert load_annotations(config, "val").images[0].labels.tolist() == [1]
    voc_folder({"b": [CAT, ("emu", 1, 1, 9, 9, False)]}, split="val")
    with pytest.raises(ValueError, match=r"b\.xml: object 2: class 'emu' is not among .* \(cat, dog\)"):
        load_annotations(config, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml: is not valid XML"),
        ("<annotation><object/></annotation>", r"a\.xml: object 1: has no name"),
        (
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            r"a\.xml: object 1 \(cat\): expected xmin, ymin, xmax and ymax as numbers",
        ),
        ("<annotation><size><width>wide</width></size></annotation>", r"a\.xml: expected width and height"),
        (None, r"a\.xml: this annotation file is missing"),
    ],
)
def test_mistakes_are_errors_that_name_file_and_object(voc_folder, tmp_path, text, message):
    config = voc_folder({"a": [CAT]})
    xml = tmp_path / "Annotations" / "a.xml"
    xml.unlink()
    if text is not None:
        xml.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_annotations(config, "train")


def test_split_files(voc_folder, tmp_path):
    config = voc_folder({"a": [CAT]})
    split = tmp_path / "ImageSets" / "Main" / "train.txt"
    split.write_text("a  1\n\n")  # the form of VOC's lists per class
    assert [image.file_name for image in load_annotations(config, "train").images] == ["JPEGImages/a.jpg"]
    split.write_text("a\na\n")
    with pytest.raises(ValueError, match=r"train\.txt: image 'a' is listed more than once"):
        load_annotations(config, "train")
    split.write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt: lists no images"):
        load_annotations(config, "train")


def test_sizes_that_are_missing_come_from_the_image(voc_folder, tmp_path):
    config = voc_folder({"a": [CAT]})
    xml = tmp_path / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<width>40</width>", "<width>0</width>"))
    image = load_annotations(config, "train").images[0]
    assert (image.width, image.height) == (40, 30)
