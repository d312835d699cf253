"""Pillow before version 13 reads the tags of a TIFF file, or of EXIF data, however often they are of the same bytes.

So a file of half a megabyte takes gigabytes. Pillow 13 reads no more than a file has, but is not for Python 3.10.
"""

from __future__ import annotations

import io
from typing import IO

import PIL
from PIL.TiffImagePlugin import ImageFileDirectory_v2


class _Budget:
    """A file of which only twice its bytes can be read: each as a tag's value, and each as an entry of the directory.

    Then it is an OSError, as at the end of a file that was cut off: Pillow keeps the tags that it has.
    """

    def __init__(self, file: IO[bytes]) -> None:
        here = file.tell()
        self._left = 2 * file.seek(0, io.SEEK_END)
        file.seek(here)
        self._read, self.seek, self.tell = file.read, file.seek, file.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise OSError("the tags are larger than the file")
        return self._read(size)


def limit_tags() -> None:
    """Lets Pillow, where it does not by itself, read no more of a directory of tags than the file has."""
    load = ImageFileDirectory_v2.load
    if int(PIL.__version__.split(".")[0]) < 13 and load.__module__ != __name__:
        ImageFileDirectory_v2.load = _limited(load)


def _limited(load):
    def limited(self: ImageFileDirectory_v2, file: IO[bytes]) -> None:
        load(self, _Budget(file))

    return limited
