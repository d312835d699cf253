"""Published detectors, in archives and in the older form, with their notes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.attack.files import containers, pickles, tiny, valid
from tests.attack.files.attack import Attack, Place
from tests.attack.files.bombs import draw_bomb, draw_claim
from tests.attack.files.mutate import damaged
from tests.attack.files.texts import CONTROL, hostile_value
from tests.attack.files.valid import Valid
from tests.attack.operations.draw import Draw

PUBLISHED = ("tiny_faster", "tiny_retina", "tiny_plain")


def used(draw: Draw, file: str, valid_files: Valid, kind: str, words: str) -> Attack:
    """A file of weights in one of the commands that read such."""
    photo, found = str(valid_files.folder / "data" / "val_0.png"), "found.json"
    command = draw.choice(("predict",) * 7 + ("convert", "convert", "eval", "train"))
    if command == "convert":
        return Attack(kind, words, ("convert", file, "--output", "converted.safetensors"))
    if command == "eval":
        return Attack(
            kind,
            words,
            (
                "eval",
                file,
                "--data",
                str(valid_files.folder / "data"),
                "--split",
                "val",
                "--workers",
                "0",
                "--output",
                "evaluation",
            ),
        )
    if command == "train":
        return Attack(
            kind,
            words,
            (
                "train",
                "--weights",
                file,
                "--data",
                str(valid_files.folder / "data"),
                "--epochs",
                "1",
                "--workers",
                "0",
                "--output",
                "run",
            ),
        )
    more = ("--partial",) if draw.chance(0.2) else ()
    return Attack(kind, words, ("predict", file, photo, "--json", found, *more), check=lambda: check_found(found))


def check_found(file: str) -> None:
    """What `libra predict --json` has written: strict JSON of at most as many detections as there may be."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {file}")

    entries = json.loads(Path(file).read_text(), parse_constant=refuse)
    assert isinstance(entries, list) and len(entries) <= 1000, f"{len(entries)} detections"
    for entry in entries:
        assert set(entry) == {"bbox", "category_id", "score", "file_name"}, f"a detection with {sorted(entry)}"
        assert len(entry["bbox"]) == 4 and 0 <= entry["score"] <= 1, "a detection out of range"


def published(draw: Draw, files: Valid, place: Place, *, legacy: bool = False) -> Attack:
    recipe = draw.choice(PUBLISHED)
    kind, name = ("legacy .pth", f"{recipe}-legacy.pth") if legacy else ("published .pth", f"{recipe}.pth")
    data, file = files.bytes[name], draw.choice(("W.pth", "W.pth", "W.pt", "W.bin", "W.safetensors"))
    what = draw.choice(
        ("damage", "damage", "pickle", "pickle", "program", "program", "program", "program", "names", "zip")
    )
    if what == "damage" or (what == "zip" and legacy):
        content, words = damaged(draw, data)
    elif what == "pickle":
        content, words = _damaged_pickle(draw, data, legacy)
        words = f"pickle: {words}"
    else:
        state = files.states[recipe]
        programs, storages = pickles.tensors(state, pickles.legacy_storage if legacy else pickles.storage)
        storages["claim"] = struct.pack("<4f", 1, 2, 3, 4)
        root: dict[str, bytes] = {"meta": pickles.dict_of({}), "state_dict": b""}
        words = "as it is"
        if what == "program":
            words = _hostile_program(draw, place, programs, root, legacy)
        elif what == "names":
            words = _hostile_names(draw, programs, state, legacy)
        root["state_dict"] = root["state_dict"] or pickles.dict_of(programs)
        program = pickles.program(root.get("all") or pickles.dict_of({k: v for k, v in root.items() if k != "all"}))
        if what == "zip":
            content, words = containers.hostile_zip(draw, program, storages)
        elif legacy:
            if b"claim" not in program:  # the older form has no storages that nobody asks for
                del storages["claim"]
            sizes = {str(position): value.numel() for position, value in enumerate(state.values())}
            content = containers.legacy_file(program, storages, sizes=sizes)
        else:
            content = containers.zip_file(program, storages)
    (place.folder / file).write_bytes(content)
    return used(draw, file, files, kind, f"{name}: {words}")


