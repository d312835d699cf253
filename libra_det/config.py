"""What a run is made of: three frozen dataclasses and the one that holds them.

A recipe (`libra_det.recipes`) is a function that returns one complete `Config`; the command line replaces single fields
of it (`--epochs 3 --pyramid none`). Nothing else configures a run, and a run folder stores its `Config` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from libra_det.plain_json import parse_json
from libra_det.terminal import shown
from libra_det.validation import check_fields, check_order

_LARGEST_LAYER = 2**30
"""Weights of the RoI head's first layer; published models have 2^23.6."""


@dataclass(frozen=True)
class ModelConfig:
    """The detector. Every Libra component stands beside its plain counterpart."""

    detector: Literal["faster_rcnn", "fast_rcnn", "retinanet"] = "faster_rcnn"
    """faster_rcnn finds its regions itself, fast_rcnn takes those of a file (proposals), retinanet has no regions."""

    # Backbone: a torchvision ResNet or ResNeXt, built by its constructor's name.
    backbone: str = "resnet50"
    """Name of a torchvision ResNet or ResNeXt constructor, such as resnet18 or resnext101_64x4d."""
    backbone_weights: str | None = None
    """File of backbone weights by torchvision's names, or a torchvision weights name such as DEFAULT; none: random."""
    norm: Literal["batch_norm", "frozen_batch_norm", "group_norm"] = "frozen_batch_norm"
    """batch_norm trains its statistics; frozen_batch_norm keeps them and trains scale and shift; group_norm: none."""
    frozen_stages: int = 1
    """Leading stages that are not trained: -1 none, 0 the stem, 1 the stem and layer1, up to 4."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from the RGB channels, which lie in 0..255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Divides the RGB channels after the subtraction."""

    # Neck.
    fpn_channels: int = 256
    """Channels of every pyramid level."""
    pyramid: Literal["none", "mean", "conv", "non_local"] = "non_local"
    """Balanced feature pyramid: none (plain FPN), mean (integrate and scatter), or a refinement of the mean map."""
    refine_level: int = 2
    """Pyramid level, 0 the finest, at whose size the levels are integrated."""

    # Anchors, of the region proposal network and of RetinaNet.
    anchor_scale: float = 8.0
    """Side of a square anchor, in strides of its level."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    anchor_scales_per_octave: int = 1
    """Sizes of each ratio: 3 adds anchors 2^(1/3) and 2^(2/3) times as large."""

    # Region proposal network.
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3
    """A target whose best anchor reaches this IoU claims that anchor, even under rpn_positive_iou."""
    rpn_samples: int = 256
    """Anchors per image that the loss sees."""
    rpn_positive_fraction: float = 0.5
    rpn_max_negatives_per_positive: float | None = 5.0
    rpn_box_loss: Literal["l1", "smooth_l1", "balanced_l1", "iou", "giou", "diou", "ciou"] = "l1"
    """As box_loss."""
    rpn_class_loss_weight: float = 1.0
    rpn_box_loss_weight: float = 1.0
    proposals_per_level: int = 2000
    """Best-scored anchors of each level that go into NMS, in training."""
    proposals_per_level_test: int = 1000
    """Best-scored anchors of each level that go into NMS, in testing."""
    proposals_train: int = 1000
    """Proposals per image after NMS, in training."""
    proposals_test: int = 1000
    """Proposals per image after NMS, in testing."""
    proposal_nms_iou: float = 0.7

    # Region-of-interest head.
    roi_positive_iou: float = 0.5
    roi_negative_iou: float = 0.5
    roi_samples: int = 512
    """Proposals per image that the loss sees."""
    roi_positive_fraction: float = 0.25
    sampler: Literal["random", "iou_balanced"] = "iou_balanced"
    """How the negatives of the RoI head are drawn."""
    sampler_bins: Literal["paper", "published"] = "paper"
    """What the IoU bins span: the negatives' interval as in the paper, or all IoUs as published code has it."""
    sampler_num_bins: int = 3
    positive_sampler: Literal["random", "instance_balanced"] = "instance_balanced"
    roi_size: int = 7
    roi_sampling_ratio: int = 0
    """Samples per RoIAlign bin and axis; 0 adapts to the box."""
    roi_finest_scale: float = 56.0
    """Boxes of sqrt(area) under twice this many pixels go to the finest level."""
    fc_channels: int = 1024
    class_specific_boxes: bool = True
    """One box regression per class, or one for all."""
    roi_delta_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)

    # RetinaNet's head.
    retina_convs: int = 4
    """Convolutions before the last one, for the classes and for the boxes."""
    retina_positive_iou: float = 0.5
    retina_negative_iou: float = 0.4
    retina_min_positive_iou: float = 0.0
    """A target whose best anchor reaches this IoU (and overlaps it) claims that anchor, even under the threshold."""
    retina_candidates_per_level: int = 1000
    """Best-scored pairs of an anchor and a class of each level that go into NMS."""
    focal_alpha: float = 0.25
    """Weight of an anchor's own class in the focal loss; the others have 1 - alpha."""
    focal_gamma: float = 2.0
    """How much less confident right answers count in the focal loss."""

    # Losses of the last head: that on regions, or RetinaNet's.
    box_loss: Literal["l1", "smooth_l1", "balanced_l1", "iou", "giou", "diou", "ciou"] = "balanced_l1"
    """A loss of the four deltas, or 1 - the overlap of the decoded box with its target. The latter is at most 1 or 2 a
    box and goes with a larger box_loss_weight: mmdetection's Faster R-CNN with GIoU has 10."""
    box_loss_beta: float = 1.0
    """Where smooth_l1 and balanced_l1 become linear."""
    balanced_l1_alpha: float = 0.5
    balanced_l1_gamma: float = 1.5
    balanced_l1_formula: Literal["paper", "published"] = "paper"
    """As in the paper, or as published code has it; the same where box_loss_beta is 1."""
    class_loss_weight: float = 1.0
    box_loss_weight: float = 1.0

    # Detections.
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "[1, 2048]": "fpn_channels",
                "[1, 16384]": "fc_channels",
                "[1, 100000]": "rpn_samples proposals_per_level proposals_per_level_test proposals_train "
                "proposals_test roi_samples detections_per_image retina_candidates_per_level",
                "[1, 32]": "roi_size anchor_scales_per_octave",
                "[0, 32]": "roi_sampling_ratio retina_convs",
                "(0, 1e6]": "pixel_std box_loss_beta balanced_l1_alpha balanced_l1_gamma roi_finest_scale "
                "roi_delta_stds",
                "[1e-3, 1e4]": "anchor_scale anchor_ratios",
                "[0, 1e6]": "rpn_max_negatives_per_positive rpn_class_loss_weight rpn_box_loss_weight "
                "class_loss_weight box_loss_weight",
                "[-1e6, 1e6]": "pixel_mean",
                "[0, 1000]": "focal_gamma",
                "[0, 1]": "rpn_positive_iou rpn_min_positive_iou rpn_positive_fraction proposal_nms_iou "
                "roi_positive_iou roi_positive_fraction retina_positive_iou retina_min_positive_iou focal_alpha "
                "score_threshold nms_iou",
                "(0, 1]": "rpn_negative_iou roi_negative_iou retina_negative_iou",
                "[-1, 4]": "frozen_stages",
                "[0, 4]": "refine_level",
                "[1, 64]": "sampler_num_bins",
            },
        )
        if not self.anchor_ratios:
            raise ValueError("anchor_ratios: expected at least one, got ()")
        weights = self.fpn_channels * self.roi_size**2 * self.fc_channels
        if weights > _LARGEST_LAYER:
            raise ValueError(
                f"fc_channels: with fpn_channels {self.fpn_channels} and roi_size {self.roi_size} the first layer has "
                f"{weights} weights; expected at most {_LARGEST_LAYER}"
            )
        check_order(self, "rpn_negative_iou", "rpn_positive_iou")
        check_order(self, "roi_negative_iou", "roi_positive_iou")
        check_order(self, "retina_negative_iou", "retina_positive_iou")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what is done to them."""

    data: str = "shapes"
    """A folder with COCO JSON or Pascal VOC annotations, or "shapes" for the embedded data set."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: str = "val"
    """Split that is evaluated after training."""
    train_annotations: str | None = None
    """COCO JSON to train on, where it does not lie in the data folder under a usual name."""
    eval_annotations: str | None = None
    """COCO JSON to evaluate on, likewise."""
    image_folder: str | None = None
    """Folder that file names are relative to, where it is not the data folder."""
    allow_outside: bool = False
    """Read images also where the annotations name files outside the data folder."""
    proposals: str | None = None
    """File of `libra proposals` with the regions of train_split, for fast_rcnn."""
    eval_proposals: str | None = None
    """The same for eval_split."""
    max_proposals: int = 2000
    """Best regions of an image that are taken from these files."""
    short_side: int = 800
    """Images are resized so that their shorter side is this many pixels ..."""
    long_side: int = 1333
    """... unless the longer one would pass this many."""
    size_divisor: int = 32
    """Batches are padded to a multiple of this."""
    size_buckets: int = 0
    """Padded sizes that training images are grouped into, so that shapes repeat; 0 pads each batch to its largest."""
    antialias: bool = True
    """Smooth images before they are made smaller; off: bilinear as OpenCV has it, as published models expect."""
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Training sizes are multiplied by a factor drawn from this range."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 none."""
    batch_size: int = 2
    """Images of a training step, over all processes."""
    workers: int = 2
    """Processes that load images, for each that trains; 0 loads in the training process."""
    cache_mb: int = 0
    """Memory for resized training images that are kept from epoch to epoch, shared by the workers (Linux); 0 none."""
    skip_empty: bool = True
    """Leave images without objects out of training (they are always evaluated)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "[1, 16384]": "short_side long_side",
                "[1, 1024]": "size_divisor",
                "[1, 65536]": "batch_size",
                "[1, 1000000]": "max_proposals",
                "[0, 1024]": "workers size_buckets",
                "[0, 10000000]": "cache_mb",
                "[0, 10]": "color_jitter",
                "(0, 8]": "scale_jitter",
                "[0, 1]": "horizontal_flip vertical_flip",
            },
        )
        check_order(self, "short_side", "long_side")
        if self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError(f"scale_jitter: expected the smaller factor first, got {self.scale_jitter}")


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are found."""

    epochs: int = 12
    learning_rate: float = 0.0025
    """Peak learning rate, for this batch size."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["step", "one_cycle", "cosine"] = "step"
    step_epochs: tuple[int, ...] = (8, 11)
    """Epochs after which the step schedule divides the learning rate by ten."""
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    gradient_clip: float | None = 35.0
    """Largest total norm of the gradient; none: no clipping."""
    amp: bool = False
    """Run the forward pass in bfloat16 autocast."""
    channels_last: bool = False
    """Keep images and weights in channels-last memory format."""
    compile: bool = False
    """Compile the losses with torch.compile, once for each padded size."""
    cuda_graph: bool = False
    """Replay each step as one CUDA graph, captured once for each padded size; on one GPU."""
    accumulate: int = 1
    """Parts that a batch goes through the model in, their gradients added up, to need less memory."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then what is evaluated and used; 0 none."""
    seed: int = 0
    log_every: int = 10
    """Steps between two lines of log.jsonl."""
    log_gradient_share_every: int = 100
    """Steps between two measurements of each loss's share of the gradient; 0 never."""
    keep_checkpoints: int = 2
    """Newest epoch checkpoints that are kept; 0 keeps all, and 1 is as 2: two files stay in any case."""
    eval_every: int = 0
    """Epochs between two evaluations; 0 evaluates after the last only."""
    threads: int | None = None
    """CPU threads; none leaves torch's choice."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "[1, 100000]": "epochs step_epochs",
                "[1, 1024]": "threads",
                "[1, 65536]": "accumulate",
                "(0, 1e38]": "learning_rate gradient_clip",
                "[0, 1e6]": "weight_decay",
                "[0, 100000000]": "warmup_steps log_every log_gradient_share_every",
                "[0, 1000000]": "keep_checkpoints eval_every",
                "[0, 1)": "momentum ema_decay",
                "[0, 1]": "warmup_factor",
                "[0, 9e18]": "seed",
            },
        )


@dataclass(frozen=True)
class Config:
    """One complete run."""

    recipe: str
    """Name of the function in libra_det.recipes that gives the fields their values: shapes, bccd, ..."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_fields(self, {})
        if self.data.batch_size % self.train.accumulate:
            raise ValueError(
                f"accumulate: expected a divisor of batch_size {self.data.batch_size}, got {self.train.accumulate}"
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        return _build(cls, parse_json(text), "config")


def _build(cls: type, values: Any, where: str) -> Any:
    """A frozen dataclass from nested dicts; an unknown field is an error, a missing one keeps its default."""
    if not isinstance(values, dict):
        raise TypeError(f"{where}: expected an object with fields, got {shown(values)}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown field {shown(unknown[0])}; expected one of {', '.join(hints)}")
    converted = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.{error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if isinstance(value, list):  # JSON has no tuples
        return tuple(value)
    return value
