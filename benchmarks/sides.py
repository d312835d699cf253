"""The detectors as sides of a case: a training step, or an inference, of ours and of torchvision's.

A side builds its model at its first call and gives it up when the case is over. What a call returns says what it
worked on, so that the harness can make sure that both sides do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from benchmarks import detectors, photos
from benchmarks.case import Mismatch, Side
from benchmarks.detectors import Setting
from libra_det.config import TrainConfig
from libra_det.models.backbone import FrozenStatisticsBatchNorm
from libra_det.train_step import TrainStep, make_optimizer

CLIP = 10.0  # largest norm of the gradient, for both
RATE = 0.005
BATCHES_FOR_STATISTICS = 2  # images that the stored statistics are taken from


@dataclass
class Work:
    """What a side works on. proposals: of an image, on average; regions: that the box head sees in one call."""

    setting: Setting
    training: bool
    parameters: int
    trained: int
    by_design: int  # parameters that the other side has no use for
    image: list[int] = field(default_factory=list)  # shape of the tensor that the backbone gets
    proposals: float = 0.0
    regions: int = 0


@dataclass
class Detector:
    """A side: its model, made when it is first called.

    build: makes the model and what a call does. norm and channels_last concern the model's memory and parts alone.
    """

    setting: Setting
    device: torch.device
    training: bool
    ours: bool
    channels_last: bool
    amp: bool
    changes: dict[str, Any] = field(default_factory=dict)  # of our ModelConfig
    compile: bool = False
    cuda_graph: bool = False
    norm: type[nn.Module] = FrozenStatisticsBatchNorm  # of torchvision's
    model: nn.Module | None = None
    _call: Callable[..., Any] | None = None
    _work: Work | None = None

    def prepare(self, tensors: tuple[Tensor, ...]) -> tuple:
        if self.ours:
            return (photos.our_batch(self.setting, *tensors),)
        return photos.torchvision_batch(self.setting, *tensors)

    def __call__(self, *arguments: Any) -> Work:
        if self._call is None:
            self._build(arguments)
        self._call(*arguments)
        return self._work

    def release(self) -> None:
        self._call = self.model = None

    def side(self, **more: Any) -> Side:
        comparable = not self.ours and self.norm is FrozenStatisticsBatchNorm
        agrees = same_work if comparable else None
        return Side(
            self,
            prepare=self.prepare,
            agrees=agrees,
            release=self.release,
            compiled=self.compile,
            peak=not self.cuda_graph,
            **more,
        )

    def _build(self, arguments: tuple) -> None:
        generator = torch.Generator().manual_seed(0)
        images = photos.batch_tensors(generator, replace(self.setting, batch=BATCHES_FOR_STATISTICS))[0]
        model: nn.Module = detectors.our_detector(self.setting, images, **self.changes)
        by_design = detectors.only_ours(model)
        if not self.ours:
            model = detectors.torchvision_detector(self.setting, model, self.norm)
            by_design = detectors.only_theirs(self.setting)
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        model = model.to(self.device, memory_format=memory_format).train(self.training)
        self._work = Work(
            self.setting, self.training, detectors.count(model), detectors.count(model, trained=True), by_design
        )
        self.model, self._call = model, self._train(model) if self.training else self._infer(model)
        watched = model if not self.ours else model.losses if self.training else model.detect
        # eagerly, since graphs and compiled programs call no hooks
        with _watched(model, self._work), torch.no_grad(), self._precision():
            watched(*arguments)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _train(self, model: nn.Module) -> Callable[..., Any]:
        config = TrainConfig(
            learning_rate=RATE,
            gradient_clip=CLIP,
            amp=self.amp,
            channels_last=self.channels_last,
            compile=self.compile,
            cuda_graph=self.cuda_graph,
        )
        optimizer = make_optimizer(model, config, self.device)
        if self.ours:
            step = TrainStep(model, optimizer, config, self.device)
            return lambda batch: step(batch, learning_rate=RATE)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def train(images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
            with self._precision():
                loss = sum(model(images, targets).values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()

        return train

    def _infer(self, model: nn.Module) -> Callable[..., Any]:
        detect = model.detect if self.ours else lambda images, targets: model(images)

        def infer(*arguments: Any) -> None:
            with torch.no_grad(), self._precision():
                detect(*arguments)

        return infer


@contextmanager
def _watched(model: nn.Module, work: Work) -> Iterator[None]:
    """While a model is called, writes down what it works on."""
    hooks = []

    def watch(module: nn.Module, see: Callable[[tuple, Any], None]) -> None:
        hooks.append(module.register_forward_hook(lambda _, inputs, output: see(inputs, output)))

    def image(inputs: tuple, output: Any) -> None:
        work.image = list(inputs[0].shape)

    def regions(inputs: tuple, output: Any) -> None:
        work.regions = len(inputs[0])

    def proposals(inputs: tuple, output: tuple[list[Tensor], Any]) -> None:
        work.proposals = sum(map(len, output[0])) / len(output[0])

    watch(model.backbone, image)
    if isinstance(model, FasterRCNN):
        watch(model.roi_heads.box_head, regions)
        watch(model.rpn, proposals)
    elif hasattr(model, "roi_head"):
        watch(model.roi_head.bbox_head, regions)
        propose = model.rpn_head.propose

        def proposing(*arguments: Any, **more: Any) -> Any:
            found = propose(*arguments, **more)
            work.proposals = float(found.valid.sum()) / len(found.valid)
            return found

        model.rpn_head.propose = proposing
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        vars(model.rpn_head).pop("propose", None) if hasattr(model, "rpn_head") else None


def same_work(ours: Work, theirs: Work) -> str:
    """Raises Mismatch unless both sides work on as much; returns what differs by design.

    Proposals may differ by a tenth: how many are left after suppression depends on the last bits.
    """
    if ours.image != theirs.image:
        raise Mismatch(f"images of {ours.image} here, {theirs.image} there")
    if ours.training and ours.regions != theirs.regions:
        raise Mismatch(f"{ours.regions} sampled regions here, {theirs.regions} there")
    if abs(ours.proposals - theirs.proposals) > 0.1 * max(ours.proposals, theirs.proposals):
        raise Mismatch(f"{ours.proposals:g} proposals an image here, {theirs.proposals:g} there")
    here, there = (work.trained - work.by_design for work in (ours, theirs))
    if here != there:
        raise Mismatch(f"{here:,} trained parameters here, {there:,} there, without those that differ by design")
    return (
        f"{ours.parameters:,} parameters here, {theirs.parameters:,} there ({ours.by_design:,} of the balanced pyramid "
        f"here, {theirs.by_design:,} of the background's boxes there), {ours.trained:,} and {theirs.trained:,} of them "
        f"trained; images {ours.image}, {ours.proposals:.0f} and {theirs.proposals:.0f} proposals, "
        f"{ours.regions} and {theirs.regions} regions"
    )