def _damaged_pickle(draw: Draw, data: bytes, legacy: bool) -> tuple[bytes, str]:
    """The program damaged, in a container whose checksums are right."""
    if legacy:
        start = valid.legacy_header_length(data)
        return damaged(draw, data, start, start + 12_000)
    _, program = valid.pickle_in(data)
    changed, words = damaged(draw, program)
    return valid.with_pickle(data, changed), words


def _hostile_program(draw: Draw, place: Place, programs: dict[str, bytes], root: dict[str, bytes], legacy: bool) -> str:
    what = draw.choice(("claim", "bomb", "bomb", "exploit"))
    if what == "claim":
        made, words = draw_claim(draw, pickles.legacy_storage if legacy else pickles.storage)
    else:
        made, words = draw_bomb(draw) if what == "bomb" else pickles.draw_exploit(draw, place.canary)
    where = draw.choice(
        ("all", "state", "tensor", "tensor", "tensor", "extra tensor", "meta", "config", "beside", "key")
    )
    key = draw.choice(list(programs))
    if where == "all":
        root["all"] = made
    elif where == "state":
        root["state_dict"] = made
    elif where == "tensor":
        programs[key] = made
    elif where == "extra tensor":
        programs["extra.weight"] = made
    elif where == "meta":
        root["meta"] = made
    elif where == "config":
        root["meta"] = pickles.dict_of({draw.choice(("config", "CLASSES", "dataset_meta", "epoch")): made})
    elif where == "beside":
        root[draw.choice(("optimizer", "format", "model", "epoch"))] = made
    else:
        pairs = [(pickles.text(name), value) for name, value in programs.items()]
        root["state_dict"] = pickles.dict_of([*pairs, (made, pairs[0][1])])
    return f"{words} as {where}{f' {key}' if where == 'tensor' else ''}"


def _hostile_names(draw: Draw, programs: dict[str, bytes], state: dict[str, Tensor], legacy: bool) -> str:
    """Valid tensors under hostile names, or of hostile shapes and values."""
    what = draw.choice(
        ("ema", "prefix", "long prefix", "control", "many", "backbone", "version 1", "classes", "zero rows", "missing")
    )
    one = next(iter(programs.values()))
    if what == "ema":
        programs.update({f"ema_{number}": one for number in range(100_000)})
    elif what in ("prefix", "long prefix"):
        depth = 3 if what == "prefix" else 100_000
        renamed = {"module." * depth + key: value for key, value in list(programs.items())[: 400 if depth == 3 else 2]}
        programs.clear()
        programs.update(renamed)
    elif what == "control":
        programs[draw.choice(CONTROL)] = one
    elif what == "many":
        programs.update({f"backbone.layer{number}.weight": one for number in range(100_000)})
    elif what == "backbone":
        programs["conv1.weight"] = one
        programs["layer1.0.conv1.weight"] = one
    elif what == "version 1":
        programs["roi_head.bbox_head.fc_reg.weight"] = programs.get("roi_head.bbox_head.fc_cls.weight", one)
    elif what == "missing":
        for key in list(programs)[:: draw.choice((1, 2, 5))]:
            del programs[key]
    else:
        held = (pickles.legacy_storage if legacy else pickles.storage)("FloatStorage", "claim", 4)
        layer = "bbox_head.retina_cls" if "bbox_head.retina_cls.weight" in programs else "roi_head.bbox_head.fc_cls"
        rows = draw.choice((10**6, 10**9, 10**12, 2**40, 2**62, 2**63 - 1, 0, 1, 2, 81))
        sides = [0] if what == "zero rows" else list(state[f"{layer}.weight"].shape[1:])
        programs[f"{layer}.weight"] = pickles.tensor(held, [rows, *sides], [0] * (1 + len(sides)))
        if draw.chance(0.5):
            programs[f"{layer}.bias"] = pickles.tensor(held, [rows], [0])
        return f"{layer} of {rows} rows, {what}"
    return f"names: {what}"


