"""Random damage to the bytes of a valid file."""

from __future__ import annotations

import struct

from tests.attack.operations.draw import Draw

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_PAGE = 512
KINDS = (
    "bits",
    "bits",
    "bytes",
    "truncate",
    "zero",
    "repeat",
    "remove",
    "insert",
    "extreme",
    "extreme",
    "swap",
    "digit",
)


def damaged(draw: Draw, data: bytes, start: int = 0, end: int | None = None) -> tuple[bytes, str]:
    """The bytes with one to three kinds of damage between `start` and `end`, and which."""
    words = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data, what = _damaged_once(draw, data, start, len(data) if end is None else min(end, len(data)))
        words.append(what)
    return data, ", ".join(words)


def _damaged_once(draw: Draw, data: bytes, start: int, end: int) -> tuple[bytes, str]:
    if end <= start:
        return data + bytes(draw.integer(1, 9)), "bytes at the end"
    changed, kind = bytearray(data), draw.choice(KINDS)
    # Headers and directories stand at the ends.
    near = draw.choice((start, start, max(start, end - 400), None))
    place = draw.integer(start, end - 1) if near is None else min(end - 1, near + draw.integer(0, 300))
    length = draw.choice((1, 2, 4, 8, 64, _PAGE, 4096))
    if kind == "bits":
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            place = draw.integer(start, end - 1) if draw.chance(0.7) else place
            changed[place] ^= 1 << draw.integer(0, 7)
    elif kind == "bytes":
        changed[place : place + length] = bytes(draw.random.getrandbits(8) for _ in changed[place : place + length])
    elif kind == "truncate":
        del changed[place:]
    elif kind == "zero":
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    elif kind == "repeat":
        changed[place:place] = changed[place : place + length] * draw.choice((1, 1, 2, 100))
    elif kind == "remove":
        del changed[place : place + length]
    elif kind == "insert":
        changed[place:place] = bytes(draw.random.getrandbits(8) for _ in range(length))
    elif kind == "extreme":
        form = draw.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
        size = struct.calcsize(form)
        changed[place : place + size] = struct.pack(form, draw.choice(_EXTREMES) % 2 ** (8 * size))
    elif kind == "swap":
        other = draw.integer(start, end - 1)
        one, two = changed[place : place + length], changed[other : other + length]
        changed[place : place + len(two)], changed[other : other + len(one)] = two, one
    else:
        digits = [at for at in range(place, min(end, place + 400)) if 48 <= changed[at] <= 57]
        if digits:
            at = draw.choice(digits)
            changed[at : at + 1] = draw.choice((b"9" * 20, b"-1", b"0", b"1e400", b"9" * 400, b"", b".5"))
    return bytes(changed), f"{kind} at {place}"


def flipped(draw: Draw, data: bytes) -> tuple[bytes, int]:
    """One bit the other way, and its position."""
    place = draw.integer(0, 8 * len(data) - 1)
    if draw.chance(0.3):  # where headers and directories are
        place = draw.choice((place % 8192, 8 * len(data) - 1 - place % 65536)) % (8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed), place
