"""The two forms of a file of `torch.save`: a zip file, since torch 1.6, and a row of pickles before.

    zip       NAME/data.pkl, a pickle; NAME/data/KEY, the bytes of each storage; small notes. Each entry has a checksum
              (CRC-32), which is compared here whenever an entry is read; `torch.load` does not compare it.
    before    pickles of a magic number, a version, notes on the machine and the object; the keys of its storages; then
              for each a count (8 bytes) and its bytes. There are no checksums.

A storage is what tensors lie in. What a file claims about sizes is compared with the bytes that are there before any
memory is taken.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from libra_det.weights.plain_pickle import Builder, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_ROOM = 2**24  # bytes that a compressed file may inflate to in any case
_MOST_INFLATED = 4  # times the size of the file; numbers of a training hardly shrink
_LARGEST_PICKLE = 2**27  # bytes; the values beside the tensors
_CHUNK = 2**20
_MOST_DIMENSIONS = 64

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
}


class StorageKind(NamedTuple):
    """The class of a storage, by the numbers that it counts in."""

    dtype: torch.dtype


class Storage(NamedTuple):
    """The bytes of a storage, and what they are."""

    data: Tensor  # [N] uint8
    dtype: torch.dtype


class OddTensor(NamedTuple):
    """Stands for a tensor that is not rebuilt: one that is not dense and real, or larger than its storage."""

    what: str  # to be read after its name, as in "is quantized"


def read_torch(path: Path) -> Any:
    """The object in a file of `torch.save`, its tensors on the CPU and without gradients.

    Raises:
        NeedsCode: it names things outside the table of this reader.
        Exception: of many kinds, from the readers of zip files and pickles: the file is damaged, or is something else.
    """
    with open(path, "rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
        stream.seek(0)
        return _read_zip(stream, path.stat().st_size) if is_zip else _read_legacy(stream)


def _read_zip(stream: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(stream) as archive:
        _check_entries(archive.infolist(), size)
        pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or any(info.filename.endswith("/constants.pkl") for info in archive.infolist()):
            raise ValueError("it is a zip file, but not one of torch.save")
        if pickles[0].file_size > _LARGEST_PICKLE:
            raise ValueError(f"its pickle has {pickles[0].file_size} bytes")
        folder = pickles[0].filename.removesuffix("data.pkl")
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        byte_order = folder + "byteorder"
        if byte_order in sizes and archive.read(byte_order) != b"little":
            raise ValueError("its numbers are big-endian")
        storages: dict[str, Tensor] = {}

        def storage(key: str, kind: StorageKind, count: int) -> Storage:
            name = f"{folder}data/{key}"
            if sizes.get(name) != count * kind.dtype.itemsize:
                raise ValueError(f"storage {key} has {sizes.get(name, 'no')} bytes for {count} {kind.dtype}")
            if key not in storages:
                storages[key] = _read_entry(archive, name, sizes[name])
            return Storage(storages[key], kind.dtype)

        with archive.open(pickles[0]) as pickle:
            value = _read_object(io.BytesIO(pickle.read()), storage)
        read = {pickles[0].filename, byte_order, *(f"{folder}data/{key}" for key in storages)}
        for name in sizes.keys() - read:  # for their checksums
            _read_entry(archive, name, sizes[name])
        return value


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Before anything is inflated: how much it will be."""
    if len({info.filename for info in entries}) != len(entries):
        raise ValueError("several entries of its zip file have one name")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in entries):
        raise ValueError("its zip file is compressed in an unusual way")
    total = sum(info.file_size for info in entries)
    if total > _ROOM + _MOST_INFLATED * size:
        raise ValueError(f"its {size} bytes would inflate to {total}")


def _read_entry(archive: zipfile.ZipFile, name: str, size: int) -> Tensor:
    """The bytes of an entry, [size] uint8; the zip reader compares the checksum at the end."""
    data = torch.empty(size, dtype=torch.uint8)
    view, done = memoryview(data.numpy()), 0
    with archive.open(name) as entry:
        while chunk := entry.read(_CHUNK):
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
    if done != size:
        raise ValueError(f"{name} has {done} bytes instead of {size}")
    return data


