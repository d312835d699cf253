"""Run folders and files of proposals."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from tests.attack.files.attack import Attack, Place
from tests.attack.files.mutate import damaged
from tests.attack.files.texts import CONTROL, hostile_json, hostile_value, with_field
from tests.attack.files.valid import Valid
from tests.attack.operations.draw import INT64, Draw

_PARTS = ("config.json", "config.json", "config.json", "config.json", "log.jsonl", "log.jsonl", "metrics.json")


def run_folder(draw: Draw, files: Valid, place: Place) -> Attack:
    """A run that is to be continued; its checkpoint is good."""
    run = place.folder / "run"
    for name, content in files.bytes.items():
        if name.startswith("run/") and "pictures" not in name:
            (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (place.folder / name).write_bytes(content)
    part = draw.choice(_PARTS)
    good = (run / part).read_bytes()
    if part == "config.json":
        content, words = _hostile_config(draw, files, good)
    elif part == "log.jsonl":
        content, words = _hostile_log(draw, good)
    else:
        content, words = hostile_json(draw, json.loads(good))
    (run / part).write_bytes(content)
    if draw.chance(0.1):
        (
            run / "checkpoints" / draw.choice(("epoch_.pt", "epoch_1.pt", "epoch_9999999999999999999999.pt", "a.pt"))
        ).mkdir()
        words += ", and a folder among the checkpoints"
    return Attack("run folder", f"{part}: {words}", ("train", "--output", "run", "--resume", "--epochs", "2"))


def _hostile_config(draw: Draw, files: Valid, good: bytes) -> tuple[bytes, str]:
    what = draw.choice(("field", "field", "field", "json", "json", "damage"))
    if what == "field":
        text, words = with_field(draw, json.loads(good))
        return text.encode("utf-8", "surrogatepass"), words
    return hostile_json(draw, json.loads(good)) if what == "json" else damaged(draw, good)


def _hostile_log(draw: Draw, good: bytes) -> tuple[bytes, str]:
    lines = good.splitlines()
    what = draw.choice(("value", "value", "value", "damage", "many", "line", "steps", "no end"))
    if what == "damage":
        return damaged(draw, good)
    if what == "many":
        return good + lines[-1] * 1 + b"\n" + (lines[-1] + b"\n") * 100_000, "100,000 lines"
    if what == "no end":
        return good + b'{"step": 1', "a last line without end"
    if what == "line":
        value, words = hostile_value(draw)
        return good + value.encode("utf-8", "surrogatepass") + b"\n", f"a line {words}"
    if what == "steps":
        content = json.loads(lines[0])
        content["step"] = draw.choice((2**63, -1, 10**400, 1.5, None, "x", [1], True, 0))
        return json.dumps(content).encode() + b"\n" + good, f"step {str(content['step'])[:20]}"
    place = draw.integer(0, len(lines) - 1)
    lines[place], words = hostile_json(draw, json.loads(lines[place]))
    return b"\n".join(lines) + b"\n", words


def proposals(draw: Draw, files: Valid, place: Place) -> Attack:
    """Mostly read by ProposalFile itself: a training takes ten times as long."""
    good = files.bytes["proposals.safetensors"]
    content, words = damaged(draw, good) if draw.chance(0.3) else _hostile_proposals(draw, good)
    (place.folder / "p.safetensors").write_bytes(content)
    data = str(files.folder / "data")
    if draw.chance(0.12):
        arguments = (
            "eval",
            str(files.folder / "tiny_fast.pth"),
            "--data",
            data,
            "--split",
            "train",
            "--workers",
            "0",
            "--proposals",
            "p.safetensors",
            "--output",
            "evaluation",
        )
        return Attack("proposals", words, arguments)
    if draw.chance(0.1):
        arguments = (
            "train",
            "--recipe",
            "tiny_fast",
            "--data",
            data,
            "--eval-split",
            "train",
            "--epochs",
            "1",
            "--workers",
            "0",
            "--proposals",
            "p.safetensors",
            "--eval-proposals",
            "p.safetensors",
            "--output",
            "run",
        )
        return Attack("proposals", words, arguments)
    return Attack("proposals", words, function=lambda: read_proposals("p.safetensors", data))


def read_proposals(name: str, data: str) -> None:
    from libra_det.config import DataConfig
    from libra_det.data import load_annotations
    from libra_det.data.proposal_file import ProposalFile

    images = load_annotations(DataConfig(data=data), "train").images
    file = ProposalFile(name)
    file.check(images, "train")
    most = file.most(images)
    assert 0 <= most < 10**9, f"{most} proposals at most"
    for image in images:
        for limit in (2, 2000):
            boxes, scores = file.read(image.id, limit)
            fits = boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.shape[0] == scores.shape[0] <= limit
            assert fits, f"regions {list(boxes.shape)} with scores {list(scores.shape)}"
            assert boxes.is_floating_point() and scores.is_floating_point(), f"regions of {boxes.dtype}"
            assert boxes.isfinite().all(), "a region that is not finite"


def _hostile_proposals(draw: Draw, good: bytes) -> tuple[bytes, str]:
    (length,) = struct.unpack_from("<Q", good)
    metadata = json.loads(good[8 : 8 + length])["__metadata__"]
    arrays: dict[str, Any] = load(good)
    name = draw.choice(list(arrays))
    what = draw.choice(
        ("values", "values", "offsets", "offsets", "dtype", "shape", "missing", "metadata", "names", "ids")
    )
    if what == "values" and arrays[name].size:
        flat = arrays[name].reshape(-1)
        pool = (np.nan, np.inf, -np.inf, 1e38, -1.0) if flat.dtype.kind == "f" else (0, 1, 255, 27, 128)
        if flat.dtype == np.int64:
            pool = INT64
        flat[draw.integer(0, len(flat) - 1)] = value = draw.choice(pool)
        what = f"{name} with {value}"
    elif what == "offsets":
        arrays["offsets"] = np.array(
            draw.choice(
                (
                    [0, 2**62, 2**63 - 1],
                    [5, 0, -1],
                    [-(2**63), 0, 1],
                    [0, 1],
                    [0],
                    [],
                    [0, 1000, 2000],
                    [0, -1, 2**40],
                    [[0, 1, 2]],
                    [3, 3, 3],
                )
            )
        )
        arrays["offsets"] = arrays["offsets"].astype(np.int64)
    elif what == "dtype":
        kind = draw.choice(("f8", "f4", "f2", "i8", "i4", "i2", "u1", "?", "u8"))
        with np.errstate(all="ignore"):
            arrays[name] = arrays[name].astype(kind)
        what = f"{name} as {kind}"
    elif what == "shape":
        array = arrays[name]
        arrays[name] = draw.choice((array[None], array[..., None], array[:0], array[:-1], array.reshape(-1), array[:1]))
        what = f"{name} of shape {list(arrays[name].shape)}"
    elif what == "missing":
        del arrays[name]
        what = f"no {name}"
    elif what == "metadata":
        key = draw.choice([*metadata, "format", "limit", "model"])
        metadata[key] = draw.choice((*(text for text in CONTROL if "\ud800" not in text), "10" * 300, "-1", "nan", "x"))
        what = f"metadata {key} = {metadata[key][:20]!r}"
    elif what == "names":
        text = draw.choice(
            ("\0" * 1000, "", "train_0.png", "train_0.png\0train_0.png", "\x1b[2J\0\x1b[2J", "a" * 10**6)
        )
        arrays["file_names"] = np.frombuffer(draw.choice((text.encode(), b"\xff\xfe\x00\xff")), np.uint8)
    else:
        arrays["image_ids"] = np.array(draw.choice(([1, 1], [2, 1], [1], [], [1, 2, 3], [-(2**63), 2**63 - 1]))).astype(
            np.int64
        )
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata), what


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {"run folder": run_folder, "proposals": proposals}
