"""Decoding, resizing and padding of images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from libra_det.config import DataConfig
from libra_det.data import load_image, resize_and_pad


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("RGB", "L", "RGBA", "LA", "P", "1")]
    + [(mode, "jpg") for mode in ("RGB", "L", "CMYK")]
    + [("RGB", suffix) for suffix in ("bmp", "webp", "tif")],
)
def test_every_kind_of_image_becomes_rgb(coco_folder, mode, suffix):
    image = load_image(coco_folder.picture(f"a.{suffix}", mode))
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 30, 40))
    bright, dark = image[:, 8:12, 7:13].float().mean((1, 2)), image[:, 18:, 18:].float().mean((1, 2))
    assert (bright > dark + 100).all()
    assert bright.max() - bright.min() < 8  # gray in, gray out


def test_16_bit_images_are_scaled(tmp_path):
    pixels = np.array([[0, 0x1234], [0x8000, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].tolist() == [[0, 0x12], [0x80, 0xFF]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_viewers_do(tmp_path, orientation):
    """What a camera stores turned is shown upright: the bright corner is found at the top left."""
    upright = np.zeros((32, 48), dtype=np.uint8)
    upright[:16, :16] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg")
    assert tuple(image.shape) == (3, 32, 48)
    assert image[0, 2:12, 2:12].min() > 240 and image[0, 18:].max() < 15 and image[0, :, 18:].max() < 15
    if orientation > 4:  # its annotated size tells that it was annotated as stored
        assert tuple(load_image(tmp_path / "a.jpg", annotated_size=(32, 48)).shape) == (3, 48, 32)


def test_another_size_than_annotated_is_an_error(coco_folder):
    with pytest.raises(ValueError, match=r"0\.png: is 40x30 pixels, but annotated as 80x60"):
        load_image(coco_folder.folder / "0.png", annotated_size=(80, 60))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_images_are_named(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg", "png": "png"}[suffix])
    file = tmp_path / f"broken.{suffix}"
    file.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ValueError, match=rf"broken\.{suffix}: cannot be decoded"):
        load_image(file)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.jpg: is no image that can be read"):
        load_image(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match=r"empty\.jpg: .*the file is empty"):
        load_image(tmp_path / "empty.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: this image file is missing"):
        load_image(tmp_path / "none.jpg")


def test_large_photos_decode_small_enough_and_alike(tmp_path):
    """The fast decoding of a large JPEG differs from the slow one by less than a gray level or two."""
    y, x = np.mgrid[:600, :800]
    pixels = np.stack([x * 255 / 800, y * 255 / 600, 128 + 100 * np.sin(x / 40)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    config = DataConfig(short_side=75, long_side=100, size_divisor=1)
    fast = load_image(tmp_path / "a.jpg", smallest=(100, 75))
    assert tuple(fast.shape) == (3, 150, 200)
    difference = resize_and_pad([fast], config)[0].float() - resize_and_pad([load_image(tmp_path / "a.jpg")], config)[0]
    assert difference.abs().mean() < 1.0 and difference.abs().max() <= 6


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(640, 480, (800, 1067)), (480, 640, (1067, 800)), (1000, 200, (267, 1333))]
)
def test_sizes_follow_the_short_side_unless_the_long_one_is_too_long(width, height, expected):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert resize_and_pad([image], DataConfig())[1].tolist() == [list(expected)]


def test_padding_is_zero_and_divisible():
    images = [torch.full((3, 20, 40), 200, dtype=torch.uint8), torch.full((3, 40, 20), 100, dtype=torch.uint8)]
    batch, sizes = resize_and_pad(images, DataConfig(short_side=20, long_side=40, size_divisor=32))
    assert (tuple(batch.shape), batch.dtype, sizes.tolist()) == ((2, 3, 64, 64), torch.uint8, [[20, 40], [40, 20]])
    assert (batch[0, :, :20, :40] == 200).all() and (batch[1, :, :40, :20] == 100).all()
    assert batch[0].sum() == 200 * 3 * 800 and batch[1].sum() == 100 * 3 * 800


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="images: expected at least one"):
        resize_and_pad([], DataConfig())
    with pytest.raises(ValueError, match=r"images\[0\]: expected uint8 \[3, H, W\].* got torch.float32 \[3, 4, 4\]"):
        resize_and_pad([torch.zeros(3, 4, 4)], DataConfig())
