"""Published files, checkpoints of runs and safetensors: tensors of strangers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.attack.files import containers, pickles, valid
from tests.attack.files.attack import Attack, Place
from tests.attack.files.bombs import draw_bomb, draw_claim
from tests.attack.files.mutate import damaged, flipped
from tests.attack.files.texts import CONTROL, hostile_json, hostile_value, with_field
from tests.attack.files.valid import Valid
from tests.attack.operations.draw import FLOATS, Draw

_FLIPS = 16  # single bits that one attack flips, one after the other
_PUBLISHED = ("tiny_faster", "tiny_retina", "tiny_plain")


def used(draw: Draw, file: str, valid_files: Valid, kind: str, words: str) -> Attack:
    """A file of weights in one of the commands that read such."""
    photo, found = str(valid_files.folder / "data" / "val_0.png"), "found.json"
    command = draw.choice(("predict",) * 7 + ("convert", "convert", "eval", "train"))
    if command == "convert":
        return Attack(kind, words, ("convert", file, "--output", "converted.safetensors"))
    if command == "eval":
        return Attack(kind, words, ("eval", file, "--data", str(valid_files.folder / "data"), "--split", "val",
                                    "--workers", "0", "--output", "evaluation"))  # fmt: skip
    if command == "train":
        return Attack(kind, words, ("train", "--weights", file, "--data", str(valid_files.folder / "data"), "--epochs",
                                    "1", "--workers", "0", "--output", "run"))  # fmt: skip
    more = ("--partial",) if draw.chance(0.2) else ()
    return Attack(kind, words, ("predict", file, photo, "--json", found, *more), check=lambda: check_found(found))


def check_found(file: str) -> None:
    """What `libra predict --json` has written: strict JSON of at most as many detections as there may be."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {file}")

    entries = json.loads(Path(file).read_text(), parse_constant=refuse)
    assert isinstance(entries, list) and len(entries) <= 1000, f"{len(entries)} detections"
    for entry in entries:
        assert set(entry) == {"bbox", "category_id", "score", "file_name"} and len(entry["bbox"]) == 4
        assert 0 <= entry["score"] <= 1


def published(draw: Draw, files: Valid, place: Place, *, legacy: bool = False) -> Attack:
    recipe = draw.choice(_PUBLISHED)
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
            words = _hostile_program(draw, place, programs, root)
        elif what == "names":
            words = _hostile_names(draw, programs, state)
        root["state_dict"] = root["state_dict"] or pickles.dict_of(programs)
        program = pickles.program(root.get("all") or pickles.dict_of({k: v for k, v in root.items() if k != "all"}))
        if what == "zip":
            content, words = containers.hostile_zip(draw, program, storages)
        elif legacy:
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


def _hostile_program(draw: Draw, place: Place, programs: dict[str, bytes], root: dict[str, bytes]) -> str:
    made, words = draw.choice((draw_claim, draw_bomb, draw_bomb, lambda d: pickles.draw_exploit(d, place.canary)))(draw)
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


def _hostile_names(draw: Draw, programs: dict[str, bytes], state: dict[str, Tensor]) -> str:
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
        held = pickles.storage("FloatStorage", "claim", 4)
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
    text = dict(_configurations(draw, place))
    what = draw.choice(list(text))
    meta: dict[str, Any] = {draw.choice(("config", "cfg")): text[what]}
    if what == "classes":
        meta = {"CLASSES": tuple(draw.choice(CONTROL) for _ in range(2))}
    state = files.states["tiny_faster"]
    content: dict[str, Any] = {"meta": meta, "state_dict": state}
    torch.save(content, place.folder / "W.pth")
    return used(draw, "W.pth", files, "configuration", what)


def _configurations(draw: Draw, place: Place) -> list[tuple[str, str]]:
    from tests.attack.files.tiny import META_CONFIG

    doubled = "a0 = ['x', 'x']\n" + "".join(f"a{k} = [a{k - 1}, a{k - 1}]\n" for k in range(1, 41))
    pairs = "a0 = dict(type='Resize')\n" + "".join(f"a{k} = dict(a=a{k - 1}, b=a{k - 1})\n" for k in range(1, 41))
    value, words = hostile_value(draw)
    value = {"true": "True", "false": "False", "null": "None"}.get(value, value.replace("NaN", "1e400-1e400"))
    names = ("refine_level=2", "nms_pre=10", "max_per_img=10", "score_thr=0.0", "max_per_img=3", "size_divisor=32",
             "img_scale=(48, 32)", "ratios=[0.5, 1.0, 2.0]", "scales=[8]", "strides=[4, 8, 16, 32, 64]")  # fmt: skip
    field = draw.choice(names)
    return [
        ("lists that name themselves 40 times", doubled + f"model = dict(rpn_head=dict(anchor_generator=dict({draw.choice(('ratios', 'scales', 'strides'))}=a40)))\n"),
        ("dictionaries that name themselves 40 times", pairs + "test_pipeline = [a40]\nmodel = dict()\n"),
        (f"{field.split('=')[0]} = {words}", META_CONFIG.replace(field, f"{field.split('=')[0]}={value}")),
        ("damaged", damaged(draw, META_CONFIG.encode())[0].decode("latin1")),
        ("calls", f"import os\nmodel = os.system('touch {place.canary}')\nx = __import__('os').system('touch {place.canary}')\n"),
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
    ]  # fmt: skip


