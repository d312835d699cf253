"""Whether what a child did is one of the ways that a hostile file may end."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from tests.attack.children import MB, Ended
from tests.attack.files.attack import Place
from tests.attack.table import FAILED, HANDLED, REFUSED

WRONG, REFUSED_BY_FUNCTION = 71, 72  # exit codes of a child: not what was promised; a function's promised error
MOST_MEMORY = 1024 * MB
MOST_OUTPUT = 200_000  # bytes: more is no message that a person reads
_CHAIN = "Traceback (most recent call last)"
_FRAME = re.compile(r'File "[^"]*/(libra_(?:det|ops)/[^"]+)", line \d+, in (\S+)')
_PROGRESS = re.compile(r"\r[^\r\n]*\d+%\|[^\r\n]*\]|\r +\r|\r *(?=\n|$)")
"""What tqdm draws; its lines are between carriage returns."""
_LAST = re.compile(r"^([\w.]+(?:Error|Exception|Warning|Interrupt|Exit)?)(?:: (.*))?$")


class Seeds:
    """Tells whether somebody wrote to the folder of valid files, or beside the folder of an attack."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = self._listed()

    def changed(self) -> bool:
        return self._listed() != self._before

    def _listed(self) -> dict[str, tuple[int, int]]:
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in self._folder.rglob("*")}


def judged(ended: Ended, words: str, place: Place, outside: list[str]) -> tuple[str, str]:
    """Verdict and cause."""
    if place.canary.exists() or outside:
        return FAILED, f"wrote outside of its folder: {', '.join(outside) or 'the canary'}"
    if ended.timed_out:
        return FAILED, "time-out"
    if ended.signal is not None:
        return FAILED, f"ended by {ended.reason}"
    if _CHAIN in words:
        return FAILED, traceback_cause(words)
    if ended.grown > MOST_MEMORY:
        return FAILED, f"took more than {MOST_MEMORY // MB} MB"
    if ended.code == WRONG:
        return FAILED, "wrong: " + (words.rpartition("WRONG: ")[2].strip().splitlines() or ["?"])[0][:200]
    unseen = raw_control_characters(words)
    if unseen:
        return FAILED, f"raw control characters on the terminal: {unseen}"
    if len(words) > MOST_OUTPUT:
        return FAILED, f"printed more than {MOST_OUTPUT} characters"
    if ended.code == 0:
        return HANDLED, ""
    if ended.code == REFUSED_BY_FUNCTION:
        return REFUSED, ""
    if ended.code not in (1, 2):
        return FAILED, f"exit code {ended.code}"
    told = len(re.findall(r"^libra: error: ", words, re.MULTILINE))
    if ended.code == 1 and not told and "libra: warning: " in words and "could not be read" in words:
        return REFUSED, ""  # predict says for each image why it cannot be read
    return (REFUSED, "") if told == 1 else (FAILED, f"exit code {ended.code} with {told} sentences")


def traceback_cause(words: str) -> str:
    """The last error, without numbers and names, and the innermost function of the packages it came through."""
    last = words.rpartition(_CHAIN)[2]
    frames = _FRAME.findall(last)
    where = f"{frames[-1][0]}: {frames[-1][1]}" if frames else "outside of the packages"
    lines = [line for line in last.splitlines() if line and not line[0].isspace() and _LAST.match(line)]
    error = lines[-1] if lines else (last.strip().splitlines() or ["?"])[-1]
    error = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", error)
    return f"traceback in {where}: {re.sub(r'[-]?[0-9][0-9.e+]*', '#', error)[:140]}"


def raw_control_characters(words: str) -> str:
    """What a terminal would obey, or that changes the direction of writing; line breaks and tabs may be."""
    words = _PROGRESS.sub("", words)
    found = {char for char in words if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")}
    return ", ".join(sorted(ascii(char) for char in found))
