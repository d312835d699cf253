"""Operations of balanced detection training on the CPU and on CUDA: matching, sampling, losses.

Every operation is batched over images, has fixed shapes, and never waits for the GPU. Boxes are xyxy in continuous
pixels. `libra_ops.reference` holds a plain-PyTorch twin of each, `libra_ops.numpy` the ones that NumPy arrays can use.

torch is imported when one of the names below is first used, so that `import libra_ops.numpy` needs none. The compiled
operators (torch.ops.libra_ops) are there as soon as torch is, whichever is imported first.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libra_ops._extension import build_info
    from libra_ops.balanced_l1_loss import balanced_l1_loss
    from libra_ops.box_coding import decode_boxes, encode_boxes
    from libra_ops.box_iou import box_iou
    from libra_ops.box_regression_loss import box_regression_loss
    from libra_ops.match_boxes import Matches, match_boxes
    from libra_ops.multiscale_roi_align import multiscale_roi_align
    from libra_ops.nms_padded import Survivors, nms_padded
    from libra_ops.pyramid import integrate_pyramid, scatter_pyramid
    from libra_ops.sample_iou_balanced import Samples, sample_iou_balanced
    from libra_ops.sigmoid_focal_loss import sigmoid_focal_loss
    from libra_ops.topk_per_level import topk_per_level

__all__ = [
    "Matches",
    "Samples",
    "Survivors",
    "balanced_l1_loss",
    "box_iou",
    "box_regression_loss",
    "build_info",
    "decode_boxes",
    "encode_boxes",
    "integrate_pyramid",
    "match_boxes",
    "multiscale_roi_align",
    "nms_padded",
    "sample_iou_balanced",
    "scatter_pyramid",
    "sigmoid_focal_loss",
    "topk_per_level",
]

_HOME = {  # public name: the module that defines it
    "Matches": "match_boxes",
    "Samples": "sample_iou_balanced",
    "Survivors": "nms_padded",
    "balanced_l1_loss": "balanced_l1_loss",
    "box_iou": "box_iou",
    "box_regression_loss": "box_regression_loss",
    "build_info": "_extension",
    "decode_boxes": "box_coding",
    "encode_boxes": "box_coding",
    "integrate_pyramid": "pyramid",
    "match_boxes": "match_boxes",
    "nms_padded": "nms_padded",
    "multiscale_roi_align": "multiscale_roi_align",
    "sample_iou_balanced": "sample_iou_balanced",
    "topk_per_level": "topk_per_level",
    "sigmoid_focal_loss": "sigmoid_focal_loss",
    "scatter_pyramid": "pyramid",
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


def _register_operators() -> None:
    for module in dict.fromkeys(_HOME.values()):
        import_module(f"{__name__}.{module}")


class _WhenTorchComes(MetaPathFinder):
    """Registers the operators as soon as torch is imported: torch.ops.libra_ops and exported models count on them."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                with suppress(ImportError):  # whoever uses an operation is told what is wrong
                    _register_operators()

            spec.loader.exec_module = execute_and_register
        return spec


if sys.modules.get("torch"):
    _register_operators()
else:
    sys.meta_path.insert(0, _WhenTorchComes())