def checkpoint(draw: Draw, files: Valid, place: Place) -> Attack:
    """A checkpoint of a run, as a file or in its folder."""
    name = "run/checkpoints/epoch_0001.pt"
    data = files.bytes[name]
    what = draw.choice(
        ("damage", "pickle", "pickle", "value", "value", "value", "program", "program", "field", "field")
    )
    if what == "damage":
        content, words = damaged(draw, data)
    elif what == "pickle":
        _, program = valid.pickle_in(data)
        changed, words = damaged(draw, program)
        content, words = valid.with_pickle(data, changed), f"pickle: {words}"
    else:
        values = torch.load(place.seeds / name, weights_only=True)
        content, words = _hostile_checkpoint(draw, files, place, values, what)
    run = place.folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes(files.bytes["run/config.json"])
    file = (
        run
        / "checkpoints"
        / draw.choice(("epoch_0001.pt", "epoch_0001.pt", "epoch_0001_step_000001.pt", "epoch_" + "9" * 200 + ".pt"))
    )
    file.write_bytes(content)
    if draw.chance(0.15):
        return Attack("checkpoint", words, ("train", "--output", "run", "--resume", "--epochs", "2"))
    source = draw.choice(("run", str(file.relative_to(place.folder))))
    return used(draw, source, files, "checkpoint", words)


def _hostile_checkpoint(draw: Draw, files: Valid, place: Place, values: dict[str, Any], what: str) -> tuple[bytes, str]:
    """A whole checkpoint with one value that is hostile; its tensors stay as they are."""
    import io

    if what == "field":
        values["config"], words = with_field(draw, files.config())
    elif what == "value":
        name = draw.choice([key for key in values if key != "model"])
        pool: tuple[Any, ...] = (10**9, 10**18, 10**400, -1, float("nan"), float("inf"), "x", [], {}, True, None, (), [[]],
                [[1, "a"], [2, "\x1b[2J"]], [[10**400, "a"], [1, "b"]], [["x", "y"], ["z", 3]], [[3, "red box"]] * 10**5,
                {"state": {}, "param_groups": []}, torch.ones(3), "[" * 100_000, "1" * 10_000, [[3, "a" * 10**6], [7, "b"]])  # fmt: skip
        position = draw.integer(0, len(pool) - 1)
        values[name], words = pool[position], f"{name} = number {position} of the hostile values"
    else:
        made, words = draw.choice((draw_claim, draw_bomb, lambda d: pickles.draw_exploit(d, place.canary)))(draw)
        name = draw.choice(
            ("model", "ema", "optimizer", "config", "categories", "epoch", "format", "seconds", "beside")
        )
        programs, storages = pickles.tensors(values["model"])
        storages["claim"] = struct.pack("<4f", 1, 2, 3, 4)
        state = pickles.dict_of(programs)
        whole = {
            "config": pickles.text(values["config"]), "categories": pickles.list_of(), "model": state, "ema": b"N",
            "optimizer": pickles.dict_of({}), "epoch": pickles.integer(1), "step": pickles.integer(0),
            "steps_per_epoch": pickles.integer(1), "seconds": pickles.integer(1), "format": pickles.integer(values["format"]),
        }  # fmt: skip
        whole["categories"] = pickles.list_of(
            *(pickles.tuple_of(pickles.integer(id), pickles.text(of)) for id, of in values["categories"])
        )
        if name == "model" and draw.chance(0.7):
            programs[draw.choice(list(programs))] = made
            made = pickles.dict_of(programs)
        whole[name] = made
        return containers.zip_file(pickles.program(pickles.dict_of(whole)), storages), f"{name} = {words}"
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue(), words


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


def flips(draw: Draw, files: Valid, place: Place) -> Attack:
    """Single bits: each is refused, or it does not matter."""
    name = draw.choice(
        ("run/checkpoints/epoch_0001.pt", "run/checkpoints/epoch_0001.pt", *(f"{x}.pth" for x in _PUBLISHED))
    )
    changed = [flipped(draw, files.bytes[name]) for _ in range(_FLIPS)]
    read = _all_of_checkpoint if name.startswith("run/") else _all_of_weights
    file = place.folder / Path(name).name

    def try_all() -> None:
        wanted = read(place.seeds / name)
        for content, position in changed:
            file.write_bytes(content)
            try:
                found = read(file)
            except (ValueError, TypeError, OSError):
                continue
            assert _same(found, wanted), f"bit {position} of {name} flipped: other content is read without a word"

    positions = ", ".join(str(position) for _, position in changed)
    return Attack("bit flips", f"{name}: bits {positions}", function=try_all)


def _all_of_checkpoint(file: Path) -> Any:
    from libra_det.checkpoint import load_checkpoint

    return vars(load_checkpoint(file))


def _all_of_weights(file: Path) -> Any:
    from libra_det.weights.load import read_weights

    found = read_weights(file)
    return {"state": found.state, "meta": found.meta}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.dtype in FLOATS else tensor


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {
    "published .pth": published,
    "legacy .pth": lambda draw, files, place: published(draw, files, place, legacy=True),
    "checkpoint": checkpoint,
    "safetensors": safetensors,
    "configuration": configuration,
    "bit flips": flips,
}
