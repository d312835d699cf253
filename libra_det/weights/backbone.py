"""Weights of a backbone alone, by torchvision's names: from a file, or downloaded."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from libra_det.weights.files import read_tensor_file, state_of
from libra_det.weights.fit import compare, load_fitting


def load_backbone_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill `backbone` from a file or from torchvision's published weights; the classifier's are dropped.

    A file may hold the weights themselves or have them under "state_dict" or "model", and a detector's file gives those
    of its backbone. Every name has to fit.

    Args:
        backbone: a `Backbone`.
        name: its constructor's name in torchvision.
        weights: a file, or the name of torchvision weights, such as DEFAULT.

    Raises:
        ValueError: if there is no such file or weights name, the file is refused, or a table of what does not fit.
        ConnectionError: if the weights cannot be downloaded.
    """
    state = _read(Path(weights)) if _is_file(weights) else _download(name, weights)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    fit = compare(state, backbone.state_dict())
    if not fit.exact:
        raise ValueError(
            f"backbone_weights: {weights} does not fit a {name} with this norm; "
            f"give weights of the same architecture and norm, by torchvision's names\n{fit.table()}"
        )
    load_fitting(backbone, state)


def _is_file(weights: str) -> bool:
    """A file, or what looks like the name of one."""
    return Path(weights).is_file() or Path(weights).suffix in (".pth", ".pt", ".safetensors") or "/" in weights


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"backbone_weights: there is no file {path}")
    try:
        state, _ = state_of(read_tensor_file(path))
    except ValueError as error:
        raise ValueError(f"backbone_weights: {error}") from error
    prefix = next((prefix for prefix in ("backbone.", "module.backbone.") if f"{prefix}conv1.weight" in state), None)
    if prefix is None:
        return {key.removeprefix("module."): value for key, value in state.items()}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _download(name: str, weights: str) -> dict[str, Tensor]:
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise ValueError(
            f"backbone_weights: expected a .pth or .safetensors file or one of {', '.join(choices.__members__)} "
            f"for {name}, got {weights!r}"
        )
    try:
        return dict(choices[weights].get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"backbone_weights: {choices[weights].url} could not be downloaded ({error}); download it elsewhere "
            "and give the file: --backbone-weights FILE.pth"
        ) from error
