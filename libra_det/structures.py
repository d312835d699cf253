"""Fixed-shape batches: what is ragged in reality is padding plus a mask that stays on the device.

B images of a batch, G target slots, S proposal slots, K detection slots; H, W the padded image size.
Boxes are xyxy in continuous pixels, float32. A mask is True where a slot is real; padded slots hold zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """Ground truth of a batch, in pixels of the resized images."""

    boxes: Tensor  # [B, G, 4] float32
    labels: Tensor  # [B, G] int64 in 0..C-1; C is the background
    valid: Tensor  # [B, G] bool: an object to be found (neither padding nor crowd)
    crowd: Tensor  # [B, G] bool: a region of many objects, inside which nothing is a negative


class Proposals(NamedTuple):
    """Candidate regions of a batch, in pixels of the resized images, best first."""

    boxes: Tensor  # [B, S, 4] float32
    scores: Tensor  # [B, S] float32 in 0..1
    valid: Tensor  # [B, S] bool


class Detections(NamedTuple):
    """Found objects of a batch, best first."""

    boxes: Tensor  # [B, K, 4] float32, in pixels of the original images
    scores: Tensor  # [B, K] float32 in 0..1
    labels: Tensor  # [B, K] int64 in 0..C-1
    valid: Tensor  # [B, K] bool


@dataclass
class Batch:
    """Images of one step. `targets` is None where there are no annotations (prediction)."""

    images: Tensor  # [B, 3, H, W] uint8 RGB; beyond an image's own size it holds zeros
    sizes: Tensor  # [B, 2] float32: height, width of each resized image, without the padding
    original_sizes: Tensor  # [B, 2] float32: height, width of each image as stored (after EXIF rotation)
    targets: Targets | None
    image_ids: list[int]  # [B] ids as in the annotations
    file_names: list[str]  # [B] for messages
    proposals: Proposals | None = None  # computed before, for Fast R-CNN

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device` (copied without waiting where the memory is pinned)."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the data loader: the same batch in page-locked memory."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=move(self.images),
            sizes=move(self.sizes),
            original_sizes=move(self.original_sizes),
            targets=None if self.targets is None else Targets(*map(move, self.targets)),
            proposals=None if self.proposals is None else Proposals(*map(move, self.proposals)),
        )
