"""Checkpoints of runs, and single bits of what has checksums."""

from __future__ import annotations

import io
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
from tests.attack.files.texts import with_field
from tests.attack.files.valid import Valid
from tests.attack.files.weights import PUBLISHED, used
from tests.attack.operations.draw import Draw

_FLIPS = 16  # single bits that one attack flips, one after the other


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
    if what == "field":
        values["config"], words = with_field(draw, files.config())
    elif what == "value":
        name = draw.choice([key for key in values if key != "model"])
        pool: tuple[Any, ...] = (
            10**9,
            10**18,
            10**400,
            -1,
            float("nan"),
            float("inf"),
            "x",
            [],
            {},
            True,
            None,
            (),
            [[]],
            [[1, "a"], [2, "\x1b[2J"]],
            [[10**400, "a"], [1, "b"]],
            [["x", "y"], ["z", 3]],
            [[3, "red box"]] * 10**5,
            {"state": {}, "param_groups": []},
            torch.ones(3),
            "[" * 100_000,
            "1" * 10_000,
            [[3, "a" * 10**6], [7, "b"]],
        )
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
            "config": pickles.text(values["config"]),
            "categories": pickles.list_of(),
            "model": state,
            "ema": b"N",
            "optimizer": pickles.dict_of({}),
            "epoch": pickles.integer(1),
            "step": pickles.integer(0),
            "steps_per_epoch": pickles.integer(1),
            "seconds": pickles.integer(1),
            "format": pickles.integer(values["format"]),
        }
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


def flips(draw: Draw, files: Valid, place: Place) -> Attack:
    """Single bits: each is refused, or it does not matter."""
    name = draw.choice(
        ("run/checkpoints/epoch_0001.pt", "run/checkpoints/epoch_0001.pt", *(f"{x}.pth" for x in PUBLISHED))
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
            if not _same(found, wanted):
                print(f"bit {position}")
                raise AssertionError(f"{name} with one bit flipped is read without a word, and its content is another")

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
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.is_floating_point() else tensor


MAKERS: dict[str, Callable[[Draw, Valid, Place], Attack]] = {"checkpoint": checkpoint, "bit flips": flips}
