"""Image files opened and their headers read: only formats that run nothing, and no more pixels than memory holds."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from libra_det.data.image_tags import limit_tags
from libra_det.file_names import is_file
from libra_det.terminal import short

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""File name endings that are taken for images."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
"""Formats that are opened, whatever the file is called; JPEG includes the MPO of cameras.

Of its other formats Pillow runs a program for some, such as Ghostscript for an EPS file that is called x.jpg.
"""

MOST_PIXELS = 178_956_970
"""Images with more are refused, before they are decoded. It is the number from which on Pillow refuses, too.

A camera's 102 million are read. So many as this take 1.3 GB, and 2.0 GB if they are a progressive JPEG to be turned.
"""

_UNQUESTIONED = 44_739_242
"""Pixels that a file of any size may have. One with more has at least a byte for twenty pixels, as every photo has: a
small file could stand for a gigabyte."""
_PIXELS_OF_A_BYTE = 20
_MOST_WEBP = 44_739_242  # WebP's decoder holds a picture several times

_TOO_LARGE = f"has more pixels than are read ({MOST_PIXELS}, of WebP a quarter); cut it into parts or make it smaller"
_ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSING = (5, 6, 7, 8)  # its values that exchange width and height


class _Quiet:
    """No warnings while any thread is inside. Python's filters belong to all threads: the last one restores them.

    Pillow decodes a whole PNG to find its EXIF data, so threads do not wait for each other.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__()


QUIET = _Quiet()
"""The context for all that Pillow does: what matters of its warnings is said here."""
limit_tags()


class ImageHeader(NamedTuple):
    """What can be known of an image without decoding its pixels."""

    stored: tuple[int, int]  # width, height of the raster in the file
    displayed: tuple[int, int]  # width, height after the EXIF rotation
    orientation: int  # EXIF's value; 1 is upright
    kind: str | None  # the kind of `Problems` that its colours are, if any


def image_header(file: Path) -> ImageHeader:
    """Reads the header of an image file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no image that can be read.
    """
    with open_image(file) as image:
        return read_header(image)


def image_size(file: Path) -> tuple[int, int]:
    """Width and height of an image file as displayed, in pixels. Errors as in `image_header`."""
    return image_header(file).displayed


def annotated_as_stored(file: Path, header: ImageHeader, annotated_size: tuple[int, int]) -> bool:
    """True if an image was annotated without its EXIF rotation, as far as its annotated width and height tell.

    Raises:
        ValueError: naming the file, if its size is neither as stored nor as displayed the annotated one.
    """
    if annotated_size == header.displayed:
        return False
    if annotated_size == header.stored:
        return True
    annotated, found = ("x".join(map(str, size)) for size in (annotated_size, header.displayed))
    raise ValueError(
        f"{file}: is {found} pixels, but annotated as {annotated}; its boxes cannot be trusted. Annotate it, or, "
        "if its boxes are in its own pixels, correct its width and height in the annotations"
    )


def open_image(file: Path) -> Image.Image:
    """The image with its header read, to be closed by the caller.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no image of `FORMATS`, or has more than `MOST_PIXELS`, or than a file of its size has.
    """
    if not is_file(file):
        raise FileNotFoundError(f"{file}: this image file is missing")
    try:
        with QUIET:  # what matters of Pillow's warnings is said below
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: {_TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        why = "the file is empty" if file.stat().st_size == 0 else f"it is none of {', '.join(FORMATS)}"
        raise ValueError(f"{file}: is no image that can be read ({why})") from error
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise ValueError(f"{file}: is no image that can be read ({reason(error, file)})") from error
    pixels, size = image.width * image.height, file.stat().st_size
    if pixels > (_MOST_WEBP if image.format == "WEBP" else MOST_PIXELS):
        image.close()
        raise ValueError(f"{file}: {_TOO_LARGE}")
    if pixels > max(_UNQUESTIONED, _PIXELS_OF_A_BYTE * size):
        image.close()
        raise ValueError(f"{file}: its {size} bytes would become {pixels} pixels, which is no photo; make it smaller")
    return image


def reason(error: Exception, file: Path | str) -> str:
    """Pillow's reason, without the name of the file again."""
    text = str(error).replace(repr(str(file)), "it").replace(str(file), "it")
    return short(text or type(error).__name__)


def read_header(image: Image.Image) -> ImageHeader:
    """The header of an opened image; damaged EXIF data counts as none."""
    try:
        with QUIET:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow raises for it
        orientation = 1
    if orientation not in range(1, 9):
        orientation = 1
    displayed = image.size[::-1] if orientation in TRANSPOSING else image.size
    return ImageHeader(image.size, displayed, orientation, _color_kind(image.mode))


def _color_kind(mode: str) -> str | None:
    if mode == "RGB":
        return None
    if mode in ("1", "L"):
        return "grayscale"
    if mode in ("P", "PA"):
        return "palette"
    if mode.startswith("I"):
        return "high_depth"
    return "alpha" if mode in ("LA", "La", "RGBA", "RGBa", "RGBX") else "other_colors"
