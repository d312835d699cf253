"""Text from files on its way to a person: what a terminal would obey is shown escaped instead.

A category may be called "\\x1b[2J", which clears the screen when it is printed raw.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO


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
