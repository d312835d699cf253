"""File names that come from annotations: which files they mean, and what may be made of them.

Annotations may be written by anybody. A name can lead out of the data set (`../../private/x.jpg`), or be no name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from libra_det.terminal import shown

LONGEST_NAME = 1000  # characters
LONGEST_PART = 60  # characters of a name that is written; at 4 bytes each it fits into the 255 of file systems


class ImageFiles:
    """Where the images of a data set are.

    A name leads out if its path, written without `..`, is in none of the roots. Links are not followed for that: one
    inside the data set was made by the user. Backslashes separate folders here, as on Windows.

    Args:
        folder: what names are relative to.
        roots: folders that names must not lead out of.
        allow_outside: read what names that lead out mean.
    """

    def __init__(self, folder: Path, roots: Iterable[Path], allow_outside: bool) -> None:
        self.folder = folder
        self._roots = [_normal(root) for root in roots]
        self._allow_outside = allow_outside

    def find(self, name: str) -> tuple[Path, bool]:
        """The file that a name means, which may be missing.

        Of a name that leads out, or leads up or to the top and to no file, the last part is taken, if `folder` has such
        a file: Label Studio names images by where they lay on its server, and puts them into one folder.

        Returns:
            the file, and whether it was found by the last part of the name alone.

        Raises:
            ValueError: the name leads out, and is not allowed to.
        """
        leads_up = _leads_up(name)
        allowed = self._allow_outside or not leads_up or not self._leads_out(name)
        # What was judged is what is opened: through a link, `link/../x` would be another file than `x`.
        path = Path(os.path.normpath(self.folder / name)) if ".." in name else self.folder / name
        if allowed and (not leads_up or is_file(path)):
            return path, False
        alone = self.folder / PureWindowsPath(name).name
        if is_file(alone):
            return alone, True
        if allowed:
            return path, False
        raise ValueError(
            f"file name {shown(name)} leads out of {' and '.join(dict.fromkeys(self._roots))}, and {alone} is not "
            "there; if you trust these annotations, --allow-outside reads it"
        )

    def has(self, name: str) -> bool:
        """True if the name means a file that is there."""
        try:
            return is_file(self.find(name)[0])
        except ValueError:
            return False

    def _leads_out(self, name: str) -> bool:
        if _has_drive(name) and os.name != "nt":  # nothing lies there
            return True
        path = _normal(self.folder / name.replace("\\", "/"))
        return not any(path == root or path.startswith(os.path.join(root, "")) for root in self._roots)


def name_mistake(name: Any) -> str | None:
    """What keeps a value from being the name of a file, if anything."""
    if not isinstance(name, str) or not name:
        return f"expected a file_name, got {shown(name)}"
    if len(name) > LONGEST_NAME:
        return f"expected a file_name of at most {LONGEST_NAME} characters, got {shown(name)} of {len(name)}"
    try:
        possible = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        possible = False
    return None if possible else f"expected a file_name that a file can have, got {shown(name)}"


def is_file(path: Path) -> bool:
    """True if there is such a file. `Path.is_file` alone raises an error for names that are too long or forbidden."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def written_name(text: str) -> str:
    """Part of the name of a file that is written: letters, digits, `.`, `-` and `_` of a text from a file."""
    return re.sub(r"[^\w.-]+", "_", text)[:LONGEST_PART]


def _normal(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))


def _leads_up(name: str) -> bool:
    return ".." in name or name[0] in "/\\" or _has_drive(name)


def _has_drive(name: str) -> bool:
    r"""True for C:\x.jpg, whatever the system."""
    return name[1:2] == ":" and (os.name == "nt" or name[2:3] in ("/", "\\"))
