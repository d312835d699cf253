"""COCO files that were written to hurt: each is a sentence that names the file, and no name leads out of the data."""

import json
from dataclasses import replace

import pytest

from libra_det.data import check_data, load_annotations

ENTRIES = '{"images": [%s], "annotations": [%s], "categories": [%s]}'
IMAGE = '{"id": 10, "file_name": "0.png", "width": 40, "height": 30}'
CAT = '{"id": 7, "name": "cat"}'
LONG = 10**6 * "x"
HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (100_000 * "[", "is not valid JSON .it is nested too deeply"),
        (ENTRIES % (100_000 * "[" + 100_000 * "]", "", ""), "is not valid JSON .it is nested too deeply"),
        (ENTRIES % (IMAGE, '{"id": ' + 5000 * "1" + "}", CAT), "is not valid JSON .it holds a whole number"),
        (ENTRIES % (f'{{"id": {HUGE}}}', "", CAT), r"image 10{30}.*: expected a 64-bit integer id"),
        (ENTRIES % ('{"id": NaN}', "", CAT), "image nan: expected a 64-bit integer id, got nan"),
        (ENTRIES % ('{"id": 1e400}', "", CAT), "image inf: expected a 64-bit integer id, got inf"),
        (ENTRIES % (IMAGE.replace("40", HUGE), "", CAT), "expected width and height in whole pixels"),
        (ENTRIES % (IMAGE.replace("40", "1e18"), "", CAT), "expected width and height in whole pixels"),
        (ENTRIES % (IMAGE.replace("40", "NaN"), "", CAT), "expected width and height in whole pixels"),
        (ENTRIES % (IMAGE.replace("0.png", r"\ud800.png"), "", CAT), r"expected a file_name that a file can have"),
        (ENTRIES % (IMAGE.replace("0.png", r"a\u0000b.png"), "", CAT), r"expected a file_name that a file can have"),
        (ENTRIES % (IMAGE.replace("0.png", LONG), "", CAT), "image 10: expected a file_name of at most 1000 char"),
        (ENTRIES % (IMAGE.replace('"0.png"', 900 * "[" + 900 * "]"), "", CAT), "image 10: expected a file_name"),
        (ENTRIES % (IMAGE.replace("10", f'"{LONG}"'), "", CAT), "image xxx.*: expected a 64-bit integer id"),
        (ENTRIES % (IMAGE, f'{{"id": "{LONG}"}}', CAT), "annotation xxx.*: expected a 64-bit integer id"),
        (
            ENTRIES % (IMAGE, f'{{"id": 1, "image_id": 10, "category_id": {HUGE}}}', CAT),
            "expected a 64-bit .*category_",
        ),
        (
            ENTRIES % (IMAGE, f'{{"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, {HUGE}, 4]}}', CAT),
            "annotation 1: expected a bbox of 4 numbers",
        ),
        (
            ENTRIES % (IMAGE, "", f'{{"id": 7, "name": ["{LONG}"]}}'),
            r"categories\[0\]: expected a 64-bit integer id and",
        ),
        (
            ENTRIES % (IMAGE, "", f'{{"id": {HUGE}, "name": "cat"}}'),
            r"categories\[0\]: expected a 64-bit integer id and",
        ),
        (ENTRIES % (IMAGE, "", ", ".join([CAT.replace("cat", LONG)] * 2)), "category id 7 is used for both 'xxx"),
    ],
)
def test_files_that_were_written_to_hurt(coco_folder, text, message):
    (coco_folder.folder / "train.json").write_text(text)
    with pytest.raises(ValueError, match=rf"train\.json: .*{message}") as error:
        load_annotations(coco_folder.config, "train")
    assert len(str(error.value)) < 2000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["1e400", "-1e400", "NaN", HUGE, "1e300", "-1e300", "null"])
def test_numbers_without_end_do_no_harm(coco_folder, value):
    """An area that is no number of float32 is that of the box; a coordinate leaves the box out."""
    coco_folder.content["annotations"][0]["area"] = "VALUE"
    coco_folder.write()
    file = coco_folder.folder / "train.json"
    file.write_text(file.read_text().replace('"VALUE"', value))
    areas = load_annotations(coco_folder.config, "train").images[0].areas
    assert areas.isfinite().all()
    if value not in (HUGE, "null"):
        text = ENTRIES % (IMAGE, f'{{"id": 1, "image_id": 10, "category_id": 7, "bbox": [{value}, 2, 3, 4]}}', CAT)
        file.write_text(text)
        assert not len(load_annotations(coco_folder.config, "train").images[0].boxes)


