"""Region-of-interest head (Girshick 2015): classifies each proposal and moves it onto its object.

Here two parts of Libra R-CNN meet: IoU-balanced sampling of the negatives and balanced L1 on the boxes.
B images, G target slots, P proposal slots, S sampled regions, K detection slots, C classes; label C is the background.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import libra_ops
from libra_det.config import ModelConfig
from libra_det.models.candidates import decode_boxes
from libra_det.models.losses import class_loss_sum, regression_loss_sum
from libra_det.models.postprocess import finish, usable
from libra_det.models.roi_align import multiscale_roi_align
from libra_det.structures import Detections, Proposals, Targets

STRIDES = (4, 8, 16, 32)  # the fifth level serves the proposals only


class BoxHead(nn.Module):
    """Two shared fully connected layers, then one for the classes and one for the boxes."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.num_box_classes = num_classes if config.class_specific_boxes else 1
        hidden = config.fc_channels
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(config.fpn_channels * config.roi_size**2, hidden), nn.Linear(hidden, hidden)]
        )
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, self.num_box_classes * 4)
        for layer in self.shared_fcs:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in (*self.shared_fcs, self.fc_cls, self.fc_reg):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, channels, size, size] -> hidden features [R, hidden] for `classes` and `deltas`."""
        hidden = pooled.flatten(1)
        for layer in self.shared_fcs:
            hidden = layer(hidden).relu_()
        return hidden

    def classes(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> logits [..., C + 1] float32, the background last."""
        return self.fc_cls(hidden).float()

    def deltas(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> box deltas [..., C, 4] float32 per class, or [..., 1, 4] where all classes share one."""
        return self.fc_reg(hidden).float().unflatten(-1, (self.num_box_classes, 4))


class RoIHead(nn.Module):
    """Samples, pools and judges proposals."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.bbox_head = BoxHead(config, num_classes)

    def pool(self, features: list[Tensor], boxes: Tensor, valid: Tensor | None = None) -> Tensor:
        """Pyramid maps [B, C, H_l, W_l] and boxes [B, S, 4] -> [B * S, C, roi_size, roi_size].

        valid: [B, S] bool, False for slots whose result nobody uses.
        """
        return multiscale_roi_align(
            features[: len(STRIDES)],
            boxes,
            valid,
            strides=STRIDES,
            output_size=self.config.roi_size,
            sampling_ratio=self.config.roi_sampling_ratio,
            finest_scale=self.config.roi_finest_scale,
        )

    def match(self, proposals: Proposals, targets: Targets) -> tuple[Tensor, libra_ops.Matches]:
        """Targets and proposals as one list of candidates, and what each is matched to.

        The targets come first, each its own match with IoU 1, so that there are good examples from the first step on.
        Padded slots and targets without area are ignored (state -1).

        Returns:
            boxes [B, G + P, 4] and their matches.
        """
        matches = libra_ops.match_boxes(
            proposals.boxes,
            targets.boxes,
            targets.valid,
            positive_iou=self.config.roi_positive_iou,
            negative_iou=self.config.roi_negative_iou,
            crowd=targets.crowd,
        )
        found = targets.valid & usable(targets.boxes)  # [B, G]
        own_index = torch.arange(found.shape[1], device=found.device).expand_as(found)
        state = matches.state.masked_fill(~proposals.valid, -1)
        joined = libra_ops.Matches(
            index=torch.cat((own_index, matches.index), 1),
            iou=torch.cat((found.to(matches.iou.dtype), matches.iou), 1),
            state=torch.cat((found.to(state.dtype) * 2 - 1, state), 1),  # True -> 1 positive, False -> -1 ignored
        )
        return torch.cat((targets.boxes, proposals.boxes), 1), joined

    def sample(self, matches: libra_ops.Matches, seed: Tensor | None = None) -> libra_ops.Samples:
        """The regions that the loss sees, drawn as the config says."""
        config = self.config
        balanced = config.sampler == "iou_balanced"
        return libra_ops.sample_iou_balanced(
            matches,
            num_samples=config.roi_samples,
            positive_fraction=config.roi_positive_fraction,
            num_bins=config.sampler_num_bins if balanced else 1,
            interval=(0.0, config.roi_negative_iou),
            positives=config.positive_sampler,
            bins=config.sampler_bins if balanced else "paper",
            seed=seed,
        )

    def losses(
        self, features: list[Tensor], proposals: Proposals, targets: Targets, seed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses "roi_class" and "roi_box" over sampled regions, scalar float32.

        Both are sums over the batch's sampled regions, positive and negative, divided by their number. Targets have at
        least one slot (G >= 1). seed: [1] int64, of the sampled regions; None: drawn here.
        """
        config = self.config
        with torch.no_grad():
            candidates, matches = self.match(proposals, targets)
            samples = self.sample(matches, seed)
            boxes = torch.take_along_dim(candidates, samples.index[..., None], 1)  # [B, S, 4]
            target_index = torch.take_along_dim(matches.index, samples.index, 1)  # [B, S]
            labels = torch.take_along_dim(targets.labels, target_index, 1)
            labels = torch.where(samples.positive, labels, self.num_classes)
            # Positives fill the first slots, so the boxes' part needs no others.
            num_positives = int(config.roi_samples * config.roi_positive_fraction + 1e-6)
            positive = samples.positive[:, :num_positives]
            target_boxes = torch.take_along_dim(targets.boxes, target_index[:, :num_positives, None], 1)
            count = samples.valid.sum().clamp(min=1)
        hidden = self.bbox_head(self.pool(features, boxes, samples.valid)).unflatten(0, labels.shape)  # [B, S, hidden]
        class_loss = class_loss_sum(self.bbox_head.classes(hidden), labels, samples.valid)
        deltas = self.bbox_head.deltas(hidden[:, :num_positives])  # [B, positives, C or 1, 4]
        box_class = labels[:, :num_positives].clamp(max=deltas.shape[2] - 1)  # the class whose box is meant
        deltas = torch.take_along_dim(deltas, box_class[..., None, None], 2).squeeze(2)
        box_loss = regression_loss_sum(
            deltas, boxes[:, :num_positives], target_boxes, positive, config.box_loss, config, config.roi_delta_stds
        )
        return {
            "roi_class": config.class_loss_weight * class_loss / count,
            "roi_box": config.box_loss_weight * box_loss / count,
        }

    @torch.no_grad()
    def detect(self, features: list[Tensor], proposals: Proposals, sizes: Tensor, original_sizes: Tensor) -> Detections:
        """Detections in pixels of the original images.

        Each class of each proposal is a candidate; `postprocess.finish` chooses among them.

        Args:
            sizes, original_sizes: [B, 2] float32 (height, width) of the images, resized and as stored.
        """
        num_classes = self.num_classes
        slots = proposals.valid.shape
        hidden = self.bbox_head(self.pool(features, proposals.boxes, proposals.valid)).unflatten(0, slots)
        scores = self.bbox_head.classes(hidden).softmax(-1)[..., :num_classes]  # [B, P, C]
        deltas = self.bbox_head.deltas(hidden)  # [B, P, C or 1, 4]
        boxes = decode_boxes(proposals.boxes, deltas, delta_stds=self.config.roi_delta_stds)
        # every pair of a proposal and a class is a candidate: [B, P, C] -> [B, P * C]
        boxes = boxes.expand(*slots, num_classes, 4).flatten(1, 2)
        labels = torch.arange(num_classes, device=scores.device).expand(scores.shape).flatten(1)
        valid = proposals.valid[..., None].expand(scores.shape).flatten(1)
        return finish(boxes, scores.flatten(1), labels, valid, sizes, original_sizes, self.config)
