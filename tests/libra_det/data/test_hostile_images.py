"""Pictures that were made to hurt: each is a sentence, soon and in little memory."""

import io
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from libra_det.data import check_data, load_image
from libra_det.data.image_file import MOST_PIXELS, image_header
from libra_det.photos import is_drawing
from tests.attack.children import MB, idle_memory, run_forked

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n(ran) print\n%%EOF\n"


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, and whose pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content",
    [
        png_header(13_400, 13_400),
        png_header(100_000, 100_000),
        png_header(2**31 - 1, 2**31 - 1),
        b"P6 50000 50000 255\n",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08",
        b"BM" + bytes(12) + b"\x28\0\0\0" + b"\xff\xff\xff\x0f" * 2 + b"\1\0\x18\0" + bytes(24),
    ],
)
def test_promises_of_many_pixels_are_refused(tmp_path, content):
    file = tmp_path / "bomb.jpg"
    file.write_bytes(content)

    def refused() -> int:
        for read in (image_header, load_image):
            with pytest.raises(ValueError, match=rf"bomb\.jpg: has more pixels than are read \({MOST_PIXELS}, "):
                read(file)
        assert not is_drawing(file)
        return 0

    ended = run_forked(refused, seconds=60, address_space=None, idle=idle_memory())
    assert ended.code == 0, ended
    assert ended.grown < 100 * MB


@pytest.mark.filterwarnings("error")
def test_a_photo_of_a_hundred_million_pixels_is_opened(tmp_path):
    """Pillow warns of it, which is not passed on. A file that is too small to be a photo is refused."""
    (tmp_path / "a.jpg").write_bytes(b"P6 11648 8736 255\n" + bytes(6_000_000))
    assert image_header(tmp_path / "a.jpg").stored == (11648, 8736)
    (tmp_path / "b.jpg").write_bytes(b"P6 11648 8736 255\n" + bytes(60_000))
    with pytest.raises(ValueError, match=r"b\.jpg: its 60018 bytes would become 101756928 pixels, which is no photo"):
        image_header(tmp_path / "b.jpg")


def test_fewer_pixels_of_webp_are_read(tmp_path):
    Image.new("RGB", (16_000, 2_800)).save(tmp_path / "a.webp", method=0)
    with pytest.raises(ValueError, match=r"a\.webp: has more pixels than are read \(.* of WebP a quarter\)"):
        image_header(tmp_path / "a.webp")


def tags_of_the_same_bytes(start: int, first: list[tuple[int, int, int, int]] = ()) -> bytes:
    """A TIFF directory that begins at byte `start`: `first`, then 5000 tags that all share half a megabyte."""
    tags = [*first, *((tag, 1, 500_000, 8) for tag in range(40_000, 45_000))]
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<L", start) + bytes(start - 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_tags_of_the_same_bytes_take_no_more_memory_than_the_file(tmp_path, kind):
    """They took up to 5 GiB and 11 seconds."""
    file = tmp_path / "a.jpg"
    if kind == "TIFF":  # one pixel, at byte 8
        shape = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
        file.write_bytes(tags_of_the_same_bytes(500_008, [*shape, (279, 4, 1, 1)]))
    else:
        Image.new("RGB", (16, 16)).save(file, kind, exif=b"Exif\0\0" + tags_of_the_same_bytes(500_008))

    def read() -> int:
        image_header(file)
        load_image(file)
        return 0

    ended = run_forked(read, seconds=60, address_space=None, idle=idle_memory())
    assert ended.code == 0, ended
    assert ended.grown < 100 * MB


def test_a_turned_photo_with_a_tag_beyond_its_end_is_turned(tmp_path):
    exif = struct.pack("<H HHLL HHLL L", 2, 0x0112, 3, 1, 6, 40_000, 1, 10**6, 8, 0)
    Image.new("RGB", (16, 8)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + exif)
    assert image_header(tmp_path / "a.jpg").displayed == (8, 16)


def test_a_large_picture_is_read_in_little_more_than_its_own_memory(tmp_path):
    """It is converted part by part, and comes out as it would whole."""
    random_pixels = np.random.default_rng(0).integers(0, 2**16, (37, 50), dtype=np.uint16)
    for name, pixels in (
        ("deep.png", np.tile(random_pixels, (60, 60))),
        ("gray.png", np.tile(random_pixels, (60, 60)) >> 8),
    ):
        Image.fromarray(pixels if name == "deep.png" else pixels.astype(np.uint8)).save(tmp_path / name)
        image = load_image(tmp_path / name)
        assert image.shape == (3, 2220, 3000)
        assert (image.numpy() == (np.tile(random_pixels, (60, 60)) >> 8)[None]).all()


def test_nothing_is_run_to_open_a_picture(tmp_path, monkeypatch):
    """Pillow would give an EPS file to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program was started"))
    for name in ("a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ValueError, match="is no image that can be read"):
            load_image(tmp_path / name)
        assert not is_drawing(tmp_path / name)


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "SGI", "JPEG2000", "DDS", "PDF"])
def test_other_formats_are_refused(tmp_path, kind):
    file = tmp_path / "a.jpg"
    Image.new("RGB", (40, 30)).save(file, kind)
    with pytest.raises(ValueError, match=r"a\.jpg: is no image that can be read"):
        load_image(file)


def test_the_mpo_of_a_camera_is_a_jpeg(tmp_path):
    file = tmp_path / "a.jpg"
    Image.new("RGB", (40, 30), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    assert load_image(file)[:, 15, 20].tolist() == [254, 0, 0]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("PPM", "RGB"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "1"),
    ],
)
def test_damaged_pictures_are_sentences(tmp_path, kind, mode):
    """Cut off, and with wrong bytes, most of them in the header."""
    choice = random.Random(f"{kind} {mode}")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    file, refused = tmp_path / "a.jpg", 0
    for _ in range(60):
        content = bytearray(buffer.getvalue())
        for _ in range(choice.choice([1, 2, 8])):
            content[choice.randrange(min(len(content), choice.choice([40, 400, len(content)])))] = choice.randrange(256)
        if choice.random() < 0.3:
            del content[choice.randrange(len(content)) :]
        file.write_bytes(content)
        for read in (image_header, load_image):
            try:
                read(file)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{file}: ") and len(str(error)) < 600
        is_drawing(file)
    assert refused > 10


def test_checking_a_bomb_says_which_image_it_is(coco_folder):
    coco_folder.content["images"][1].update(width=20_000, height=20_000)
    (coco_folder.folder / "1.png").write_bytes(png_header(20_000, 20_000))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ValueError) as error:
        warnings.simplefilter("always")
        check_data(coco_folder.write())
    assert "1.png: has more pixels than are read" in str(error.value) and "(image 11)" in str(error.value)
    assert not caught


def test_threads_that_read_headers_leave_the_warnings_as_they_were(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(image_header, [tmp_path / "a.png"] * 400))
        assert warnings.filters == before
