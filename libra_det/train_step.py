"""One step of training: from a batch on the device to changed weights, without waiting for the device.

Every shape in a step is that of its padded batch, and nothing in it depends on a value that only the device knows. So
the same function runs eagerly, under torch.compile, split over several processes, and as one CUDA graph.
B images of a batch, G target slots, H x W pixels of the padded images, L losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from libra_det.average import WeightAverage
from libra_det.config import TrainConfig
from libra_det.models import DetectionModel
from libra_det.step_graph import StepGraphs
from libra_det.structures import Batch, Proposals, Targets


class StepInputs(NamedTuple):
    """The tensors of a batch that its losses are computed from."""

    images: Tensor  # [B, 3, H, W] uint8
    sizes: Tensor  # [B, 2] float32 (height, width) without the padding
    targets: Targets
    proposals: Proposals | None  # of Fast R-CNN

    @classmethod
    def of(cls, batch: Batch) -> StepInputs:
        if batch.targets is None:
            raise ValueError("batch.targets: expected Targets for training, got None")
        return cls(batch.images, batch.sizes, batch.targets, batch.proposals)

    def tensors(self) -> list[Tensor]:
        return [self.images, self.sizes, *self.targets, *(self.proposals or ())]

    def with_tensors(self, tensors: Sequence[Tensor]) -> StepInputs:
        """The same with other tensors, in the order of `tensors()`."""
        images, sizes, *rest = tensors
        count = len(self.targets)
        proposals = None if self.proposals is None else Proposals(*rest[count:])
        return StepInputs(images, sizes, Targets(*rest[:count]), proposals)

    def split(self, parts: int) -> list[StepInputs]:
        """Equal shares of the batch's images; `parts` divides B."""
        if parts == 1:
            return [self]
        pieces = [tensor.chunk(parts) for tensor in self.tensors()]
        return [self.with_tensors(piece) for piece in zip(*pieces, strict=True)]


class LossFunction(nn.Module):
    """A detector's losses as a function of tensors alone: what compilers trace and data parallelism wraps."""

    def __init__(self, model: DetectionModel, amp: bool) -> None:
        super().__init__()
        self.model = model
        self.amp = amp

    def forward(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """As `DetectionModel.losses`: the losses by name, and the pyramid's maps."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features = self.model.features(self.model.normalise(images, sizes))
            return self.model.losses_from_features(features, sizes, targets, proposals), features


class StepValues(NamedTuple):
    """What a step computed, on the device."""

    names: list[str]  # of the L losses
    values: Tensor  # float32 [L + 1], or [2 L + 1] where measured: losses, the gradient's norm, that of each loss


class TrainStep:
    """Forward, backward, clipping, optimizer and moving average for one batch.

    Args:
        model: on `device`, in its memory format.
        optimizer: of `make_optimizer`.
        config: amp, channels_last, compile, cuda_graph, accumulate and gradient_clip are used.
        device: where the batches are.
        average: follows the weights, or None.

    Raises:
        ValueError: a CUDA graph is asked for on another device.
    """

    def __init__(
        self,
        model: DetectionModel,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        average: WeightAverage | None = None,
    ) -> None:
        if config.cuda_graph and device.type != "cuda":
            raise ValueError(f"--cuda-graph: expected a CUDA device, got {device}; leave it out")
        self.model, self.optimizer, self.config, self.average = model, optimizer, config, average
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._losses: nn.Module = LossFunction(model, config.amp)
        self._compiled = _compiled(self._losses) if config.compile else self._losses
        self._graphs = StepGraphs(self._compute, device) if config.cuda_graph else None
        self._names: list[str] = []

    def __call__(self, batch: Batch, *, learning_rate: float, measure: bool = False) -> StepValues:
        """Take a step.

        Args:
            batch: on the device, with targets.
            learning_rate: of this step.
            measure: also the norm of each loss's gradient with respect to the pyramid, which takes a backward pass
                for each. The step is the same.
        """
        inputs = StepInputs.of(batch)
        if self.config.channels_last:
            inputs = inputs._replace(images=inputs.images.contiguous(memory_format=torch.channels_last))
        set_learning_rate(self.optimizer, learning_rate)
        if measure:
            values = self._compute(inputs, measure=True)
        elif self._graphs is not None:
            values = self._graphs(inputs)
        else:
            values = self._compute(inputs)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return StepValues(self._names, values)

    def _compute(self, inputs: StepInputs, measure: bool = False) -> Tensor:
        """What a CUDA graph captures: from the zeroed gradients to the new weights -> `StepValues.values`."""
        # To differentiate by the maps inside, the program must not be one piece.
        function = self._losses if measure else self._compiled
        self.optimizer.zero_grad(set_to_none=True)
        parts = inputs.split(self.config.accumulate)
        total, norms = torch.zeros((), device=inputs.images.device), []
        for number, part in enumerate(parts):
            with self._gradients_stay_here(number + 1 < len(parts)):
                losses, features = function(*part)
                values = torch.stack(list(losses.values())) / len(parts)
                if measure:
                    norms.append(torch.stack(gradient_norms(list(losses.values()), features)) / len(parts))
                values.sum().backward()
            total = total + values.detach()
        self._names = list(losses)
        limit = math.inf if self.config.gradient_clip is None else self.config.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimizer.step()
        # of several parts the norms are added up, as if the parts' gradients pointed the same way
        return torch.cat([total, norm.detach().reshape(1), *([torch.stack(norms).sum(0)] if measure else [])]).float()

    def _gradients_stay_here(self, wanted: bool) -> AbstractContextManager[None]:
        """Where several processes train: their gradients are not averaged yet."""
        no_sync = getattr(self._losses, "no_sync", None)
        return no_sync() if wanted and no_sync is not None else nullcontext()


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD over the parameters of `model` that are trained. For a CUDA graph the learning rate lives on the device."""
    rate: float | Tensor = config.learning_rate
    if config.cuda_graph and device.type == "cuda":
        rate = torch.tensor(rate, device=device)
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take the momentum of a saved state. What the configuration says stays, and with it where the rate lives."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def gradient_norms(losses: Sequence[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
    """Norm of each loss's gradient with respect to the maps that all share; 0 for a loss that does not reach them.

    Args:
        losses: scalars, whose graph is kept.
        features: the pyramid's maps [B, C, H_l, W_l].
    """
    norms = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
        used = [gradient.float() for gradient in gradients if gradient is not None]
        norms.append(torch.nn.utils.get_total_norm(used) if used else torch.zeros_like(loss))
    return norms


def _compiled(losses: nn.Module) -> nn.Module:
    """One program for each padded size: no shape changes within it, and nothing in it is left to Python."""
    return torch.compile(losses, fullgraph=True, dynamic=False)
