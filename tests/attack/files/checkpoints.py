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
    if draw.chance(0.3):
        return Attack("checkpoint", words, ("train", "--output", "run", "--resume", "--epochs", "2"))
    source = draw.choice(("run", str(file.relative_to(place.folder))))
    return used(draw, source, files, "checkpoint", words)


def _hostile_checkpoint(draw: Draw, files: Valid, place: Place, values: dict[str, Any], what: str) -> tuple[bytes, str]:
    """A whole checkpoint but for one value, at any depth, that is hostile."""
    if what == "field":
        values["config"], words = with_field(draw, files.config())
    elif what == "value":
        pool = hostile_values()
        position = draw.integer(0, len(pool) - 1)
        path = pickles.replaced(draw, values, pool[position])
        words = f"{path} = number {position} of the hostile values"
    else:
        made, words = draw.choice((draw_claim, draw_bomb, lambda d: pickles.draw_exploit(d, place.canary)))(draw)
        words = f"{pickles.replaced(draw, values, pickles.Made(made))} = {words}"
        storages: dict[str, bytes] = {}
        program = pickles.program(pickles.value(values, storages))
        return containers.zip_file(program, {**storages, "claim": struct.pack("<4f", 1, 2, 3, 4)}), words
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue(), words


def hostile_values() -> list[Any]:
    numbers = [0, 1, -1, 2, 10**9, 10**18, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None]
    texts = ["x", "", "\x1b[2J", "a" * 10**6, "1" * 10_000, "[" * 100_000, "\ud800"]
    nested: list[Any] = [
        [],
        {},
        (),
        [[]],
        [[1, "a"], [2, "\x1b[2J"]],
        [[10**400, "a"], [1, "b"]],
        [[3, "red box"]] * 10**5,
    ]
    nested += [{"state": {}, "param_groups": []}, {1: {2: 3}}, {"a": [torch.ones(3)]}, [[3, "a" * 10**6], [7, "b"]]]
    of_one = [torch.ones(3), torch.ones(()), torch.zeros(0), torch.full((4,), float("nan")), torch.tensor(2**62)]
    kinds = (torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16)
    of_one += [torch.ones(3, dtype=kind) for kind in kinds]
    of_one += [torch.ones(1).expand(10**6, 10**6), torch.ones(2, 3).T, torch.zeros(10**9, 0), torch.ones(3).to("meta")]
    return [*numbers, *texts, *nested, *of_one]


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
