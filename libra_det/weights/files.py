"""Weight files, read by what is in them and as plain data: no file can make the reader run code.

A `.pth` is a pickle, which is a program. `plain_pickle` rebuilds the values it describes, and calls nothing.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libra_det.weights.plain_pickle import NeedsCode
from libra_det.weights.torch_file import OddTensor, read_torch

_STATE_KEYS = ("state_dict", "model", "model_state_dict")
"""Where frameworks put the tensors in a file that holds more."""
_LONGEST_NAME = 500  # letters of a tensor's name
_LONGEST_HEADER = 2**22  # bytes of a safetensors file's header; that of a detector has a hundred thousand


class DamagedFile(ValueError):
    """A file cannot be read: part of it is missing or not as it was written, or it is of another kind.

    Attributes:
        why: the reason alone, in a few words; empty where it is the message.
    """

    why = ""


@dataclass
class TensorFile:
    """What a file holds: `values` as they were saved, or `state` with its text `metadata` (safetensors)."""

    path: Path
    values: Any = None
    state: dict[str, Tensor] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensor_file(path: Path) -> TensorFile:
    """Read a PyTorch or safetensors file, whatever its name. Tensors come to the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is neither, or is damaged; the message names file and reason.
        ValueError: it needs code to be run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint file")
    if path.stat().st_size == 0:
        raise DamagedFile(f"{path}: cannot be read (the file is empty)")
    if _is_safetensors(path):
        return _read_safetensors(path)
    return TensorFile(path, values=_read_torch(path))


def state_of(file: TensorFile) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and what the file says about them: `meta` as mmdetection writes it, else nothing.

    Raises:
        ValueError: the file holds something else.
    """
    if file.state is not None:
        return file.state, {}
    values = file.values
    meta = values.get("meta") if isinstance(values, dict) else None
    found = values
    if isinstance(values, dict):
        found = next((values[key] for key in _STATE_KEYS if isinstance(values.get(key), dict)), values)
    if not isinstance(found, dict) or not found or not all(isinstance(v, (Tensor, OddTensor)) for v in found.values()):
        raise ValueError(
            f"{file.path}: holds {described(file)} and no state_dict (a dict of tensors by parameter name)"
        )
    check_plain(found, file.path)
    return {str(key): value for key, value in found.items()}, meta if isinstance(meta, dict) else {}


def check_plain(state: Mapping[Any, Any], path: Path) -> None:
    """Makes sure that tensors are what they seem: dense real numbers, all of them in the file.

    A few bytes can claim to be a tensor of terabytes (each row the same memory), or one without any numbers.

    Raises:
        ValueError: naming the first that is not, and what it is.
    """
    for key, value in state.items():
        if len(str(key)) > _LONGEST_NAME:
            raise ValueError(f"{path}: a tensor has a name of {len(str(key))} letters")
        if isinstance(value, OddTensor):
            raise ValueError(f"{path}: {key} {value.what}; expected dense tensors of real numbers")
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key} is a {type(value).__name__}; expected dense tensors of real numbers")
        if value.layout != torch.strided or value.is_complex():
            raise ValueError(f"{path}: {key} is {value.layout} {value.dtype}; expected dense tensors of real numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key} claims the shape {list(value.shape)}, for which it holds too few numbers")


def described(file: TensorFile) -> str:
    """What a file holds, in a few words."""
    values = file.values
    if file.state is not None:
        return "tensors alone, in safetensors form"
    if isinstance(values, dict):
        return "a dictionary with " + (", ".join(repr(key)[:50] for key in list(values)[:3]) or "nothing")
    return f"a {type(values).__name__}"


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of a JSON object (8 bytes, little-endian) and that object."""
    with open(path, "rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"{path}: has a safetensors header of {length} bytes; expected at most {_LONGEST_HEADER}")
    try:
        with safe_open(path, framework="pt") as stream:
            state = {key: stream.get_tensor(key) for key in stream.keys()}
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DamagedFile(f"{path}: cannot be read as safetensors ({error}); is it complete?") from error
    if not state:
        raise ValueError(f"{path}: is a safetensors file without tensors; expected those of a detector or backbone")
    return TensorFile(path, state=state, metadata=metadata)


def _read_torch(path: Path) -> Any:
    try:
        return read_torch(path)
    except NeedsCode as error:
        if not error.names_something and not _begins_as_weights(path):
            raise DamagedFile(
                f"{path}: cannot be read (it is neither a file of torch.save nor safetensors); expected weights"
            ) from error
        raise ValueError(
            f"{path}: cannot be read without running code from it ({', '.join(error.names[:5])}), which is refused, "
            "for it could be anybody's. Have it saved again with tensors and plain values only: where it came from, "
            "torch.save({'state_dict': model.state_dict()}, FILE)"
        ) from error
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to read it ({error})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a position before the beginning, which a damaged file may name
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise _damaged(path, error) from error
    except Exception as error:  # of many kinds, for a file that is cut off, changed or something else
        raise _damaged(path, error) from error


def _begins_as_weights(path: Path) -> bool:
    """Whether a file begins as torch.save writes it: a zip file, or a pickle of protocol 2 and later."""
    with open(path, "rb") as stream:
        return stream.read(2) in (b"PK", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))


def _damaged(path: Path, error: Exception) -> DamagedFile:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    damaged = DamagedFile(f"{path}: cannot be read ({reason}); is it complete, and a file of weights?")
    damaged.why = reason
    return damaged
