"""VOC files that were written to hurt: each is a sentence that names the file."""

from dataclasses import replace

import pytest
from PIL import Image

from libra_det.data import load_annotations
from tests.attack.children import MB, idle_memory, run_forked

CAT = ("cat", 6, 7, 15, 14, False)
BOMB = (
    '<!DOCTYPE annotation [<!ENTITY e0 "ha">'
    + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    + "]><annotation><filename>&e11;</filename></annotation>"
)


def box(xmin: str) -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    return f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"


def size(width: str) -> str:
    return f"<annotation><size><width>{width}</width><height>30</height></size></annotation>"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "is not valid XML"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "is not valid XML"),
        ('<?xml version="1.0" encoding="hex"?><annotation/>', "is not valid XML"),
        (BOMB, "is not valid XML .*amplification"),
        (
            "<!DOCTYPE a [<!ENTITY e SYSTEM 'SECRET'>]><annotation><filename>&e;</filename></annotation>",
            "is not valid XML",
        ),
        (b"\xff\xfe\x00", "is not valid XML"),
        (b"\0" * 1000, "is not valid XML"),
        (size("1e400"), "expected width and height in whole pixels, got '1e400' and '30'"),
        (size("nan"), "expected width and height"),
        (size("1e9"), "expected width and height"),
        (size("9" * 10**6), "expected width and height"),
        (box("wide" * 10**6), "object 1 .cat.: expected xmin, ymin, xmax and ymax as numbers"),
        (f"<annotation><filename>{'a' * 10**6}</filename></annotation>", "expected a file_name of at most"),
    ],
)
def test_files_that_were_written_to_hurt(voc_folder, tmp_path, xml, message):
    (tmp_path / "secret").write_text("the secret")
    config = voc_folder({"a": [CAT]})
    if "file_name" in message:
        (tmp_path / "JPEGImages" / "a.jpg").unlink()
    file = tmp_path / "Annotations" / "a.xml"
    xml = xml.encode() if isinstance(xml, str) else xml
    file.write_bytes(xml.replace(b"SECRET", (tmp_path / "secret").as_uri().encode()))

    def refused() -> int:
        with pytest.raises(ValueError, match=rf"a\.xml: {message}") as error:
            load_annotations(config, "train")
        assert len(str(error.value)) < 2000 and "the secret" not in str(error.value)
        return 0

    ended = run_forked(refused, seconds=60, address_space=None, idle=idle_memory())
    assert ended.code == 0, ended
    assert ended.grown < 200 * MB


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_corners_that_are_no_place_are_counted(voc_folder, tmp_path, value):
    config = voc_folder({"a": [CAT]})
    (tmp_path / "Annotations" / "a.xml").write_text(box(value))
    assert load_annotations(config, "train").problems.counts["not_finite"] == 1


def test_a_deep_file_is_read(voc_folder, tmp_path):
    config = voc_folder({"a": [CAT]})
    depth = 200_000
    (tmp_path / "Annotations" / "a.xml").write_text(
        "<annotation>" + "<a>" * depth + box("1")[12:-13] + "</a>" * depth + "</annotation>"
    )
    assert len(load_annotations(config, "train").images[0].boxes) == 1


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (bytes(range(256)), "expected a text file with an image name on each line"),
        (b"a" * 10**6, "expected a file_name of at most"),
        (b"a\0b", "expected a file_name that a file can have"),
        (b"../../elsewhere/b", "'../../elsewhere/b.xml' leads out of .*--allow-outside"),
        (b"/etc/passwd", "'/etc/passwd.xml' leads out of .*--allow-outside"),
        (rb"..\..\b", "leads out of .*--allow-outside"),
        (b"../../elsewhere/a", "has no annotation file in .*Annotations"),
        (b"../a", "has no annotation file in .*Annotations"),
    ],
)
def test_split_files_that_were_written_to_hurt(voc_folder, tmp_path, split, message):
    config = voc_folder({"a": [CAT]})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(split)
    with pytest.raises(ValueError, match=rf"train\.txt: .*{message}") as error:
        load_annotations(config, "train")
    assert len(str(error.value)) < 1000


def test_a_named_image_outside_the_folder(voc_folder, tmp_path):
    config = voc_folder({"a": [CAT]}, root="data")
    config = replace(config, data=str(tmp_path / "data"))
    pictures = tmp_path / "data" / "JPEGImages"
    (pictures / "a.jpg").unlink()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.jpg")
    xml = tmp_path / "data" / "Annotations" / "a.xml"
    for name in ("../../b.jpg", str(tmp_path / "b.jpg"), r"..\..\b.jpg", r"C:\b.jpg"):
        xml.write_text(f"<annotation><filename>{name}</filename>{size('40')[12:]}")
        with pytest.raises(ValueError, match=r"leads out of .*--allow-outside"):
            load_annotations(config, "train")
    xml.write_text(f"<annotation><filename>../../b.jpg</filename>{size('40')[12:]}")
    (image,) = load_annotations(replace(config, allow_outside=True), "train").images
    assert image.file.samefile(tmp_path / "b.jpg")
    Image.new("RGB", (40, 30)).save(pictures / "b.jpg")
    annotations = load_annotations(config, "train")
    assert annotations.images[0].file == pictures / "b.jpg"
    assert annotations.problems.counts["outside_name"] == 1
