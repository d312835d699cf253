"""Weight files, read by what is in them and as plain data: no file can make the reader run code.

A `.pth` is a pickle, which is a program. Of its instructions only those are followed that build tensors, containers,
and numbers of Python and NumPy (frameworks leave such in their notes on a training); anything else is an error.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class DamagedFile(ValueError):
    """A file cannot be read because part of it is missing or not as it was written; another one may do instead."""


_STATE_KEYS = ("state_dict", "model", "model_state_dict")
"""Where frameworks put the tensors in a file that holds more."""


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
        ValueError: it is neither, or needs code to be run; the message names file and reason.
        DamagedFile: likewise, and it is damaged, or cannot be told from a file that is.
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
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(
            f"{file.path}: holds {described(file)} and no state_dict (a dict of tensors by parameter name)"
        )
    check_plain(found, file.path)
    return {str(key): value for key, value in found.items()}, meta if isinstance(meta, dict) else {}


def check_plain(state: Mapping[Any, Tensor], path: Path) -> None:
    """Makes sure that tensors are what they seem: dense real numbers, all of them in the file.

    A few bytes can claim to be a tensor of terabytes (each row the same memory), or one without any numbers.

    Raises:
        ValueError: naming the first that is not, and what it is.
    """
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = "quantized" if value.is_quantized else f"{value.layout} {value.dtype} on {value.device}"
            raise ValueError(f"{path}: {key} is {kind}; expected dense tensors of real numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key} claims the shape {list(value.shape)}, for which it holds too few numbers")


def described(file: TensorFile) -> str:
    """What a file holds, in a few words."""
    values = file.values
    if file.state is not None:
        return "tensors alone, in safetensors form"
    if isinstance(values, dict):
        return "a dictionary with " + (", ".join(repr(key) for key in list(values)[:3]) or "nothing")
    return f"a {type(values).__name__}"


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of a JSON object (8 bytes, little-endian) and that object."""
    with open(path, "rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            state = {key: stream.get_tensor(key) for key in stream.keys()}
            return TensorFile(path, state=state, metadata=dict(stream.metadata() or {}))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DamagedFile(f"{path}: cannot be read as safetensors ({error}); is it complete?") from error


def _read_torch(path: Path) -> Any:
    try:
        # A stream, because of a path torch would look at the name.
        with open(path, "rb") as stream, torch.serialization.safe_globals(_plain_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle's age: what cannot be read is an error anyway
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut off or is something else
        code = _code_in(path, error)
        if code:
            raise ValueError(
                f"{path}: cannot be read without running code from it ({', '.join(code)}), which is refused, for it "
                "could be anybody's. Have it saved again with tensors and plain values only: where it came from, "
                "torch.save({'state_dict': model.state_dict()}, FILE)"
            ) from error
        told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = told[1] if told else (str(error) or type(error).__name__).splitlines()[0]
        kind = ValueError if isinstance(error, (MemoryError, PermissionError)) else DamagedFile
        raise kind(f"{path}: cannot be read ({reason}); is it complete, and a file of weights?") from error


def _code_in(path: Path, error: Exception) -> list[str]:
    """Names of what the file wants to call, besides what builds plain values."""
    names = re.findall(r"(?:GLOBAL|class|function|type) (\w+(?:\.\w+)+)", str(error))
    if zipfile.is_zipfile(path):
        try:
            with torch.serialization.safe_globals(_plain_numbers()):
                names = torch.serialization.get_unsafe_globals_in_checkpoint(path) or names
        except Exception:  # a damaged file; the error at hand says as much
            pass
    return sorted(set(names))[:5]


@functools.cache
def _plain_numbers() -> list[Any]:
    """What rebuilds NumPy's numbers and arrays, under the names of NumPy 1 and 2. None of it runs what it reads."""
    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdSU"}
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [(scalar, f"{module}.scalar") for module in modules]
    functions += [(rebuild, f"{module}._reconstruct") for module in modules]
    return [*functions, np.dtype, np.ndarray, *kinds]