def _read_legacy(stream: BinaryIO) -> Any:
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if read_pickle(file, {}) != _MAGIC or read_pickle(file, {}) != _LEGACY_VERSION:
            raise ValueError("it does not begin as a file of torch.save")
        if read_pickle(file, {}).get("little_endian") is False:
            raise ValueError("its numbers are big-endian")
        storages: dict[str, Storage] = {}
        room = len(file)

        def storage(key: str, kind: StorageKind, count: int, view: Any = None) -> Storage:
            nonlocal room
            if view is not None:
                raise ValueError("its storages are parts of others, as torch before 0.4 wrote them")
            if key not in storages:
                room -= count * kind.dtype.itemsize
                if room < 0:
                    raise ValueError(f"storage {key} claims {count} {kind.dtype}, more than the file holds")
                storages[key] = Storage(torch.empty(count * kind.dtype.itemsize, dtype=torch.uint8), kind.dtype)
            if storages[key].dtype != kind.dtype or len(storages[key].data) != count * kind.dtype.itemsize:
                raise ValueError(f"storage {key} is described in two ways")
            return storages[key]

        value = _read_object(file, storage)
        keys = read_pickle(file, {})
        if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            data = storages[key].data
            count = int.from_bytes(file.read(8), "little")
            if count * storages[key].dtype.itemsize != len(data) or file.size() - file.tell() < len(data):
                raise ValueError(f"storage {key} is cut off or has another size than its tensors")
            if len(data):
                memoryview(data.numpy())[:] = file.read(len(data))
        return value


def _read_object(stream: BinaryIO, storage: Callable[..., Storage]) -> Any:
    """The pickle of an object with tensors; `storage` gives that of a (key, kind, count of numbers)."""

    def persistent(identifier: Any) -> Storage:
        word, kind, key, _, count, *view = identifier
        if word != "storage" or not isinstance(kind, StorageKind) or not isinstance(key, str) or not _is_size(count):
            raise ValueError("a storage in its pickle is not described as one")
        return storage(key, kind, count, *view)

    return read_pickle(stream, _BUILDERS, _CONSTANTS, persistent)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any, dtype: Any = None) -> Tensor | OddTensor:
    """A dense tensor; the storage's own numbers unless `dtype` says otherwise."""
    dtype = storage.dtype if dtype is None else dtype
    numbers = (*size, *stride, offset)
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS or not all(map(_is_size, numbers)):
        raise ValueError("a tensor in its pickle has no shape")
    if dtype in (torch.qint8, torch.quint8, torch.qint32):
        return OddTensor("is quantized")
    there = len(storage.data) // dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > there or (0 not in size and last >= there):
        return OddTensor(f"claims the shape {list(size)}, for which it holds too few numbers")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    flat = storage.data[: there * dtype.itemsize].view(dtype)
    return flat.as_strided(size, stride, offset)


def _tensor_of_any_type(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor | OddTensor:
    dtype = rest[2]
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor in its pickle has no dtype")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Tensor | OddTensor, *_: Any) -> Tensor | OddTensor:
    if not isinstance(data, (Tensor, OddTensor)):
        raise ValueError("a parameter in its pickle is no tensor")
    return data


def _size(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not all(map(_is_size, numbers)):
        raise ValueError("a shape in its pickle has no sizes")
    return tuple(numbers)


def _short(value: Any) -> str:
    """The text of a name, number or dtype. That of a list could be endless: a pickle may hold one in itself."""
    if not isinstance(value, (str, int, torch.dtype)):
        raise ValueError(f"a {type(value).__name__} in its pickle where a name is expected")
    return str(value)[:100]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


_BUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_any_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_qtensor": lambda *_: OddTensor("is quantized"),
    "torch._utils._rebuild_sparse_tensor": lambda layout, *_: OddTensor(f"is {_short(layout)}"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, *_: OddTensor(f"is {_short(dtype)} on meta"),
    "torch.serialization._get_layout": lambda name: _short(name),
    "torch.Size": _size,
    "torch.device": lambda *place: ":".join(map(_short, place)),
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_CONSTANTS: dict[str, Any] = {
    **_DTYPES,
    **{f"{m}.{name}": StorageKind(dtype) for name, dtype in _STORAGES.items() for m in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": StorageKind(torch.uint8),
}