def configuration(draw: Draw, files: Valid, place: Place) -> Attack:
    """The Python text in a published file's meta."""
    text = dict(_configurations(draw, place, tiny.meta_config(files.configs["tiny_faster"].model)))
    what = draw.choice(list(text))
    meta: dict[str, Any] = {draw.choice(("config", "cfg")): text[what]}
    if what == "classes":
        meta = {"CLASSES": tuple(draw.choice(CONTROL) for _ in range(2))}
    state = files.states["tiny_faster"]
    content: dict[str, Any] = {"meta": meta, "state_dict": state}
    torch.save(content, place.folder / "W.pth")
    return used(draw, "W.pth", files, "configuration", what)


def _configurations(draw: Draw, place: Place, text_of_faster: str) -> list[tuple[str, str]]:
    doubled = "a0 = ['x', 'x']\n" + "".join(f"a{k} = [a{k - 1}, a{k - 1}]\n" for k in range(1, 41))
    pairs = "a0 = dict(type='Resize')\n" + "".join(f"a{k} = dict(a=a{k - 1}, b=a{k - 1})\n" for k in range(1, 41))
    doubled_field, touch = draw.choice(("ratios", "scales", "strides")), f"touch {place.canary}"
    value, words = hostile_value(draw)
    value = {"true": "True", "false": "False", "null": "None"}.get(value, value.replace("NaN", "1e400-1e400"))
    names = (
        "refine_level=2",
        "nms_pre=10",
        "max_per_img=10",
        "score_thr=0.0",
        "max_per_img=3",
        "size_divisor=32",
        "img_scale=(48, 32)",
        "ratios=[0.5, 1.0, 2.0]",
        "scales=[8]",
        "strides=[4, 8, 16, 32, 64]",
    )
    field = draw.choice(names)
    return [
        (
            "lists that name themselves 40 times",
            doubled + f"model = dict(rpn_head=dict(anchor_generator=dict({doubled_field}=a40)))\n",
        ),
        ("dictionaries that name themselves 40 times", pairs + "test_pipeline = [a40]\nmodel = dict()\n"),
        (f"{field.split('=')[0]} = {words}", text_of_faster.replace(field, f"{field.split('=')[0]}={value}")),
        ("damaged", damaged(draw, text_of_faster.encode())[0].decode("latin1")),
        (
            "calls",
            f"import os\nmodel = os.system({touch!r})\nx = __import__('os').system({touch!r})\n",
        ),
        ("numbers", "a = 10.0\n" + "a = a * a\n" * 60 + "model = dict(test_cfg=dict(rcnn=dict(score_thr=a)))\n"),
        ("powers", "a = 10 ** 10 ** 10\nb = 'x' * 10 ** 10\nc = [0] * 10 ** 10\nd = 1 << 10 ** 10\nmodel = dict()\n"),
        ("nested", "model = " + "dict(a=" * 5000 + "1" + ")" * 5000 + "\n"),
        ("parentheses", "model = " + "(" * 100_000 + ")" * 100_000 + "\n"),
        ("minus", "model = " + "-" * 100_000 + "1\n"),
        ("sum", "model = " + "+".join("1" * 100_000) + "\n"),
        ("digits", "model = " + "9" * 100_000 + "\n"),
        ("lines", "a = 1\n" * 200_000),
        ("null", "model = dict(a='\x00')\n"),
        ("control", f"model = dict(backbone=dict(style={draw.choice(CONTROL)!r}))\n"),
        ("long string", f"model = dict(backbone=dict(style={'x' * 1_000_000!r}))\n"),
        ("types", f"model = {value}\ntest_pipeline = {value}\ndata = {value}\n"),
        ("unhashable", "model = {[1]: 2}\nmodel = {(1, [2]): 3}\n"),
        ("classes", ""),
    ]


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {
    "published .pth": published,
    "legacy .pth": lambda draw, files, place: published(draw, files, place, legacy=True),
    "configuration": configuration,
}
