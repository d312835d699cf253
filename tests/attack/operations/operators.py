"""torch.ops.libra_ops.*, which check no more than memory needs: whatever they are given, they must not crash.

An exported model calls them with the shapes and numbers of its file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.attack.operations.draw import Draw
from tests.attack.operations.operation import Arguments, Operation

_SIZES = (0, 1, 2, 3, 5, 8)


def _floats(draw: Draw, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw.tensor(draw.values(shape), dtype)


def _boxes(draw: Draw, *shape: int) -> Tensor:
    return draw.tensor(draw.boxes(shape), torch.float32)


def _flags(draw: Draw, *shape: int) -> Tensor:
    return torch.as_tensor(draw.flags(shape))


def _index(draw: Draw, *shape: int, below: int) -> Tensor:
    return torch.from_numpy(draw.numbers.integers(0, max(1, below), shape))


def _good(draw: Draw) -> dict[str, Callable[[], Any]]:
    """What makes arguments, by their names in the schemas, of sizes that agree; "operator.argument" goes first."""
    b, n, g, s, c = (draw.choice(_SIZES) for _ in range(5))
    levels = draw.integer(1, 3)
    sides = [(draw.choice(_SIZES[1:]), draw.choice(_SIZES[1:])) for _ in range(levels)]
    level, p = draw.integer(0, levels - 1), draw.choice((1, 2, 3))
    sizes = [draw.choice(_SIZES) for _ in range(levels)]
    pooled = b * c * sum(height * width for height, width in sides[level + 1 :])
    own = b * c * sides[level][0] * sides[level][1]

    def maps() -> list[Tensor]:
        return [_floats(draw, b, c, *side) for side in sides]

    def either(make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: make() if draw.chance(0.5) else None

    def flag() -> bool:
        return draw.chance(0.5)

    return {
        "boxes": lambda: _boxes(draw, b, n),
        "boxes1": lambda: _boxes(draw, b, n),
        "boxes2": lambda: _boxes(draw, b, g),
        "kind": lambda: draw.integer(0, 4),
        "targets": lambda: _boxes(draw, b, g),
        "valid": lambda: _flags(draw, b, g),
        "crowd": either(lambda: _boxes(draw, b, c)),
        "positive_iou": lambda: 0.7,
        "negative_iou": lambda: 0.3,
        "min_positive_iou": either(lambda: 0.3),
        "index": lambda: _index(draw, b, n, below=g),
        "iou": lambda: _floats(draw, b, n),
        "state": lambda: _index(draw, b, n, below=2).to(torch.int8),
        "seed": lambda: torch.tensor([draw.integer(0, 2**62)]),
        "num_samples": lambda: s,
        "max_positives": lambda: draw.choice(_SIZES),
        "num_bins": lambda: draw.choice((1, 3, 64)),
        "low": lambda: 0.0,
        "high": lambda: 0.5,
        "max_negatives_per_positive": either(lambda: 3.0),
        "instance_balanced": flag,
        "published": flag,
        "scores": lambda: _floats(draw, b, n),
        "groups": either(lambda: _index(draw, b, n, below=3)),
        "iou_threshold": lambda: 0.5,
        "max_output": lambda: draw.choice(_SIZES),
        "score_threshold": either(lambda: 0.1),
        "nms_padded.valid": either(lambda: _flags(draw, b, n)),
        "level_sizes": lambda: sizes,
        "k": lambda: draw.choice(_SIZES),
        "threshold": either(lambda: 0.0),
        "topk_per_level.scores": lambda: _floats(draw, b, sum(sizes)),
        "references": lambda: _boxes(draw, b, n),
        "deltas": lambda: _floats(draw, b, n, c, 4),
        "delta_stds": lambda: [0.1, 1.0, 2.0, 1e-30],
        "sizes": either(lambda: _floats(draw, b, 2)),
        "target_index": either(lambda: _index(draw, b, n, below=g)),
        "encode_boxes.index": either(lambda: _index(draw, b, n, below=n)),
        "decode_boxes.index": either(lambda: _index(draw, b, s, below=n)),
        "decode_boxes_backward.index": lambda: _index(draw, b, s, below=n).sort(1).values,
        "decode_boxes_backward.grad": lambda: _floats(draw, b, s, c, 4),
        "pred": lambda: _floats(draw, n, 4),
        "target": lambda: _boxes(draw, n),
        "weight": either(lambda: _floats(draw, n, 4)),
        "alpha": lambda: 0.5,
        "gamma": lambda: 1.5,
        "beta": lambda: 1.0,
        "reduction": lambda: draw.integer(0, 2),
        "with_gradient": flag,
        "with_target_gradient": flag,
        "box_regression_loss.weight": either(lambda: _floats(draw, n)),
        "box_regression_loss.references": either(lambda: _boxes(draw, n)),
        "box_regression_loss.delta_stds": either(lambda: torch.tensor((0.1, 0.1, 0.2, 1e-30))),
        "logits": lambda: _floats(draw, n, c),
        "labels": lambda: _index(draw, n, below=c),
        "mask": either(lambda: _flags(draw, n)),
        "features": maps,
        "level": lambda: level,
        "channels_last": lambda: draw.chance(0.3),
        "index_bytes": lambda: draw.choice((0, 1, 4)),
        "refined": lambda: _floats(draw, b, c, *sides[level]),
        "heights": lambda: [side[0] for side in sides],
        "widths": lambda: [side[1] for side in sides],
        "integrate_pyramid_backward.grad": lambda: _floats(draw, b, c, *sides[level]),
        "integrate_pyramid_backward.index": lambda: torch.zeros(level * own, dtype=torch.uint8),
        "scatter_pyramid_backward.grads": maps,
        "scatter_pyramid_backward.index": lambda: torch.zeros(pooled, dtype=torch.uint8),
        "strides": lambda: [4.0 * 2**k for k in range(levels)],
        "output_size": lambda: p,
        "sampling_ratio": lambda: draw.choice((0, 1, 2)),
        "finest_scale": lambda: 56.0,
        "wanted": lambda: [flag() for _ in range(levels)],
        "multiscale_roi_align.valid": either(lambda: _flags(draw, b, n)),
        "multiscale_roi_align_backward.valid": either(lambda: _flags(draw, b, n)),
        "multiscale_roi_align_backward.grad": lambda: _floats(draw, b, n, c, p, p),
        "multiscale_roi_align_backward.channels_last": lambda: [flag() for _ in range(levels)],
        "grad": lambda: _floats(draw, b, n, g),
    }


def _operation(name: str) -> Operation:
    op = getattr(torch.ops.libra_ops, name).default
    names = [argument.name for argument in op._schema.arguments]

    def draw_arguments(draw: Draw) -> Arguments:
        good = _good(draw)
        return {argument: (good.get(f"{name}.{argument}") or good[argument])() for argument in names}

    return Operation(f"operator {name}", op, draw_arguments, lambda given, found: None, any_error=True)


NAMES = (
    "box_iou", "box_iou_backward", "match_boxes", "sample_iou_balanced", "nms_padded", "encode_boxes", "decode_boxes",
    "decode_boxes_backward", "topk_per_level", "balanced_l1_loss", "sigmoid_focal_loss", "integrate_pyramid",
    "integrate_pyramid_backward", "scatter_pyramid", "scatter_pyramid_backward", "multiscale_roi_align",
    "multiscale_roi_align_backward", "box_regression_loss",
)  # fmt: skip
OPERATIONS = tuple(_operation(name) for name in NAMES)
