"""Images: valid ones of every format and mode, damaged, and headers that claim what is not there."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.attack.files.attack import Attack, Place
from tests.attack.files.mutate import damaged
from tests.attack.operations.draw import Draw

_SIZE = (32, 24)
SUFFIXES = ("jpg", "png", "bmp", "webp", "tif", "gif")


def valid_images() -> dict[str, bytes]:
    """By file name: what Pillow writes, of all formats that the package takes and the modes that it converts."""
    ramp = np.linspace(0, 255, _SIZE[0] * _SIZE[1] * 3).astype(np.uint8).reshape(_SIZE[1], _SIZE[0], 3)
    color = Image.fromarray(ramp)
    deep = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [color.rotate(90), color.rotate(180)]}
    made: dict[str, tuple[Image.Image, dict]] = {
        "color.jpg": (color, {}),
        "progressive.jpg": (color, {"progressive": True}),
        "gray.jpg": (color.convert("L"), {}),
        "cmyk.jpg": (color.convert("CMYK"), {}),
        "turned.jpg": (color, {"exif": exif}),
        "color.png": (color, {}),
        "alpha.png": (color.convert("RGBA"), {}),
        "palette.png": (color.convert("P"), {"transparency": 0}),
        "one_bit.png": (color.convert("1"), {}),
        "deep.png": (deep, {}),
        "turned.png": (color, {"exif": exif}),
        "color.bmp": (color, {}),
        "palette.bmp": (color.convert("P"), {}),
        "color.webp": (color, {}),
        "lossless.webp": (color.convert("RGBA"), {"lossless": True}),
        "moving.webp": (color, frames),
        "color.tif": (color, {}),
        "deep.tif": (deep, {}),
        "float.tif": (Image.fromarray(ramp[..., 0].astype(np.float32)), {}),
        "lzw.tif": (color, {"compression": "tiff_lzw"}),
        "jpeg.tif": (color, {"compression": "jpeg"}),
        "pages.tif": (color, frames),
        "palette.gif": (color.convert("P"), {}),
        "moving.gif": (color, frames),
    }
    found = {}
    for name, (image, options) in made.items():
        stream = io.BytesIO()
        form = {"jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2], name.rpartition(".")[2].upper())
        image.save(stream, form, **options)
        found[name] = stream.getvalue()
    return found


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    value = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", value)


def _png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color: int = 2,
    data: bytes = b"",
    extra: bytes = b"",
    interlace: int = 0,
) -> bytes:
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, color, 0, 0, interlace)
    packed = data or zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _zeros(size: int) -> bytes:
    """A zlib stream of `size` zeros, made at once; its checksum is wrong."""
    from tests.attack.files.containers import zeros_deflated

    return b"\x78\xda" + zeros_deflated(size) + b"\x00\x00\x00\x01"


def _bmp(width: int, height: int, bits: int = 24, compression: int = 0, header: int = 40, data: bytes = b"") -> bytes:
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 1, 1, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + info + data


def _tiff(entries: list[tuple[int, int, int, int]], following: int = 0, count: int | None = None) -> bytes:
    """Little-endian, with one directory of (tag, type, count, value)."""
    listed = b"".join(struct.pack("<HHII", *(number % 2**32 for number in entry)) for entry in entries)
    number = len(entries) if count is None else count
    return b"II*\x00" + struct.pack("<IH", 8, number) + listed + struct.pack("<I", following) + bytes(4096)


def _usual(width: int, height: int, compression: int = 1) -> list[tuple[int, int, int, int]]:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 4096)]  # fmt: skip


def _gif(width: int, height: int, frames: int = 1) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00" + bytes(6) + frame * frames + b";"


def _jpeg(width: int, height: int, valid: bytes) -> bytes:
    """The size in the frame header of a valid file replaced."""
    place = next(i for i in range(len(valid)) if valid[i] == 0xFF and valid[i + 1] in (0xC0, 0xC2))
    return valid[: place + 5] + struct.pack(">HH", height, width) + valid[place + 9 :]


def _exif(value: bytes, valid: bytes) -> bytes:
    """A JPEG with this as its EXIF data."""
    segment = b"Exif\x00\x00" + value
    return valid[:2] + b"\xff\xe1" + struct.pack(">H", min(65535, len(segment) + 2)) + segment + valid[2:]


def _orientation(kind: int, count: int, value: int) -> bytes:
    return b"II*\x00" + struct.pack("<IHHHII", 8, 1, 0x0112, kind, count % 2**32, value % 2**32) + bytes(8)


def _other_formats(canary: str) -> dict[str, bytes]:
    """What Pillow would open by its content, whatever the name says."""
    ps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30000 30000\n({canary}) (w) file closefile\n%%EOF\n".encode()
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>'
    found = {"EPS": ps, "SVG": svg, "empty": b"", "text": b"no image\n", "PDF": b"%PDF-1.4\n", "HTML": b"<html>"}
    image = Image.new("RGB", _SIZE, (200, 10, 10))
    for form in (
        "PPM",
        "TGA",
        "PCX",
        "ICO",
        "SGI",
        "DDS",
        "JPEG2000",
        "ICNS",
        "IM",
        "MSP",
        "SPIDER",
        "XBM",
        "PDF",
        "AVIF",
        "QOI",
    ):
        stream = io.BytesIO()
        try:
            image.convert({"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(form, "RGB")).save(stream, form)
        except Exception:  # this Pillow cannot write it
            continue
        found[form] = stream.getvalue()
    found["PPM bomb"] = b"P6 60000 60000 255\n"
    found["PPM digits"] = b"P6 " + b"9" * 5000 + b" 1 255\n"
    found["XPM"] = b'/* XPM */\nstatic char *x[] = {"30000 30000 1 1", "a c #000000",'
    found["FITS"] = (
        b"SIMPLE  =                    T".ljust(80)
        + b"BITPIX  =                    8".ljust(80)
        + b"NAXIS   = 2".ljust(80)
        + b"END".ljust(80)
    )
    found["FLI"] = struct.pack("<IHHHHHHI", 2**31, 0xAF11, 60000, 30000, 30000, 8, 0, 1) + bytes(200)
    found["PSD"] = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 30000, 30000, 8, 3) + bytes(40)
    return found


def crafted(draw: Draw, valid: dict[str, bytes], canary: str) -> tuple[bytes, str]:
    """Written by hand. Sides: from nothing to beyond what memory holds."""
    side, other = (
        draw.choice((0, 1, 2, 13_000, 20_000, 30_000, 65_500, 65_535, 2**31 - 1, 2**32 - 1)) for _ in range(2)
    )
    small = (min(side, 65535), min(other, 65535))
    names = {
        f"PNG of {side} x {other}": lambda: _png(side, other),
        f"interlaced PNG of {side} x {other}": lambda: _png(side, other, interlace=1),
        "PNG bomb": lambda: _png(13_000, 13_000, data=_zeros(13_000 * 39_001)),
        "PNG bomb of 16 bits": lambda: _png(9_000, 9_000, depth=16, data=_zeros(9_000 * 54_001)),
        "PNG of one row": lambda: _png(10**8, 1, depth=1, color=0, data=_zeros(2**24)),
        "PNG of one column": lambda: _png(1, 10**8, depth=1, color=0, data=_zeros(2**28)),
        "PNG with more data": lambda: _png(8, 8, data=_zeros(2**30)),
        "PNG text bomb": lambda: _png(8, 8, extra=_chunk(b"zTXt", b"a\x00\x00" + _zeros(2**30))),
        "PNG text bombs": lambda: _png(8, 8, extra=_chunk(b"zTXt", b"a\x00\x00" + _zeros(2**20)) * 300),
        "PNG profile bomb": lambda: _png(8, 8, extra=_chunk(b"iCCP", b"a\x00\x00" + _zeros(2**30))),
        "PNG of a depth that is none": lambda: _png(8, 8, depth=draw.integer(0, 255), color=draw.integer(0, 7)),
        "PNG palette without one": lambda: _png(8, 8, color=3),
        "PNG chunk of 2^31": lambda: _png(8, 8)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT",
        "PNG of many chunks": lambda: _png(8, 8, extra=_chunk(b"tEXt", b"a\x00b") * 50_000),
        "APNG of many frames": lambda: _png(8, 8, extra=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        f"JPEG of {small[0]} x {small[1]}": lambda: _jpeg(*small, valid["color.jpg"]),
        f"progressive JPEG of {small[0]} x {small[1]}": lambda: _jpeg(*small, valid["progressive.jpg"]),
        "orientation 0": lambda: _exif(_orientation(3, 1, 0), valid["color.jpg"]),
        "orientation 9": lambda: _exif(_orientation(3, 1, 9), valid["color.jpg"]),
        "orientation of text": lambda: _exif(_orientation(2, 4, 0x41414141), valid["color.jpg"]),
        "orientation of many": lambda: _exif(_orientation(3, 2**31, 8), valid["color.jpg"]),
        "orientation of fractions": lambda: _exif(_orientation(5, 1, 8), valid["color.jpg"]),
        "orientation of floats": lambda: _exif(_orientation(12, 1, 8), valid["color.jpg"]),
        "EXIF in itself": lambda: _exif(_orientation(13, 1, 8), valid["color.jpg"]),
        "EXIF of noise": lambda: _exif(bytes(draw.random.getrandbits(8) for _ in range(400)), valid["color.jpg"]),
        f"BMP of {side} x {other}": lambda: _bmp(side % 2**31, draw.choice((1, -1)) * (other % 2**31)),
        "BMP of run lengths": lambda: _bmp(8, 8, 8, 1, data=b"\xff\x00" * 1000),
        "BMP of bits": lambda: _bmp(8, 8, draw.integer(0, 64), draw.integer(0, 6), data=bytes(500)),
        "BMP header": lambda: _bmp(8, 8, header=draw.choice((0, 12, 39, 64, 2**31, 2**32 - 1))),
        f"TIFF of {side} x {other}": lambda: _tiff(_usual(side, other)),
        "TIFF that follows itself": lambda: _tiff(_usual(8, 8), following=8),
        "TIFF of many tags": lambda: _tiff(_usual(8, 8), count=65535),
        "TIFF compression": lambda: _tiff(_usual(64, 64, draw.choice((2, 5, 7, 8, 32773, 34712, 50000, 50001, 99)))),
        "TIFF tag of 2^32": lambda: _tiff([*_usual(8, 8), (700, 1, 2**32 - 1, 8), (34665, 4, 1, 8)]),
        f"GIF of {small[0]} x {small[1]}": lambda: _gif(*small),
        "GIF of many frames": lambda: _gif(8, 8, 100_000),
        "WEBP of 16383": lambda: (
            valid["lossless.webp"][:21] + struct.pack("<I", 0x0FFF_FFFF) + valid["lossless.webp"][25:]
        ),
    }
    names.update({form: (lambda content=content: content) for form, content in _other_formats(canary).items()})
    chosen = draw.choice(list(names))
    return names[chosen](), chosen


def image(draw: Draw, files, place: Place) -> Attack:
    if draw.chance(0.5):
        name = draw.choice(list(files.images))
        content, words = damaged(draw, files.images[name])
        words = f"{name}: {words}"
    else:
        content, words = crafted(draw, files.images, str(place.canary))
        name = f"x.{draw.choice(SUFFIXES)}"
    suffix = name.rpartition(".")[2]
    return _used(draw, files, place, content, words, f"photo.{suffix}")


def _used(draw: Draw, files, place: Place, content: bytes, words: str, name: str) -> Attack:
    from tests.attack.files.annotations import write_data
    from tests.attack.files.weights import check_found

    command = draw.choice(("predict", "predict", "predict", "draw", "folder", "check"))
    if command == "check":  # its size is asked of the image
        listed = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": files.coco["categories"]}
        write_data(place.folder / "data", listed)
        (place.folder / "data" / name).write_bytes(content)
        return Attack("image", words, ("check", "data"))
    weights = str(files.folder / "tiny_plain.pth")
    folder = place.folder / "photos"
    folder.mkdir()
    (folder / name).write_bytes(content)
    source = "photos" if command == "folder" else f"photos/{name}"
    if command == "draw":
        return Attack("image", words, ("predict", weights, source, "--output", "drawn", "--score-threshold", "0"))
    return Attack(
        "image", words, ("predict", weights, source, "--json", "found.json"), check=lambda: check_found("found.json")
    )


MAKERS: dict[str, Callable[[Draw, object, Place], Attack]] = {"image": image}
