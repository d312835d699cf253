"""Whether tensors fit a model, a table of what does not, and the loading of what does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from libra_det.terminal import printable

CLASS_LAYERS = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg.", "bbox_head.retina_cls.")
"""Layers whose outputs stand for classes (fc_reg: where boxes are class-specific)."""
_ROWS = 6  # of each kind that a table shows


@dataclass(frozen=True)
class Fit:
    """Tensors of a file beside those of a model. Shapes by name."""

    missing: dict[str, list[int]]  # the model's
    unexpected: dict[str, list[int]]  # the file's
    misshapen: dict[str, tuple[list[int], list[int]]]  # the file's and the model's

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def exact(self) -> bool:
        return self.misfits == 0

    def without_class_layers(self) -> Fit:
        """The same, where the class layers may have another number of outputs (their inputs have to agree)."""
        misshapen = {
            key: (file, model)
            for key, (file, model) in self.misshapen.items()
            if not (key.startswith(CLASS_LAYERS) and file[1:] == model[1:])
        }
        return Fit(self.missing, self.unexpected, misshapen)

    def table(self) -> str:
        """What does not fit, a line for each tensor, with the rest of a long list counted."""
        rows = {
            "missing": {key: str(shape) for key, shape in self.missing.items()},
            "unexpected": {printable(key): str(shape) for key, shape in self.unexpected.items()},
            "misshapen": {key: f"{file}, the model has {model}" for key, (file, model) in self.misshapen.items()},
        }
        width = max((len(key) for part in rows.values() for key in list(part)[:_ROWS]), default=0)
        lines = []
        for kind, part in rows.items():
            lines += [f"  {kind:<10}  {key:<{width}}  {shape}" for key, shape in list(part.items())[:_ROWS]]
            if len(part) > _ROWS:
                lines.append(f"  {kind:<10}  ... and {len(part) - _ROWS} more")
        return "\n".join(lines)


def compare(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Fit:
    """A file's tensors beside a model's state_dict. Counters of batches may be missing: nothing reads them."""
    shapes, wanted = ({key: list(value.shape) for key, value in tensors.items()} for tensors in (state, model))
    return Fit(
        {key: shape for key, shape in wanted.items() if key not in shapes and not key.endswith("num_batches_tracked")},
        {key: shape for key, shape in shapes.items() if key not in wanted},
        {key: (shape, wanted[key]) for key, shape in shapes.items() if key in wanted and shape != wanted[key]},
    )


def load_fitting(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every tensor that has its name and shape in the model; the model's type and device stay."""
    own = model.state_dict()
    with torch.no_grad():
        for key, value in state.items():
            if key in own and own[key].shape == value.shape:
                own[key].copy_(value)
