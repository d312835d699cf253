"""COCO JSON, and Pascal VOC's XML and lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack.files.attack import Attack, Place
from tests.attack.files.mutate import damaged
from tests.attack.files.texts import CONTROL, NUMBERS, hostile_json
from tests.attack.files.valid import Valid
from tests.attack.operations.draw import Draw

OUTSIDE = (
    "../../canary.png",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
    "..",
    ".",
    "",
    "data",
    "a/../../b",
    "~/x.png",
    "C:\\x.png",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x.png",
    "a" * 300,
    "a/" * 3000,
    "\x00",
    "CON",
    "-",
)
_FEW = 100_000


def write_data(folder: Path, train: dict[str, Any] | bytes) -> None:
    folder.mkdir()
    content = train if isinstance(train, bytes) else json.dumps(train).encode()
    (folder / "train.json").write_bytes(content)


def coco(draw: Draw, files: Valid, place: Place) -> Attack:
    what = draw.choice(("json", "json", "json", "json", "crafted", "damage"))
    if what == "json":
        content, words = hostile_json(draw, files.coco)
    elif what == "damage":
        content, words = damaged(draw, json.dumps(files.coco).encode())
    else:
        content, words = _crafted_coco(draw, files.coco)
    folder = place.folder / "data"
    write_data(folder, content)
    for name in ("train_0.png", "train_1.png"):
        (folder / name).write_bytes(files.bytes[f"data/{name}"])
    much = words.startswith("many ")  # honest work for minutes, if not with `check`
    if not much and draw.chance(0.2):
        weights = str(files.folder / "tiny_plain.pth")
        arguments = ("eval", weights, "--data", "data", "--split", "train", "--workers", "0", "--output", "evaluation")
        return Attack("COCO JSON", words, arguments)
    if not much and draw.chance(0.1):
        arguments = (
            "train",
            "--data",
            "data",
            "--eval-split",
            "train",
            "--epochs",
            "1",
            "--workers",
            "0",
            "--output",
            "run",
        )
        return Attack("COCO JSON", words, arguments)
    return Attack("COCO JSON", words, ("check", "data", "--eval-split", "train"))


def _crafted_coco(draw: Draw, good: dict[str, Any]) -> tuple[bytes, str]:
    content = json.loads(json.dumps(good))
    images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
    what = draw.choice(
        (
            "outside",
            "control",
            "many categories",
            "many images",
            "many annotations",
            "unhashable",
            "no sizes",
            "same names",
            "huge image",
            "ids",
            "empty",
            "boxes",
            "wrong names",
        )
    )
    if what == "outside":
        images[0]["file_name"] = draw.choice(OUTSIDE)
        if draw.chance(0.5):
            del images[0]["width"], images[0]["height"]
        what += f" {images[0]['file_name'][:30]!r}"
    elif what == "control":
        for entry, key in ((categories[0], "name"), (images[0], "file_name")):
            if draw.chance(0.7):
                entry[key] = draw.choice(CONTROL)
    elif what == "many categories":
        categories += [{"id": number, "name": f"c{number}"} for number in range(100, 100 + _FEW // 4)]
    elif what == "many images":
        images += [
            {"id": k, "file_name": "train_0.png", "width": 64, "height": 48} for k in range(10, 10 + _FEW // 100)
        ]
    elif what == "many annotations":
        more = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}
        annotations += [{"id": number, **more} for number in range(100, 100 + _FEW // 2)]
    elif what == "unhashable":
        entry, key = draw.choice(
            (
                (categories[0], "id"),
                (images[0], "id"),
                (annotations[0], "id"),
                (annotations[0], "category_id"),
                (annotations[0], "image_id"),
            )
        )
        entry[key] = draw.choice(([1], {"a": 1}, [[]], None, "3", 3.5, True))
    elif what == "no sizes":
        for image in images:
            del image["width"], image["height"]
    elif what == "same names":
        for entry in categories:
            entry["name"] = "same"
    elif what == "huge image":
        images[0]["width"], images[0]["height"] = draw.choice(((10**9, 10**9), (2**62, 1), (1, 2**62), (10**400, 1)))
    elif what == "ids":
        for list_ in (images, annotations, categories):
            for number, entry in enumerate(list_):
                entry["id"] = draw.choice((2**63 - 1, -(2**63), 2**62, 10**18, 0, -1)) - number
    elif what == "empty":
        content[draw.choice(("images", "annotations", "categories"))] = []
    elif what == "boxes":
        annotations[0]["bbox"] = [draw.choice((1e308, -1e308, 0, 1e-320, 10**300, -1, float("inf"))) for _ in range(4)]
        annotations[0]["area"] = draw.choice((1e308, -1, float("nan"), 10**300, None, "x"))
    else:
        content = {"Images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode(), what


def voc(draw: Draw, files: Valid, place: Place) -> Attack:
    root = place.folder / "voc"
    for name, content in files.bytes.items():
        if name.startswith("voc/") and "val" not in name:
            (root / name[4:]).parent.mkdir(parents=True, exist_ok=True)
            (root / name[4:]).write_bytes(content)
    split = root / "ImageSets" / "Main" / "train.txt"
    file = root / "Annotations" / "train_0.xml"
    what = draw.choice(("xml", "xml", "xml", "damage", "damage", "split"))
    if what == "damage":
        target = draw.choice((file, file, split))
        content, words = damaged(draw, target.read_bytes())
        target.write_bytes(content)
        words = f"{target.name}: {words}"
    elif what == "split":
        lines, words = _hostile_split(draw)
        split.write_bytes(lines)
    else:
        content, words = _hostile_xml(draw, file.read_bytes(), place)
        file.write_bytes(content)
    return Attack("VOC", words, ("check", "voc", "--eval-split", "train"))


def _hostile_split(draw: Draw) -> tuple[bytes, str]:
    name = draw.choice((*OUTSIDE, *(text for text in CONTROL if len(text) < 10_000)))
    lists = {
        "name": f"train_0\n{name}\n",
        "many": "".join(f"train_{number}\n" for number in range(_FEW)),
        "the same": "train_0\n" * _FEW,
        "pairs": "".join(f"x{number}\nx{number}\n" for number in range(_FEW // 2)),
        "one line": "a" * 5_000_000,
        "columns": "train_0 1 2 3 " * 1000,
        "empty": "\n\n",
    }
    chosen = draw.choice(("name", "name", "name", *lists))
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin1"))
    words = f"split, {chosen} {name[:20]!r}, {encoding}" if chosen == "name" else f"split, {chosen}"
    return lists[chosen].encode(encoding, "replace" if encoding == "latin1" else "surrogatepass"), words


def _hostile_xml(draw: Draw, good: bytes, place: Place) -> tuple[bytes, str]:
    text = good.decode()
    head = '<?xml version="1.0"?>'
    bomb = '<!ENTITY a0 "aaaaaaaaaa">' + "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10))
    square = f'<!ENTITY a "{"a" * 100_000}">'
    box = draw.choice(("xmin", "ymin", "xmax", "ymax", "width", "height", "name", "difficult", "filename"))
    value = draw.choice((*NUMBERS, *CONTROL, "", " ", "0x10", "1_0", "\u0661", "1,5", "nan", "inf"))
    value = "".join(f"&#{ord(char)};" if char in "\x1b\x9b\r\u2028\x00&<>" else char for char in value)
    start, end = text.find(f"<{box}>"), text.find(f"</{box}>")
    replaced = text[: start + len(box) + 2] + value + text[end:] if start >= 0 else text
    encoding = draw.choice(
        ("x", "idna", "utf-7", "punycode", "zlib", "utf-16", "rot13", "cp037", "base64", "hex", "unicode_escape")
    )
    named = text.replace("red box", "&a;")
    made = {
        "entities": f"{head}<!DOCTYPE a [{bomb}]>{text.replace('red box', '&a9;')}",
        "entities in squares": f"{head}<!DOCTYPE a [{square}]>{text.replace('red box', '&a;' * 50_000)}",
        "entity in itself": f'{head}<!DOCTYPE a [<!ENTITY a "&b;"><!ENTITY b "&a;">]>{named}',
        "outside entity": f'{head}<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>{named}',
        "outside DTD": f'{head}<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">{text}',
        f"encoding {encoding}": f'<?xml version="1.0" encoding="{encoding}"?>{text}',
        "nested": "<annotation>" + "<a>" * _FEW + "</a>" * _FEW + "</annotation>",
        "nested objects": "<annotation>" + "<object>" * 20_000 + "</object>" * 20_000 + "</annotation>",
        "attributes": "<annotation " + " ".join(f'a{number}="1"' for number in range(_FEW)) + "></annotation>",
        "long attribute": f'<annotation a="{"x" * 5_000_000}"></annotation>',
        "many objects": text.replace(
            "</annotation>", text[text.find("<object>") : text.rfind("</object>") + 9] * 5000 + "</annotation>"
        ),
        "outside file": text.replace("train_0.jpg", draw.choice(OUTSIDE).replace("\x00", "")),
        "no size": text[: text.find("<size>")] + text[text.find("</size>") + 7 :],
        "no objects": text[: text.find("<object>")] + "</annotation>",
        "another root": "<html></html>",
        "empty": "",
        "null": text.replace("red box", "\x00"),
        "utf-16": "",
        f"{box} = {value[:20]!r}": replaced,
    }
    chosen = draw.choice((*made, *[name for name in made if " = " in name] * 8))
    if chosen == "utf-16":
        return text.encode("utf-16"), chosen
    return made[chosen].encode("utf-8", "surrogatepass"), chosen


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {"COCO JSON": coco, "VOC": voc}
