"""Pickle programs written by hand: valid ones of tensors, and hostile ones that push one object each."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.attack.operations.draw import Draw

STORAGES = {
    torch.float32: "FloatStorage",
    torch.float64: "DoubleStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage",
    torch.complex128: "ComplexDoubleStorage",
}


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(encoded) < 256:
        return b"\x8a" + bytes([len(encoded)]) + encoded
    return b"\x8b" + struct.pack("<i", len(encoded)) + encoded


def name(module: str, of: str) -> bytes:
    return b"c" + module.encode() + b"\n" + of.encode() + b"\n"


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(items: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    pairs = [(text(key), value) for key, value in items.items()] if isinstance(items, Mapping) else items
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def call(module: str, of: str, *arguments: bytes) -> bytes:
    return name(module, of) + tuple_of(*arguments) + b"R"


def program(value: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + value + b"."


ORDERED = call("collections", "OrderedDict")


def storage(kind: str, key: str, numel: int, device: str = "cpu") -> bytes:
    """A persistent id of a storage."""
    return tuple_of(text("storage"), name("torch", kind), text(key), text(device), integer(numel)) + b"Q"


def legacy_storage(kind: str, key: str, numel: int, device: str = "cpu") -> bytes:
    of = (text("storage"), name("torch", kind), text(key), text(device), integer(numel), b"N")
    return tuple_of(*of) + b"Q"


def tensor(held: bytes, size: Sequence[int], stride: Sequence[int] | None = None, offset: int = 0) -> bytes:
    if stride is None:
        stride, step = [], 1
        for side in reversed(size):
            stride.insert(0, step)
            step *= max(side, 1)
    numbers = (tuple_of(*map(integer, values)) for values in (size, stride))
    return call("torch._utils", "_rebuild_tensor_v2", held, integer(offset), *numbers, b"\x89", ORDERED)


def tensors(
    state: Mapping[str, Tensor], make: Callable[..., bytes] = storage
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Programs of tensors, and the bytes of their storages by key."""
    programs, storages = {}, {}
    for position, (key, value) in enumerate(state.items()):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        storages[str(position)] = data
        programs[key] = tensor(make(STORAGES[value.dtype], str(position), value.numel()), list(value.shape))
    return programs, storages


class Made(bytes):
    """A program in a place where a value would be."""


def value(of: Any, storages: dict[str, bytes]) -> bytes:
    """The program of plain values and tensors, whose storages are added; what is `Made` stands for itself."""
    if isinstance(of, Made):
        return bytes(of)
    if isinstance(of, Tensor):
        key = str(len(storages))
        storages[key] = of.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if of.numel() else b""
        return tensor(storage(STORAGES[of.dtype], key, of.numel()), list(of.shape))
    if of is None or isinstance(of, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[of]
    if isinstance(of, int):
        return integer(of)
    if isinstance(of, float):
        return b"G" + struct.pack(">d", of)
    if isinstance(of, str):
        return text(of)
    if isinstance(of, dict):
        return dict_of([(value(key, storages), value(item, storages)) for key, item in of.items()])
    items = [value(item, storages) for item in of]
    return tuple_of(*items) if isinstance(of, tuple) else list_of(*items)


def replaced(draw: Draw, values: Any, made: Any) -> str:
    """Puts something in the place of one of the values, at any depth; returns the way there."""
    node, path = values, ""
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        path += f".{key}" if isinstance(node, dict) else f"[{key}]"
        inner = node[key]
        if isinstance(inner, (dict, list)) and inner and draw.chance(0.8):
            node = inner
            continue
        node[key] = made
        return path


def exploits(canary: Path) -> dict[str, bytes]:
    """Programs that would touch a file, if the reader ran them."""
    shell, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    opened = call("builtins", "open", text(str(canary)), text("w"))
    found = {
        "os.system": call("os", "system", text(shell)),
        "posix.system": call("posix", "system", text(shell)),
        "nt.system": call("nt", "system", text(shell)),
        "builtins.eval": call("builtins", "eval", text(python)),
        "builtins.exec": call("builtins", "exec", text(python)),
        "__builtin__.eval": call("__builtin__", "eval", text(python)),
        "builtins.open": opened,
        "subprocess.Popen": call("subprocess", "Popen", list_of(text("touch"), text(str(canary)))),
        "subprocess.check_output": call("subprocess", "check_output", list_of(text("touch"), text(str(canary)))),
        "runpy": call("runpy", "run_path", text(str(canary))),
        "pathlib touch": call("pathlib", "Path.touch", call("pathlib", "Path", text(str(canary)))),
        "getattr": call("builtins", "getattr", name("os", "system"), text("__call__")),
        "functools.partial": call("functools", "partial", name("os", "system"), text(shell)) + tuple_of() + b"R",
        "torch.save": call("torch", "save", integer(1), text(str(canary))),
        "torch.serialization.load": call("torch.serialization", "load", text(str(canary))),
        "torch._utils dotted": call("torch._utils", "torch.os.system", text(shell)),
        "numpy.save": call("numpy", "save", text(str(canary)), integer(1)),
        "numpy tofile": call(
            "numpy", "ndarray.tofile", call("numpy", "ndarray", tuple_of(integer(1))), text(str(canary))
        ),
        "OBJ os.system": b"(" + name("os", "system") + text(shell) + b"o",
        "INST os.system": b"(" + text(shell) + b"ios\nsystem\n",
        "NEWOBJ Popen": name("subprocess", "Popen") + tuple_of(list_of(text("touch"), text(str(canary)))) + b"\x81",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + tuple_of(text(shell)) + b"R",
        "BUILD of a module": name("os", "environ") + dict_of({"LD_PRELOAD": text("/canary.so")}) + b"b",
        "BUILD of a function": name("torch._utils", "_rebuild_tensor_v2") + dict_of({"__code__": integer(1)}) + b"b",
        "BUILD of OrderedDict": ORDERED + dict_of({"__class__": name("collections", "Counter")}) + b"b",
        "BUILD of a class": name("collections", "OrderedDict") + dict_of({"update": name("os", "system")}) + b"b",
        "codecs file": call("codecs", "open", text(str(canary)), text("w")),
        "webbrowser": call("webbrowser", "open", text(f"file://{canary}")),
        "EXT1": b"\x82\x01" + tuple_of() + b"R",
        "EXT2": b"\x83\x01\x00" + tuple_of() + b"R",
        "EXT4": b"\x84\x01\x00\x00\x00" + tuple_of() + b"R",
        "persistent text": b"Pos.system\n",
    }
    reduced = (
        name("copyreg", "_reconstructor") + tuple_of(name("os", "_wrap_close"), name("builtins", "object"), b"N") + b"R"
    )
    return {**found, "copyreg": reduced, "torch.hub": call("torch.hub", "load", text("a/b"), text("c"))}


def draw_exploit(draw: Draw, canary: Path) -> tuple[bytes, str]:
    found = exploits(canary)
    chosen = draw.choice(list(found))
    return found[chosen], chosen
