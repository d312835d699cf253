"""Hostile files one after the other: each is made here and read in a child, in a folder of its own."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.attack.children import MB, idle_memory, run_forked
from tests.attack.files import annotations, checkpoints, images, runs, safetensors_files, valid, weights
from tests.attack.files.attack import Attack, Place
from tests.attack.files.verdict import REFUSED_BY_FUNCTION, WRONG, Seeds, judged
from tests.attack.operations.draw import Draw
from tests.attack.table import FAILED, Outcome, Table

SECONDS = 10.0
ADDRESS_SPACE = 3072 * MB  # beyond the parent's: a backstop
MAKERS = {
    **weights.MAKERS, **checkpoints.MAKERS, **safetensors_files.MAKERS, **runs.MAKERS, **annotations.MAKERS,
    **images.MAKERS,
}  # fmt: skip
SHARES = {
    "published .pth": 20, "legacy .pth": 9, "checkpoint": 12, "safetensors": 10, "configuration": 5, "bit flips": 8,
    "run folder": 8, "proposals": 7, "COCO JSON": 13, "VOC": 8, "image": 14,
}  # fmt: skip
assert MAKERS.keys() == SHARES.keys()


class Attacker:
    """The valid files, and a process that has imported everything, to be forked."""

    def __init__(self, work: Path) -> None:
        self.work, self.seeds = work, work / "seeds"
        self.seeds.mkdir()
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        os.environ.update(TQDM_DISABLE="1", HOME=str(work / "home"), COLUMNS="120", MPLCONFIGDIR=str(work / "home"))
        (work / "home").mkdir()
        import libra_det

        for module in pkgutil.walk_packages(libra_det.__path__, "libra_det."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        ended = run_forked(
            lambda: valid.make(self.seeds) or 0, seconds=300, address_space=None, output=work / "seeds.log"
        )
        if ended.code != 0:
            raise RuntimeError(f"valid files cannot be made ({ended.reason}):\n{(work / 'seeds.log').read_text()}")
        self.valid = valid.load(self.seeds)
        self.watch = Seeds(self.seeds)
        warm_up(self.seeds, work)
        self._own = {file.name for file in work.iterdir()}
        self.idle, self.resident = idle_memory(), _resident()

    def run(self, seed: int, number: int, kinds: Sequence[str] | None = None, *, keep: Path | None = None) -> Outcome:
        """Make the file of this number, and see how it is read. keep: copies the files there if it fails."""
        draw = Draw(seed, number)
        shares = {kind: share for kind, share in SHARES.items() if kinds is None or kind in kinds}
        kind = draw.choice([kind for kind, share in shares.items() for _ in range(share)])
        return self.attempt(lambda place: MAKERS[kind](draw, self.valid, place), number, keep=keep, seed=seed)

    def attempt(
        self,
        make: Callable[[Place], Attack],
        number: int,
        *,
        keep: Path | None = None,
        seed: int = 0,
        seconds: float = SECONDS,
    ) -> Outcome:
        outer = self.work / f"{number}"
        place = Place(outer / "a" / "b", self.seeds, self.work / "canary")
        place.folder.mkdir(parents=True)
        attack = make(place)
        output = outer / "output"
        idle = self.idle + max(0, _resident() - self.resident)
        read = functools.partial(_read, attack, place)
        ended = run_forked(read, seconds=seconds, address_space=ADDRESS_SPACE, idle=idle, output=output)
        words = output.read_bytes().decode("utf-8", "surrogateescape") if output.exists() else ""
        verdict, cause = judged(ended, words, place, self._outside(outer))
        details = ""
        if verdict == FAILED:
            details = self._details(seed, number, attack, ended, words)
            if keep is not None:
                shutil.copytree(place.folder, keep / f"{number}", dirs_exist_ok=True, symlinks=True)
        place.canary.unlink(missing_ok=True)
        shutil.rmtree(outer, ignore_errors=True)
        return Outcome(number, attack.kind, verdict, cause, details, ended.cpu_seconds)

    def _outside(self, outer: Path) -> list[str]:
        """What the child wrote that does not lie in its own folder."""
        found = {file.name for file in (*outer.iterdir(), *(outer / "a").iterdir())} - {"a", "b", "output"}
        found |= {file.name for file in self.work.iterdir()} - self._own - {outer.name, "canary"}
        if self.watch.changed():
            found.add("the valid files")
            self.watch = Seeds(self.seeds)
        return sorted(found)

    def _details(self, seed: int, number: int, attack: Attack, ended: object, words: str) -> str:
        command = f"libra {' '.join(attack.arguments)}" if attack.arguments else "a function"
        lines = (
            f"{attack.kind}: file {number} of seed {seed}: {attack.words[:2000]}",
            f"read by: {command}",
            f"ended: {ended}",
            f"its files are in the folder {number}, valid ones where {self.seeds} is",
            f"again: python -m tests.attack files --seed {seed} --only {number}",
            "",
            words if len(words) < 20_000 else f"{words[:10_000]}\n...\n{words[-10_000:]}",
        )
        return "\n".join(lines)


def warm_up(seeds: Path, work: Path) -> None:
    """Fills what a first call fills, so that children do not have to."""
    from libra_det import cli

    with open(work / "warm.log", "w") as log:
        out, err = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = log
        try:
            cli.main(
                [
                    "predict",
                    str(seeds / "tiny_faster.pth"),
                    str(seeds / "data" / "val_0.png"),
                    "--json",
                    str(work / "f.json"),
                ]
            )
            cli.main(["check", str(seeds / "data")])
        finally:
            sys.stdout, sys.stderr = out, err


def _read(attack: Attack, place: Place) -> int:
    """In the child."""
    from libra_det import cli

    os.chdir(place.folder)
    os.environ.update(HOME=str(place.folder), TMPDIR=str(place.folder))
    tempfile.tempdir = None
    try:
        if attack.function is not None:
            attack.function()
            return 0
        code = cli.main(list(attack.arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except AssertionError as error:
        if attack.function is None:
            raise
        print(f"WRONG: {error}")
        return WRONG
    except (ValueError, TypeError, OSError) as error:
        if attack.function is None:
            raise
        print(f"{type(error).__name__}: {error}")
        return REFUSED_BY_FUNCTION
    if code == 0 and attack.check is not None:
        try:
            attack.check()
        except (AssertionError, ValueError) as error:
            print(f"WRONG: {error}")
            return WRONG
    return code


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def attack_files(
    first: int, count: int, seed: int, folder: Path, *, kinds: Sequence[str] | None = None, tell: bool = True
) -> Table:
    """Files `first` to `first + count - 1`."""
    table, told = Table(folder), time.monotonic()
    slowest: list[tuple[float, int, str]] = []
    computed = 0.0
    with tempfile.TemporaryDirectory(prefix="libra-attack-") as work:
        attacker = Attacker(Path(work))
        for number in range(first, first + count):
            outcome = attacker.run(seed, number, kinds, keep=folder)
            table.add(outcome)
            computed += outcome.seconds
            slowest = sorted([*slowest, (outcome.seconds, number, outcome.kind)], reverse=True)[:5]
            if tell and time.monotonic() - told > 15:
                told = time.monotonic()
                print(f"{table.tried} files, {table.failed} failed", flush=True)
    if tell:
        print(f"{1000 * computed / max(1, count):.0f} ms of computing in the children for each file")
        print("slowest: " + ", ".join(f"{number} ({kind}, {seconds:.1f} s)" for seconds, number, kind in slowest))
    return table


def show_file(seed: int, number: int, folder: Path, kinds: Sequence[str] | None = None) -> int:
    """Runs one file and prints what it did; its files stay in a folder, whether it failed or not."""
    with tempfile.TemporaryDirectory(prefix="libra-attack-") as work:
        outcome = Attacker(Path(work)).run(seed, number, kinds, keep=folder)
    print(f"{outcome.kind}: {outcome.verdict} {outcome.cause}\n{outcome.details}")
    return int(outcome.verdict == FAILED)