NAMES_OUTSIDE = ("../outside.png", "ABSOLUTE", r"..\outside.png", "images/../../outside.png", r"C:\outside.png")


@pytest.fixture
def outside(coco_folder):
    """The data set in a folder of its own, with a picture that lies beside this folder."""
    coco_folder.folder /= "data"
    coco_folder.folder.mkdir()
    coco_folder.config = replace(coco_folder.config, data=str(coco_folder.folder))
    for number in range(4):
        coco_folder.picture(f"{number}.png")
    coco_folder.picture("../outside.png")
    return coco_folder


def named(folder, name: str):
    name = str(folder.folder.parent / "outside.png") if name == "ABSOLUTE" else name
    folder.content["images"][1]["file_name"] = name
    return folder.write()


@pytest.mark.parametrize("name", [*NAMES_OUTSIDE, r"\\server\share\outside.png", "/dev/stdin", "../data-2/x.png"])
def test_names_that_lead_out_are_refused(outside, name):
    with pytest.raises(ValueError, match=r"image 11 \(.*leads out of .*data, and .* is not there.*--allow-outside"):
        load_annotations(named(outside, name), "train")


@pytest.mark.parametrize("name", ["../outside.png", "ABSOLUTE", "x/../../outside.png"])
def test_they_are_read_where_the_user_allows_it(outside, name):
    (outside.folder / "x").mkdir()
    config = replace(named(outside, name), allow_outside=True)
    annotations = load_annotations(config, "train")
    assert annotations.images[1].file.samefile(outside.folder.parent / "outside.png")
    assert "outside_name" not in annotations.problems.counts
    assert "All images can be loaded" in check_data(config)


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_an_image_of_that_name_in_the_folder_is_taken_and_told(outside, name):
    """Label Studio exports data so: all images in one folder, named by where they lay on its server."""
    (outside.folder / "images").mkdir()
    for number in range(4):
        (outside.folder / f"{number}.png").rename(outside.folder / "images" / f"{number}.png")
    outside.picture("images/outside.png")
    annotations = load_annotations(named(outside, name), "train")
    assert annotations.images[1].file == outside.folder / "images" / "outside.png"
    assert annotations.images[1].file_name == outside.content["images"][1]["file_name"]
    assert annotations.problems.counts["outside_name"] == 1
    assert "1 file names lead elsewhere: the images of that name" in annotations.problems.summary()


def test_two_images_of_one_name_are_not_taken_for_one(outside):
    outside.content["images"][0]["file_name"] = "../one/2.png"
    with pytest.raises(ValueError, match=r"image 10 .*: 2 images would be .*data/2\.png; --allow-outside reads"):
        load_annotations(outside.write(), "train")


def test_names_that_stay_inside_are_as_they_were(outside):
    """Also by way of a folder above, or a link that the user made."""
    (outside.folder / "x").mkdir()
    (outside.folder / "link.png").symlink_to("../outside.png")
    names = ["x/../0.png", str(outside.folder / "1.png"), "../data/2.png", "link.png"]
    for image, name in zip(outside.content["images"], names, strict=True):
        image["file_name"] = name
    annotations = load_annotations(outside.write(), "train")
    assert not annotations.problems.counts.get("outside_name")
    assert "All images can be loaded" in check_data(outside.config)


def test_what_is_judged_is_what_is_read(outside):
    """The system would follow the link first, and find `link/../outside.png` beside the folder that it leads to."""
    (outside.folder.parent / "elsewhere").mkdir()
    (outside.folder / "link").symlink_to("../elsewhere")
    annotations = load_annotations(named(outside, "link/../outside.png"), "train")
    assert annotations.images[1].file == outside.folder / "outside.png"


def test_folders_that_the_user_names_are_inside(outside, tmp_path):
    """The given folder of images, and that of annotations which are given alone."""
    config = named(outside, "outside.png")
    with pytest.raises(ValueError, match=r"outside\.png: this image file is missing"):
        check_data(config)
    for number in range(4):
        (outside.folder / f"{number}.png").rename(tmp_path / f"{number}.png")
    assert load_annotations(replace(config, image_folder=".."), "train").images[1].file.is_file()
    (outside.folder / "train.json").rename(tmp_path / "mine.json")
    alone = replace(config, train_annotations=str(tmp_path / "mine.json"), data=str(tmp_path / "nowhere"))
    assert load_annotations(alone, "train").images[1].file == tmp_path / "outside.png"
    content = json.loads((tmp_path / "mine.json").read_text())
    content["images"][1]["file_name"] = "../outside.png"
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert load_annotations(alone, "train").problems.counts["outside_name"] == 1
