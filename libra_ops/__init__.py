"""Operations of balanced detection training on the CPU and on CUDA: matching, sampling, losses.

Every operation is batched over images, has fixed shapes, and never waits for the GPU. Boxes are xyxy in continuous
pixels. `libra_ops.reference` holds a plain-PyTorch twin of each, `libra_ops.numpy` the ones that NumPy arrays can use.

torch and the compiled operators (torch.ops.libra_ops) are loaded when one of the names below is first used, so that
`import libra_ops.numpy` needs no torch; where torch is there already, they are loaded at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libra_ops._extension import build_info
    from libra_ops.balanced_l1_loss import balanced_l1_loss
    from libra_ops.box_iou import box_iou
    from libra_ops.match_boxes import Matches, match_boxes
    from libra_ops.sample_iou_balanced import Samples, sample_iou_balanced

__all__ = [
    "Matches",
    "Samples",
    "balanced_l1_loss",
    "box_iou",
    "build_info",
    "match_boxes",
    "sample_iou_balanced",
]

_HOME = {  # public name: the module that defines it
    "Matches": "match_boxes",
    "Samples": "sample_iou_balanced",
    "balanced_l1_loss": "balanced_l1_loss",
    "box_iou": "box_iou",
    "build_info": "_extension",
    "match_boxes": "match_boxes",
    "sample_iou_balanced": "sample_iou_balanced",
}
_MODULES = ("numpy", "reference")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(ModuleType):
    """An operation and its module share a name, and importing the module would put it in the function's place here."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

# Whoever imported torch may ask for torch.ops.libra_ops next, or load an exported model.
if sys.modules.get("torch"):
    for _module in dict.fromkeys(_HOME.values()):
        import_module(f"{__name__}.{_module}")
