"""What `libra check` prints: the data set in numbers, everything handled, and everything that has to be mended."""

import time

import pytest
from PIL import Image

from libra_det.data import check_data


def test_the_summary_counts_objects_and_sizes(coco_folder):
    for image, annotation in zip(coco_folder.content["images"], coco_folder.content["annotations"], strict=True):
        annotation["area"] = {10: 500, 11: 2000, 12: 2000, 13: 20000}[image["id"]]
    coco_folder.content["annotations"][3].update(image_id=12, bbox=[30, 20, 30, 30])
    coco_folder.picture("1.png", "L")
    exif = Image.Exif()
    exif[0x0112] = 6
    coco_folder.picture("2.jpg", size=(30, 40), exif=exif)
    coco_folder.content["images"][2]["file_name"] = "2.jpg"
    summary = check_data(coco_folder.write()).splitlines()
    assert summary[1].startswith(
        "train: 4 images of 40x30 to 40x30, 4 objects of 2 classes, 0 crowds; 1 images are empty"
    )
    assert summary[3].split() == ["cat", "4", "3", "1", "2", "1"]
    assert summary[4].split() == ["dog", "0", "0", "0", "0", "0"]
    handled = "\n".join(summary[5:])
    for part in ("1 boxes reach", "1 images are grayscale", "1 images are turned", "1 images have no objects", "2.jpg"):
        assert part in handled
    assert summary[-1] == "All images can be loaded."


def test_all_faults_are_reported_at_once(coco_folder):
    coco_folder.write("val")
    (coco_folder.folder / "0.png").unlink()
    file = coco_folder.folder / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    coco_folder.picture("2.png", size=(80, 60))
    coco_folder.write("train")
    coco_folder.content["annotations"][0]["bbox"] = [1]
    coco_folder.content["annotations"][1]["category_id"] = 8
    coco_folder.write("test")
    with pytest.raises(ValueError) as error:
        check_data(coco_folder.config)
    message = str(error.value)
    assert message.count("0.png: this image file is missing (image 10)") == 2  # in train and val
    assert message.count("1.png: cannot be decoded") == message.count("2.png: is 80x60") == 2
    assert "test.json: annotation 100: expected a bbox" in message
    assert "test.json: annotation 101: category 8 is unknown" in message
    assert "train: 4 images" in message


def test_no_mistake_is_left_out(coco_folder):
    first = coco_folder.content["annotations"][0]
    coco_folder.content["annotations"] = [{**first, "id": number, "bbox": [1]} for number in range(30)]
    with pytest.raises(ValueError, match="30 to be mended") as error:
        check_data(coco_folder.write())
    assert all(f"annotation {number}: " in str(error.value) for number in range(30))


def test_a_thousand_mistakes_are_enough(coco_folder):
    first = coco_folder.content["annotations"][0]
    coco_folder.content["annotations"] = [{**first, "id": number, "bbox": [1]} for number in range(1200)]
    with pytest.raises(ValueError, match="1200 to be mended") as error:
        check_data(coco_folder.write())
    assert "annotation 999: " in str(error.value) and "annotation 1000: " not in str(error.value)
    assert str(error.value).endswith("... and 200 more")


def test_images_annotated_as_stored_are_told_apart(coco_folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    coco_folder.picture("0.jpg", exif=exif)
    coco_folder.content["images"][0]["file_name"] = "0.jpg"
    assert "1 images are annotated as stored" in check_data(coco_folder.write())


def many_classes(coco_folder, classes: int) -> None:
    coco_folder.content["categories"] = [{"id": id, "name": f"class {id}"} for id in range(classes)]
    coco_folder.content["annotations"] = [
        {"id": id, "image_id": 10 + id % 3, "category_id": id, "bbox": [5, 6, 10, 8]} for id in range(classes)
    ]


def test_many_classes_take_time_in_proportion(coco_folder):
    """20,000 of them took half a minute; each was looked up in a list of all."""
    many_classes(coco_folder, 20_000)
    for split in ("train", "val"):
        coco_folder.write(split)
    start = time.process_time()
    lines = check_data(coco_folder.config).splitlines()
    assert time.process_time() - start < 20
    assert sum("class 1999 " in line for line in lines) == 2 and not any("class 2000 " in line for line in lines)
    assert sum(line == "  ... and 18000 more classes with objects" for line in lines) == 2


def test_unknown_classes_take_time_in_proportion(coco_folder):
    many_classes(coco_folder, 20_000)
    coco_folder.write("train")
    coco_folder.content["categories"] = [{"id": id, "name": f"other {id}"} for id in range(20_000)]
    start = time.process_time()
    with pytest.raises(ValueError, match="20000 to be mended before training") as error:
        coco_folder.write("val")
        check_data(coco_folder.config)
    assert time.process_time() - start < 20 and len(str(error.value)) < 20_000 * 600
    assert "class 3, " in str(error.value) and "(20000 in all)" in str(error.value)


def test_classes_without_objects_are_left_out_of_long_tables(coco_folder):
    many_classes(coco_folder, 40)
    del coco_folder.content["annotations"][20:]
    rows = check_data(coco_folder.write()).splitlines()
    assert [row.split()[1] for row in rows if row.startswith("  class ") and "objects" not in row] == [
        str(number) for number in range(20)
    ]
