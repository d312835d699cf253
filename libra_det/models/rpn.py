"""Region proposal network (Ren et al. 2015): scores every anchor and moves it; the best become proposals.

B images, L levels, N anchors of all levels, G target slots, S sampled anchors or proposal slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import libra_ops
from libra_det.config import ModelConfig
from libra_det.models.anchors import AnchorPredictions, base_anchors_of_levels, inside_padding, join_levels
from libra_det.models.candidates import best_per_level, decode_boxes, levels_of_slots
from libra_det.models.losses import binary_loss_sum, regression_loss_sum
from libra_det.models.postprocess import boxes_at, non_maximum_suppression, usable
from libra_det.structures import Proposals, Targets

STRIDES = (4, 8, 16, 32, 64)


class RPNHead(nn.Module):
    """A 3x3 convolution and two 1x1 ones, the same for every level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        base = base_anchors_of_levels(STRIDES, config)
        self.register_buffer("base_anchors", base, persistent=False)  # [L, A, 4]
        channels, num_anchors = config.fpn_channels, base.shape[1]
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, num_anchors, 1)
        self.rpn_reg = nn.Conv2d(channels, num_anchors * 4, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> AnchorPredictions:
        """Maps [B, C, H_l, W_l] at `STRIDES` -> predictions for all anchors."""
        class_maps, box_maps = [], []
        for feature in features:
            hidden = self.rpn_conv(feature).relu_()
            class_maps.append(self.rpn_cls(hidden))
            box_maps.append(self.rpn_reg(hidden))
        predictions = join_levels(class_maps, box_maps, STRIDES, self.base_anchors)
        return predictions._replace(logits=predictions.logits.squeeze(-1))  # [B, N, 1] -> [B, N]

    @torch.no_grad()
    def propose(self, predictions: AnchorPredictions, sizes: Tensor, *, per_level: int, limit: int) -> Proposals:
        """The best moved anchors.

        Each level gives its `per_level` best anchors; they are clipped to the image and thinned by non-maximum
        suppression within the level; the `limit` best of all levels stay. Boxes without area or that are not finite are
        dropped.

        Args:
            sizes: [B, 2] float32 (height, width) of the images without padding.
        """
        sizes_of_levels = predictions.level_sizes
        logits, index = best_per_level(predictions.logits, sizes_of_levels, per_level)  # [B, T]
        candidates = decode_boxes(predictions.anchors, predictions.deltas, index=index, sizes=sizes)  # [B, T, 4]
        levels = levels_of_slots(index, sizes_of_levels, per_level)
        scores = logits.sigmoid()
        valid = usable(candidates) & scores.isfinite()
        index, valid = non_maximum_suppression(candidates, scores, levels, valid, self.config.proposal_nms_iou, limit)
        mask = valid[..., None]
        return Proposals(
            boxes_at(candidates, index).masked_fill(~mask, 0.0),
            scores.gather(1, index).masked_fill(~valid, 0.0),
            valid,
        )

    def losses(
        self, predictions: AnchorPredictions, sizes: Tensor, targets: Targets, seed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses "rpn_class" and "rpn_box" over sampled anchors, scalar float32.

        Both are sums over the batch's sampled anchors divided by their number. Targets have at least one slot (G >= 1).
        seed: [1] int64, of the sampled anchors; None: drawn here.
        """
        config = self.config
        with torch.no_grad():
            matches = libra_ops.match_boxes(
                predictions.anchors,
                targets.boxes,
                targets.valid,
                positive_iou=config.rpn_positive_iou,
                negative_iou=config.rpn_negative_iou,
                min_positive_iou=config.rpn_min_positive_iou,
                crowd=targets.crowd,
            )
            inside = inside_padding(predictions.cells, sizes)  # [B, N]
            matches = matches._replace(state=matches.state.masked_fill(~inside, -1))
            samples = libra_ops.sample_iou_balanced(
                matches,
                num_samples=config.rpn_samples,
                positive_fraction=config.rpn_positive_fraction,
                num_bins=1,
                interval=(0.0, config.rpn_negative_iou),
                max_negatives_per_positive=config.rpn_max_negatives_per_positive,
                positives="random",
                seed=seed,
            )
            # Positives fill the first slots, so the boxes' part needs no others.
            num_positives = int(config.rpn_samples * config.rpn_positive_fraction + 1e-6)
            chosen = samples.index[:, :num_positives]  # [B, P]
            target_index = torch.take_along_dim(matches.index, chosen, 1)
            target_boxes = torch.take_along_dim(targets.boxes, target_index[..., None], 1)  # [B, P, 4]
            anchors = predictions.anchors[chosen]  # [B, P, 4]
            count = samples.valid.sum().clamp(min=1)
        logits = torch.take_along_dim(predictions.logits, samples.index, 1)  # [B, S]
        deltas = torch.take_along_dim(predictions.deltas, chosen[..., None], 1)  # [B, P, 4]
        class_loss = binary_loss_sum(logits, samples.positive, samples.valid)
        positive = samples.positive[:, :num_positives]
        box_loss = regression_loss_sum(deltas, anchors, target_boxes, positive, config.rpn_box_loss, config)
        return {
            "rpn_class": config.rpn_class_loss_weight * class_loss / count,
            "rpn_box": config.rpn_box_loss_weight * box_loss / count,
        }
