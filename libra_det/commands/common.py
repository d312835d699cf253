"""What several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from libra_det.terminal import printable, say, short

if TYPE_CHECKING:
    from libra_det.predict import Detector


def quoted(value: Path | str) -> str:
    """As a shell reads it."""
    return shlex.quote(str(value))


def beside(source: Path, suffix: str) -> Path:
    """A name beside a run folder (runs/lr0.01 -> runs/lr0.01.pt2) or a file of weights (W.pth -> W.pt2)."""
    source = source if source.name else source.absolute()  # "." has no name
    return source.with_name(source.name + suffix) if source.is_dir() else source.with_suffix(suffix)


def one_source(run: Path | None, weights: Path | None) -> Path:
    """The run or file that the user names, which may be given as RUN or as --weights.

    Raises:
        ValueError: both or neither are given.
    """
    if (run is None) == (weights is None):
        got = "neither" if run is None else f"{run} and --weights {weights}"
        raise ValueError(f"RUN: expected a run folder or a file of weights, as RUN or as --weights FILE; got {got}")
    return run if weights is None else weights


def loaded(source: Path, device: str, recipe: str | None, partial: bool, flip: bool, half: bool) -> Detector:
    """The detector, with a line about it and what was done to load it."""
    from libra_det.devices import choose_device
    from libra_det.inference import Inference
    from libra_det.predict import load_detector

    chosen = choose_device(device)
    detector = load_detector(source, chosen, recipe=recipe, partial=partial, inference=Inference(flip, half))
    print_notes(source, detector.notes)
    say(f"{source}: {printable(detector.config.recipe)}, {described(detector.categories)} ({chosen})", flush=True)
    return detector


def print_notes(source: Path, notes: Sequence[str]) -> None:
    for note in notes:
        say(f"{source}: {note}")


def described(categories: Sequence[tuple[int, str]]) -> str:
    names = [short(name, 60) for _, name in categories]
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
