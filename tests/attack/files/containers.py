"""Files around a pickle: torch's zip archives and the older form, valid and hostile."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping

from tests.attack.operations.draw import Draw

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def zip_file(
    program: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    extra: Iterable[tuple[str, bytes]] = (),
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The file as torch.save writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", program)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", b"3\n")
        for name, data in extra:
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def legacy_file(program: bytes, storages: Mapping[str, bytes], *, sizes: Mapping[str, int] | None = None) -> bytes:
    """The file before torch 1.6: five pickles, then the storages, each after its number of elements."""
    little = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, PROTOCOL, little)]
    parts += [program, pickle.dumps(list(storages), protocol=2)]
    for key, data in storages.items():
        count = len(data) // 4 if sizes is None or key not in sizes else sizes[key]
        parts.append(struct.pack("<q", count) + data)
    return b"".join(parts)


def zeros_deflated(size: int) -> bytes:
    """`size` zero bytes as deflate: 1 KB for each MB."""
    block = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return once * (size // block) + b"\x03\x00"


def bomb_entry(archive: bytes, name: str, size: int) -> bytes:
    """The archive with one more entry, `size` bytes of zeros deflated, as the first of its name."""
    packed = zeros_deflated(size)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry, old.read(entry))
        info = zipfile.ZipInfo(name)
        new.writestr(info, packed)
    return _as_deflated(stream.getvalue(), name, size)


def _as_deflated(data: bytes, name: str, size: int) -> bytes:
    """Says in both headers of an entry that what is stored is deflated and has another size."""
    changed = bytearray(data)
    for signature, method, length, at_name in ((b"PK\x03\x04", 8, 22, 30), (b"PK\x01\x02", 10, 24, 46)):
        place = -1
        while (place := data.find(signature, place + 1)) >= 0:
            if data[place + at_name : place + at_name + len(name)] == name.encode():
                struct.pack_into("<H", changed, place + method, 8)
                struct.pack_into("<I", changed, place + length, min(size, 2**32 - 1))
    return bytes(changed)


def hostile_zip(draw: Draw, program: bytes, storages: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A valid archive but for one thing that is wrong with the zip itself."""
    good = zip_file(program, storages)
    what = draw.choice(
        ("parent", "absolute", "duplicate pickle", "bomb pickle", "bomb storage", "bomb beside", "deflated", "overlap",
         "no pickle", "folder", "many", "comment", "nested", "version", "big endian", "empty byteorder", "encrypted",
         "method", "size", "offset", "torchscript", "null name", "two roots", "no root", "prefix", "suffix")
    )  # fmt: skip
    extra: list[tuple[str, bytes]] = []
    match what:
        case "parent":
            extra = [("archive/../../../canary-parent", b"x"), ("../../canary-parent", b"x")]
        case "absolute":
            extra = [("/tmp/canary-absolute", b"x"), ("C:\\canary", b"x")]
        case "duplicate pickle":
            extra = [("archive/data.pkl", program[: len(program) // 2])]
        case "bomb pickle":
            return bomb_entry(good, "archive/data.pkl", 2**31), what
        case "bomb storage":
            return bomb_entry(good, f"archive/data/{draw.choice(list(storages))}", 2**31), what
        case "bomb beside":
            return bomb_entry(good, "archive/beside", 2**31), what
        case "deflated":
            return zip_file(program, storages, compression=zipfile.ZIP_DEFLATED), what
        case "overlap":
            return _overlapping(good, 2 + draw.integer(0, 3)), what
        case "no pickle":
            return good.replace(b"data.pkl", b"data.pk_"), what
        case "folder":
            extra = [("archive/data/0/", b""), ("archive/data/0/1", b"x")]
        case "many":
            extra = [(f"archive/{number}", b"") for number in range(20_000)]
        case "comment":
            return good[:-2] + struct.pack("<H", 65535) + b"PK\x05\x06" * 16383 + b"abc", what
        case "nested":
            return zip_file(program, {key: good for key in list(storages)[:1]}), what
        case "version":
            return good.replace(b"3\n", b"\xff\n"), what
        case "big endian":
            return good.replace(b"little", b"big   "), what
        case "empty byteorder":
            return good.replace(b"little", b"\x00\x00\x00\x00\x00\x00"), what
        case "encrypted":
            return _each_header(good, 6, 8, "<H", 1), what
        case "method":
            return _each_header(good, 8, 10, "<H", draw.choice((1, 9, 12, 14, 95, 99))), what
        case "size":
            return _each_header(good, 18, 20, "<I", draw.choice((0, 2**31, 2**32 - 1))), what
        case "offset":
            return _each_header(good, None, 42, "<I", draw.choice((0, 2**31, 2**32 - 1, len(good)))), what
        case "torchscript":
            extra = [("archive/constants.pkl", b"\x80\x02)."), ("archive/code/__torch__.py", b"import os\n")]
        case "null name":
            extra = [("archive/data\x00.pkl", b"x"), ("archive/\x1b[2J", b"x")]
        case "two roots":
            extra = [("other/data.pkl", program), ("other/version", b"3\n")]
        case "no root":
            return zip_file(program, storages, root=draw.choice(("", ".", "..", "a/b/c", "a" * 60_000))), what
        case "prefix":
            return b"#!/bin/sh\ntouch canary\n" + good, what
        case "suffix":
            return good + bytes(draw.choice((1, 70_000))), what
    return zip_file(program, storages, extra=extra), what


def _each_header(data: bytes, local: int | None, central: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    for signature, field in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        place = -1
        while field is not None and (place := data.find(signature, place + 1)) >= 0:
            if place + field + struct.calcsize(form) <= len(changed):
                struct.pack_into(form, changed, place + field, value)
    return bytes(changed)


def _overlapping(data: bytes, number: int) -> bytes:
    """The directory's entries all begin where the one of this number does."""
    places, place = [], -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        places.append(place)
    (offset,) = struct.unpack_from("<I", data, places[min(number, len(places) - 1)] + 42)
    return _each_header(data, None, 42, "<I", offset)
