"""Safetensors: what `libra convert` writes, and backbones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from tests.attack.files.attack import Attack, Place
from tests.attack.files.mutate import damaged
from tests.attack.files.texts import CONTROL, hostile_json, hostile_value, with_field
from tests.attack.files.valid import Valid
from tests.attack.files.weights import used
from tests.attack.operations.draw import Draw


def safetensors(draw: Draw, files: Valid, place: Place) -> Attack:
    backbone = draw.chance(0.25)
    name = "backbone.safetensors" if backbone else "converted.safetensors"
    data = files.bytes[name]
    what = draw.choice(("damage", "header", "header", "length", "metadata", "metadata", "metadata", "values", "empty"))
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if what == "damage":
        content, words = damaged(draw, data)
    elif what == "length":
        claimed = draw.choice((0, 1, 2, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8, length + 1, length - 1))
        content, words = struct.pack("<Q", claimed) + data[8:], f"a header of {claimed} bytes"
    elif what == "empty":
        held = draw.choice(({}, {"__metadata__": {"libra_det": "1"}}, {"__metadata__": header.get("__metadata__", {})}))
        content, words = _safetensors(json.dumps(held).encode(), b""), "no tensors"
    elif what == "values":
        changed = bytearray(body)
        pattern = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00"))
        for _ in range(draw.choice((1, 50, 5000))):
            place_of = draw.integer(0, len(changed) // 4 - 1) * 4
            changed[place_of : place_of + 4] = pattern
        content, words = _safetensors(json.dumps(header).encode(), bytes(changed)), f"numbers {pattern.hex()}"
    elif what == "metadata" and not backbone:
        text, words = _hostile_metadata(draw, files, header)
        content = _safetensors(text, body)
    else:
        text, words = _hostile_header(draw, header)
        content = _safetensors(text, body)
    file = draw.choice(("W.safetensors", "W.pth"))
    (place.folder / file).write_bytes(content)
    if backbone:
        flag = draw.choice(("--weights", "--backbone-weights"))
        data_folder = str(files.folder / "data")
        arguments = ("train", flag, file, "--data", data_folder, "--epochs", "1", "--output", "run")
        return Attack("safetensors", f"{name}: {words}", arguments)
    return used(draw, file, files, "safetensors", f"{name}: {words}")


def _safetensors(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _hostile_metadata(draw: Draw, files: Valid, header: dict[str, Any]) -> tuple[bytes, str]:
    metadata = dict(header["__metadata__"])
    what = draw.choice(("config", "config", "config text", "categories", "any"))
    if what == "config":
        metadata["config"], words = with_field(draw, files.config())
    elif what == "config text":
        changed, words = hostile_json(draw, files.config())
        metadata["config"] = changed.decode("utf-8", "replace")
    elif what == "categories":
        changed, words = hostile_json(draw, json.loads(metadata["categories"]))
        metadata["categories"] = changed.decode("utf-8", "replace")
    else:
        value, words = hostile_value(draw)
        name = draw.choice(list(metadata))
        text = json.dumps({**header, "__metadata__": {**metadata, name: "@@"}}).replace('"@@"', value)
        return text.encode("utf-8", "surrogatepass"), f"metadata {name} = {words}"
    text = json.dumps({**header, "__metadata__": metadata}, ensure_ascii=draw.chance(0.8))
    return text.encode("utf-8", "replace"), f"metadata {what}: {words}"


def _hostile_header(draw: Draw, header: dict[str, Any]) -> tuple[bytes, str]:
    header = {key: dict(value) for key, value in header.items()}
    names = [key for key in header if key != "__metadata__"]
    name, what = draw.choice(names), draw.choice(("offsets", "overlap", "shape", "dtype", "json", "name", "many"))
    value = draw.choice((0, -1, 1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, 1.5, None, "x", [], True))
    if what == "offsets":
        header[name]["data_offsets"] = draw.choice(([0, value], [value, value], [value, 0], value, [0, 0, 0]))
    elif what == "overlap":
        header[name]["data_offsets"] = header[draw.choice(names)]["data_offsets"]
    elif what == "shape":
        header[name]["shape"] = draw.choice(([value], [value, value], [value, 0], [1] * 1000, value))
    elif what == "dtype":
        header[name]["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "x", value)
        )
    elif what == "name":
        header[draw.choice(CONTROL)] = header.pop(name)
    elif what == "many":
        header.update(
            {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_000)}
        )
    else:
        return hostile_json(draw, header)
    return json.dumps(header).encode(), f"{name}: {what} {str(value)[:20]}"


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {"safetensors": safetensors}
