"""Libra R-CNN's balanced training in torchvision's own Faster R-CNN, through `libra_ops` alone.

`use_libra(model)` replaces what the second stage is trained on: proposals are matched with `match_boxes`, negatives are
drawn evenly over IoU and positives evenly over objects with `sample_iou_balanced`, and boxes learn from
`balanced_l1_loss`. Layers, parameter names and inference stay torchvision's, so its checkpoints load before and after.

    python examples/torchvision_faster_rcnn.py        # some steps on the embedded shapes; the losses fall

B images, N proposals of an image with ground truths and padding, G targets, S samples, C classes with the background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.transforms.v2.functional import to_dtype, to_image

from libra_ops import balanced_l1_loss, match_boxes, sample_iou_balanced


class LibraRoIHeads(RoIHeads):
    """torchvision's second stage with Libra R-CNN's samples and box loss in training."""

    def forward(self, features, proposals, image_shapes, targets=None):
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        boxes, labels, valid, wanted = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, list(boxes), image_shapes)  # [B * S, channels, 7, 7]
        logits, deltas = self.box_predictor(self.box_head(pooled))  # [B * S, C] and [B * S, C * 4]
        labels, valid, wanted = labels.flatten(), valid.flatten(), wanted.flatten(0, 1)
        own = deltas.unflatten(1, (-1, 4)).take_along_dim(labels[:, None, None], 1).squeeze(1)  # [B * S, 4]
        count = valid.sum().clamp(min=1)  # positive and negative samples; the rest is padding
        class_loss = F.cross_entropy(logits, labels.masked_fill(~valid, -100), reduction="sum")  # -100: left out
        box_loss = balanced_l1_loss(own, wanted, (valid & (labels > 0))[:, None].float(), reduction="sum")
        return [], {"loss_classifier": class_loss / count, "loss_box_reg": box_loss / count}

    @torch.no_grad()
    def select_training_samples(self, proposals, targets):
        """Samples of each image: boxes [B, S, 4], labels [B, S] (0: background), valid [B, S], deltas [B, S, 4]."""
        self.check_targets(targets)
        target_boxes, exists = padded([target["boxes"].float() for target in targets])  # [B, G, 4], [B, G]
        target_labels, _ = padded([target["labels"] for target in targets])  # [B, G]
        with_targets = [torch.cat((t["boxes"].float(), found)) for t, found in zip(targets, proposals, strict=True)]
        boxes, is_box = padded(with_targets)  # [B, N, 4], [B, N]
        high, low = self.proposal_matcher.high_threshold, self.proposal_matcher.low_threshold
        matches = match_boxes(boxes, target_boxes, exists, positive_iou=high, negative_iou=low)
        matches = matches._replace(state=matches.state.masked_fill(~is_box, -1))  # padding is never drawn
        samples = sample_iou_balanced(
            matches,
            num_samples=self.fg_bg_sampler.batch_size_per_image,
            positive_fraction=self.fg_bg_sampler.positive_fraction,
            interval=(0.0, low),
        )
        chosen = boxes.take_along_dim(samples.index[..., None], 1)
        matched = matches.index.take_along_dim(samples.index, 1)  # [B, S], the target of each sample
        labels = torch.where(samples.positive, target_labels.take_along_dim(matched, 1), 0)
        target_of = target_boxes.take_along_dim(matched[..., None], 1)  # [B, S, 4]
        wanted = self.box_coder.encode_single(target_of.flatten(0, 1), chosen.flatten(0, 1)).view_as(chosen)
        return chosen, labels, samples.valid, wanted


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors [n, ...] of each image as one [B, longest, ...] with at least one slot, and which slots are real."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    values = pad_sequence([*rows, rows[0].new_zeros(1, *rows[0].shape[1:])], batch_first=True)[:-1]
    return values, torch.arange(values.shape[1], device=lengths.device) < lengths[:, None]


def use_libra(model: FasterRCNN) -> FasterRCNN:
    """The same model, trained as Libra R-CNN from now on."""
    heads = model.roi_heads
    model.roi_heads = LibraRoIHeads(
        *(heads.box_roi_pool, heads.box_head, heads.box_predictor),
        *(heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold),
        *(heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction, heads.box_coder.weights),
        *(heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
    ).train(model.training)
    return model


def small_model(num_classes: int) -> FasterRCNN:
    """ResNet-18 with a pyramid, from random initialisation, for images of 160 pixels; the background counts as one."""
    options = {"weights": None, "trainable_layers": 5, "norm_layer": nn.BatchNorm2d}
    backbone = resnet_fpn_backbone(backbone_name="resnet18", **options)
    return FasterRCNN(backbone, num_classes, min_size=160, max_size=160, box_batch_size_per_image=64)


def shapes(folder, split: str = "train") -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Images float [3, H, W] in 0..1 and their targets, of a folder as `libra_det.data.shapes` draws it."""
    data = CocoDetection(folder, f"{folder}/{split}.json")
    data = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    return [(to_dtype(to_image(image), torch.float32, scale=True), target) for image, target in data if target]


def train(model: FasterRCNN, examples: list, steps: int, batch_size: int = 4) -> list[float]:
    """The total loss of each step of plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    history = []
    for step in range(steps):
        batch = [examples[i % len(examples)] for i in range(step * batch_size, (step + 1) * batch_size)]
        losses = model.train()(*zip(*batch, strict=True))  # images and targets
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(total.item())
        print(f"step {step}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
    return history


if __name__ == "__main__":
    from libra_det.data.shapes import CLASSES, shapes_folder

    torch.manual_seed(0)
    train(use_libra(small_model(len(CLASSES) + 1)), shapes(shapes_folder())[:64], steps=48)
