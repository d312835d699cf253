"""Text from files on its way to a person: what a terminal would obey is shown escaped instead.

A category may be called "\\x1b[2J", which clears the screen when it is printed raw.
"""

from __future__ import annotations

import reprlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

LONGEST = 200  # characters of one value in a message


def printable(text: object, keep: str = "") -> str:
    """The text with everything that is no visible character or space escaped, as Python writes it: `\\x1b`, `\\u202e`.

    Escaped are control characters (line breaks and tabs too), marks that change the direction of writing, line
    separators and halves of surrogate pairs, which no encoding could print.

    Args:
        text: anything; its `str` is taken.
        keep: characters that stay as they are, such as "\\n" in a message of several lines.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_visible(char) else _escaped(char) for char in text)


def short(value: object, longest: int = LONGEST) -> str:
    """The value for a message, escaped and never long: a text as it is, anything else as Python writes it.

    A text that is too long keeps its beginning and its end, and says how long it is.

    Args:
        value: of any size and depth.
        longest: characters that are kept.
    """
    if not isinstance(value, str):
        return shown(value, longest)
    if len(value) <= longest:
        return printable(value)
    end = longest // 4
    return f"{printable(value[: longest - end])}...{printable(value[-end:])} ({len(value)} characters)"


def shown(value: object, longest: int = LONGEST) -> str:
    """The value as Python writes it, such as a text in quotes; never long, whatever its size and depth."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**64):
        return repr(value)
    brief = reprlib.Repr()
    brief.maxstring = brief.maxlong = brief.maxother = longest
    brief.maxlevel = brief.maxdict = 4
    brief.maxlist = brief.maxtuple = 8
    try:
        text = brief.repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= longest + 2 else f"{text[: longest - 3]}..."


def few(values: Sequence[object]) -> str:
    """The first values, readably."""
    return ", ".join(short(value, 60) for value in values[:12]) + (
        f", ... ({len(values)} in all)" if len(values) > 12 else ""
    )


def say(*values: object, file: TextIO | None = None, flush: bool = False) -> None:
    """`print` for messages that may hold names from files: escaped by `printable`, line breaks and tabs kept.

    Args:
        values: what is printed, with spaces between.
        file: where to; None: the standard output.
        flush: at once.
    """
    print(*(printable(value, keep="\n\t") for value in values), file=file or sys.stdout, flush=flush)


def _is_visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of other alphabets


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
