"""Faults planted on purpose: an attack that cannot fail proves nothing, so each of these has to be found.

python -m tests.attack planted
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import libra_ops
from tests.attack.files import containers, pickles, runs, weights
from tests.attack.files.attack import Attack, Place
from tests.attack.files.valid import Valid
from tests.attack.operations import call, overlaps, run
from tests.attack.table import FAILED, HANDLED

_CALLS = 100  # of each faulty operation, some of which are refused before the fault
_AT_ONCE = ("crashes", "hangs", "exits")  # seen at every call, and slow
_BOX_IOU = overlaps.OPERATIONS[0]


def _then(change: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    return lambda boxes1, boxes2, kind: change(libra_ops.box_iou(boxes1, boxes2, kind))


def _writes(boxes1: torch.Tensor, boxes2: torch.Tensor, kind: str) -> torch.Tensor:
    found = libra_ops.box_iou(boxes1, boxes2, kind)
    with torch.no_grad():
        boxes1.data.as_strided((min(1, boxes1.numel()),), (1,)).add_(1)
    return found


def _ignores_strides(boxes1: torch.Tensor, boxes2: torch.Tensor, kind: str) -> torch.Tensor:
    libra_ops.box_iou(boxes1, boxes2, kind)
    memory = boxes1.detach().untyped_storage().nbytes() // boxes1.element_size()
    rows = boxes1.detach().as_strided((min(memory, boxes1.numel()),), (1,), 0)
    wrong = torch.zeros(boxes1.numel(), dtype=boxes1.dtype)
    wrong[: len(rows)] = rows
    return libra_ops.box_iou(wrong.view(boxes1.shape), boxes2, kind)


def _raises(error: Exception) -> Callable[..., Any]:
    def function(boxes1: torch.Tensor, boxes2: torch.Tensor, kind: str) -> Any:
        raise error

    return function


def _hangs(boxes1: torch.Tensor, boxes2: torch.Tensor, kind: str) -> Any:
    while True:
        pass


OPERATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "crashes": (lambda boxes1, boxes2, kind: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
    "hangs": (_hangs, "time-out"),
    "exits": (lambda boxes1, boxes2, kind: os._exit(3), "exit code 3"),
    "writes to an input": (_writes, "wrong: an input was written to"),
    "ignores strides": (_ignores_strides, "wrong: not what the twin gives|wrong: something else for the same values"),
    "raises a KeyError": (_raises(KeyError("boxes1")), "KeyError"),
    "raises a RuntimeError": (_raises(RuntimeError("boxes1: no")), "RuntimeError"),
    "names no argument": (_raises(ValueError("bad")), "ValueError that names no argument"),
    "tells too much": (_raises(ValueError("boxes1: " + "a" * 500)), "ValueError of more than 400 characters"),
    "tells an escape": (_raises(ValueError("boxes1: \x1b[2J")), "ValueError with control characters"),
    "is random": (
        _then(lambda x: x + torch.tensor(int.from_bytes(os.urandom(2), "big") * 1e-9)),
        "wrong: .*something else",
    ),
    "has another shape": (_then(lambda x: x[..., :0]), "wrong: not what was asked for .expected shape"),
    "has another dtype": (_then(lambda x: x.to(torch.float16)), "wrong: not what was asked for .expected dtype"),
    "is out of range": (_then(lambda x: x + 2), "wrong: not what was asked for .an overlap of finite boxes"),
    "is inexact": (_then(lambda x: x * 0.999), "wrong: not what the twin gives"),
    "takes memory": (_then(lambda x: (torch.ones(300_000_000), x)[1]), "memory grew|RuntimeError: .*can't allocate"),
}


def _says(words: str, code: int = 0) -> Callable[[], None]:
    def function() -> None:
        print(words, end="", flush=True)
        os._exit(code)

    return function


def _allocates() -> None:
    memory = bytearray(1300 * 2**20)
    memory[::4096] = b"x" * len(memory[::4096])


def _fails(error: Exception) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def _files(place: Place) -> dict[str, tuple[Callable[[], None], str]]:
    return {
        "crashes": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ended by SIGSEGV"),
        "hangs": (lambda: _hangs(*(torch.zeros(0, 4),) * 2, ""), "time-out"),
        "takes memory": (_allocates, "took more than 1024 MB"),
        "touches the canary": (place.canary.touch, "wrote outside"),
        "writes beside": (lambda: Path("../beside").touch(), "wrote outside"),
        "writes above": (lambda: Path("../../above").touch(), "wrote outside"),
        "writes to valid files": (lambda: (place.seeds / "planted").touch(), "wrote outside"),
        "has a traceback": (_fails(KeyError("x")), "traceback in .*KeyError"),
        "is wrong": (_fails(AssertionError("two is three")), "wrong: two is three"),
        "clears the screen": (_says("\x1b[2J"), "raw control characters"),
        "turns the line": (_says("a\u202eb"), "raw control characters"),
        "overwrites the line": (_says("secret\rshown\n"), "raw control characters"),
        "prints too much": (_says("a" * 300_000), "printed more"),
        "ends without a sentence": (_says("oh\n", 2), "exit code 2 with 0 sentences"),
        "ends with two": (_says("libra: error: a\nlibra: error: b\n", 2), "exit code 2 with 2 sentences"),
        "ends otherwise": (_says("libra: error: a\n", 4), "exit code 4"),
    }


def _valid(seeds: Path, files: Valid) -> dict[str, Callable[[Place], Attack]]:
    """Valid files of each kind, read as hostile ones are: where these are refused, an attack looks at nothing."""
    data, photo = str(seeds / "data"), str(seeds / "color.png")
    found = {}

    def add(words: str, *arguments: str, function: Callable[[], None] | None = None) -> None:
        found[words] = lambda place: Attack("valid", words, arguments, function)

    names = [f"{recipe}{suffix}.pth" for recipe in weights.PUBLISHED for suffix in ("", "-legacy")]
    for name in (*names, "converted.safetensors", "run", "run/checkpoints/epoch_0001.pt"):
        add(name, "predict", str(seeds / name), photo, "--json", "found.json")
    for name in files.images:
        if not name.startswith("float"):
            add(name, "predict", str(seeds / "tiny_plain.pth"), str(seeds / name), "--output", "drawn")
    add("voc", "check", str(seeds / "voc"))
    add("data", "check", data)
    add("data that is evaluated", "eval", str(seeds / "tiny_plain.pth"), "--data", data, "--output", "evaluation")
    more = ("--data", data, "--epochs", "1", "--output", "run")
    add("backbone.safetensors", "train", "--weights", str(seeds / "backbone.safetensors"), *more)
    proposals = str(seeds / "proposals.safetensors")
    regions = ("--proposals", proposals, "--eval-proposals", proposals, "--eval-split", "train")
    add("proposals that are trained with", "train", "--recipe", "tiny_fast", *regions, *more)
    add("proposals", function=lambda: runs.read_proposals(proposals, data))
    rewritten: dict[str, bytes] = {}
    program = pickles.program(pickles.value(torch.load(seeds / "run/checkpoints/epoch_0001.pt"), rewritten))
    archive = containers.zip_file(program, rewritten)

    def checkpoint(place: Place) -> Attack:
        (place.folder / "epoch_0001.pt").write_bytes(archive)
        return Attack("valid", "checkpoint", ("predict", "epoch_0001.pt", photo, "--json", "found.json"))

    found["a checkpoint that is written by hand"] = checkpoint
    return found


def missed_operations() -> list[str]:
    """Planted faults of operations that were not found."""
    missed = []
    call._OPERATORS = 0.0
    for name, (function, expected) in OPERATIONS.items():
        call.FUNCTIONS = (replace(_BOX_IOU, function=function),)
        call._parameters.cache_clear()
        run.SECONDS_OF_A_CALL = 0.5 if name == "hangs" else 10.0
        with tempfile.TemporaryDirectory() as folder:
            calls = {"ignores strides": 1000, "takes memory": 6}.get(name, 2 if name in _AT_ONCE else _CALLS)
            table = run.attack_operations(0, calls, 5, Path(folder), tell=False)
        if not any(re.match(expected, cause) for _, cause in table.causes):
            missed.append(f"operation that {name}: found {sorted(cause for _, cause in table.causes) or 'nothing'}")
    return missed


def missed_files() -> list[str]:
    """Planted faults of readers that were not found, and what is good but was found."""
    from tests.attack.files.run import Attacker

    missed = []
    with tempfile.TemporaryDirectory(prefix="libra-attack-") as work:
        attacker = Attacker(Path(work))
        names = list(_files(Place(Path(), Path(), Path())))
        for number, name in enumerate(names):
            outcome = attacker.attempt(
                lambda place, name=name: Attack("planted", name, function=_files(place)[name][0]),
                number,
                seconds=2 if name == "hangs" else 20,
            )
            expected = _files(Place(Path(), Path(), Path()))[name][1]
            if outcome.verdict != FAILED or not re.match(expected, outcome.cause):
                missed.append(f"reader that {name}: {outcome.verdict} {outcome.cause}")
        for number, (words, make) in enumerate(_valid(attacker.seeds, attacker.valid).items(), start=100):
            outcome = attacker.attempt(make, number)
            if outcome.verdict != HANDLED:
                missed.append(f"{words}, which is valid: {outcome.verdict} {outcome.cause}\n{outcome.details}")
    return missed


def missed() -> list[str]:
    return [*missed_operations(), *missed_files()]
