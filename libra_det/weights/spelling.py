"""Parameter names through the years: what older files call a parameter, and what it is called now.

The names of today are those of mmdetection 2.0 to 3.3, except that a pyramid is `neck.0.` also with nothing behind it.

mmdetection 1.x put the background first among the classes, and gave it box deltas of its own. That order can be seen in
the shapes, and is changed; the version in a file's notes tells nothing, for files published with 2.0 bear those of 1.x.
Sources: mmdetection's docs/compatibility.md (2.0) and tools/model_converters/upgrade_model_version.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes of all names, left by data parallelism, torch.compile and wrappers."""

_MOST_WRAPPERS = 8  # around each other

_RENAMED = (
    (re.compile(r"^neck\.(lateral_convs|fpn_convs)\."), r"neck.0.\1."),  # a pyramid alone is no sequence there
    (re.compile(r"^bbox_head\.(fc_cls|fc_reg|shared_fcs)\b"), r"roi_head.bbox_head.\1"),  # in 1.x
    (re.compile(r"^bbox_head\.(cls|reg)_convs\.(\d+)\.(weight|bias)$"), r"bbox_head.\1_convs.\2.conv.\3"),  # to 0.5
)
_LEFT_OUT = (
    # mmdetection 2 exchanges both when it saves: the average is under the parameters' own names, and this is the rest.
    (re.compile(r"^ema_\w+$"), "the other half of a moving average of the weights, which is itself taken"),
    (re.compile(r"^data_preprocessor\."), "the normalisation of pixels, which the configuration gives"),
)

VERSION_1 = (
    "was trained by mmdetection 1.x, whose boxes are one pixel wider, whose anchors are rounded to whole pixels and "
    "whose RoIAlign is half a pixel off: no setting here gives its detections again"
)


class Spelled(NamedTuple):
    """Tensors by the names of today."""

    state: dict[str, Tensor]
    changes: list[str]  # what was done, for the user
    version_1: bool  # of mmdetection 1.x: it runs, but its boxes are off by half a pixel or so


def spelled_today(state: dict[str, Tensor]) -> Spelled:
    """The tensors of a published detector, or of one that mmdetection trained, by the names of today."""
    state, changes = _unwrapped(state)
    for pattern, what in _LEFT_OUT:
        left_out = {key for key in state if pattern.match(key)}
        if left_out and len(left_out) < len(state):
            state = {key: value for key, value in state.items() if key not in left_out}
            changes.append(f"{len(left_out)} tensors left out: {what}")
    renamed: dict[str, Tensor] = {}
    examples = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in _RENAMED:
            new = pattern.sub(replacement, new)
        if new != key:
            examples[key] = new
        renamed[new] = value
    if examples:
        old, new = next(iter(examples.items()))
        changes.append(f"{len(examples)} older names, such as {old} for {new}")
    background_first = _has_background_first(state)
    if background_first:
        renamed = _background_last(renamed)
        changes.append("classes of mmdetection 1.x: the background moved from the first place to the last")
    return Spelled(renamed, changes, background_first)


def _unwrapped(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    changes = []
    for _ in range(_MOST_WRAPPERS):
        prefix = next((prefix for prefix in _WRAPPERS if state and all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        changes.append(f"names without their prefix {prefix!r}")
    return state, changes


def _has_background_first(state: dict[str, Tensor]) -> bool:
    """True for a region head of mmdetection 1.x: deltas for the background too, or, with deltas for all classes
    together, the names of its time."""
    for prefix in ("roi_head.bbox_head.", "bbox_head."):
        classes, deltas = outputs(state, f"{prefix}fc_cls.weight"), outputs(state, f"{prefix}fc_reg.weight")
        if classes is not None and deltas is not None:
            agnostic_and_old = deltas == 4 and classes > 1 and prefix == "bbox_head."
            return deltas == 4 * classes or agnostic_and_old
    return False


def outputs(state: dict[str, Tensor], name: str) -> int | None:
    """How many outputs a layer has, by its weight; None without one."""
    weight = state.get(name)
    return None if weight is None or weight.dim() == 0 else len(weight)


def _background_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    for parameter in ("weight", "bias"):
        classes, deltas = (f"roi_head.bbox_head.{layer}.{parameter}" for layer in ("fc_cls", "fc_reg"))
        if classes in state:
            num_outputs = len(state[classes])
            state[classes] = torch.cat((state[classes][1:], state[classes][:1]))
            if deltas in state and len(state[deltas]) == 4 * num_outputs:
                state[deltas] = state[deltas][4:]
    return state
