"""One step of training: from a batch on the device to changed weights, without waiting for the device.

Every shape in a step is that of its padded batch, and nothing in it depends on a value that only the device knows. So
the same function runs eagerly, under torch.compile, split over several processes, and as one CUDA graph.
B images of a batch, G target slots, H x W pixels of the padded images, L losses.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from libra_det.average import WeightAverage
from libra_det.config import TrainConfig
from libra_det.distributed import ALONE, World
from libra_det.models import DetectionModel
from libra_det.step_graph import StepGraphs
from libra_det.structures import Batch, Proposals, Targets

MOST_PROGRAMS = 8
"""Shapes that are compiled, as many as torch.compile makes versions of a function. Batches of others run eagerly."""


class StepInputs(NamedTuple):
    """The tensors of a batch that its losses are computed from."""

    images: Tensor  # [B, 3, H, W] uint8
    sizes: Tensor  # [B, 2] float32 (height, width) without the padding
    targets: Targets
    proposals: Proposals | None  # of Fast R-CNN
    seeds: Tensor  # [parts, 2] int64, of the samples that the two stages draw

    @classmethod
    def of(cls, batch: Batch, parts: int = 1) -> StepInputs:
        """Of a batch whose images are worked on in so many parts, or one by one if these are more.

        The seeds come from the CPU's generator, whether the step then runs eagerly, compiled or as a CUDA graph.
        """
        if batch.targets is None:
            raise ValueError("batch.targets: expected Targets for training, got None")
        shape = (min(parts, len(batch.images)), 2)
        seeds = torch.randint(-(2**63), 2**63 - 1, shape).to(batch.images.device, non_blocking=True)
        return cls(batch.images, batch.sizes, batch.targets, batch.proposals, seeds)

    def tensors(self) -> list[Tensor]:
        return [self.images, self.sizes, self.seeds, *self.targets, *(self.proposals or ())]

    def with_tensors(self, tensors: Sequence[Tensor]) -> StepInputs:
        """The same with other tensors, in the order of `tensors()`."""
        images, sizes, seeds, *rest = tensors
        count = len(self.targets)
        proposals = None if self.proposals is None else Proposals(*rest[count:])
        return StepInputs(images, sizes, Targets(*rest[:count]), proposals, seeds)

    def split(self) -> list[StepInputs]:
        """The parts: as many images each, or one more."""
        if len(self.seeds) == 1:
            return [self]
        pieces = [tensor.tensor_split(len(self.seeds)) for tensor in self.tensors()]
        return [self.with_tensors(piece) for piece in zip(*pieces, strict=True)]


class LossFunction(nn.Module):
    """A detector's losses as a function of tensors alone: what compilers trace."""

    def __init__(self, model: DetectionModel, amp: bool) -> None:
        super().__init__()
        self.model = model
        self.amp = amp

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Targets,
        proposals: Proposals | None,
        seeds: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """As `DetectionModel.losses`: the losses by name, and the pyramid's maps."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features = self.model.features(self.model.normalise(images, sizes))
            seeds = None if seeds is None else seeds.flatten()
            return self.model.losses_from_features(features, sizes, targets, proposals, seeds), features


class MeasuredLosses(nn.Module):
    """The losses, eager or compiled, and where asked for their gradients' norms: what data parallelism wraps.

    Norms are measured inside of it, since the maps that it would return are not always those that the losses came from.
    """

    def __init__(self, losses: LossFunction, compiled: bool) -> None:
        super().__init__()
        self.losses = losses
        # Not a module of this one, which has its parameters already.
        self._programs = (losses, _compiled(losses) if compiled else losses)
        self._compiled_shapes: set[tuple] | None = set() if compiled else None
        self._said = False

    def forward(self, part: StepInputs, measure: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """The L losses by name, and the norm [L] of each one's gradient with respect to the pyramid, or None."""
        eager, compiled = self._programs
        # To differentiate by the maps inside, the program must not be one piece.
        losses, features = (eager if measure or self._is_one_too_many(part) else compiled)(*part)
        norms = torch.stack(gradient_norms(list(losses.values()), features)) if measure else None
        return losses, norms

    def _is_one_too_many(self, part: StepInputs) -> bool:
        """There are as many programs as torch.compile makes, and none for inputs of these shapes; the first is told."""
        shapes = tuple(tensor.shape for tensor in part.tensors())
        known = self._compiled_shapes
        if known is None or shapes in known:
            return False
        if len(known) < MOST_PROGRAMS:
            known.add(shapes)
            return False
        if not self._said:
            self._said = True
            print(
                f"libra: --compile: there are {MOST_PROGRAMS} programs; batches of images {list(shapes[0])}, and of "
                "further sizes, run without one. --size-buckets makes fewer padded sizes",
                file=sys.stderr,
            )
        return True


class StepValues(NamedTuple):
    """What a step computed, on the device. Of several processes each has the losses of its own images."""

    names: list[str]  # of the L losses
    values: Tensor  # float32 [L + 1], or [2 L + 1] where measured: losses, the gradient's norm, that of each loss


class TrainStep:
    """Forward, backward, clipping, optimizer and moving average for one batch.

    Of several processes each has a share of the batch; gradients are means over the processes, so that all take the
    same step. Statistics of batch norm are gathered by each process for itself, as in published training.

    Args:
        model: on `device`, in its memory format.
        optimizer: of `make_optimizer`.
        config: amp, channels_last, compile, cuda_graph, accumulate and gradient_clip are used.
        device: where the batches are.
        average: follows the weights, or None.
        world: the processes that train together; weights become those of the first.

    Raises:
        ValueError: a CUDA graph is asked for on another device, or by several processes.
    """

    def __init__(
        self,
        model: DetectionModel,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        average: WeightAverage | None = None,
        world: World = ALONE,
    ) -> None:
        if config.cuda_graph and world.size > 1:
            raise ValueError(f"--cuda-graph: expected one process, got {world.size}; leave it out")
        if config.cuda_graph and device.type != "cuda":
            raise ValueError(f"--cuda-graph: expected a CUDA device, got {device}; leave it out")
        self.model, self.optimizer, self.config, self.average = model, optimizer, config, average
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.world = world
        self._losses = MeasuredLosses(LossFunction(model, config.amp), config.compile)
        self._shared_losses: nn.Module = self._losses if world.size == 1 else _data_parallel(self._losses, device)
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
        inputs = StepInputs.of(batch, self.config.accumulate)
        if self.config.channels_last:
            inputs = inputs._replace(images=inputs.images.contiguous(memory_format=torch.channels_last))
        set_learning_rate(self.optimizer, learning_rate)
        if self._graphs is None:
            values = self._compute(inputs, measure=measure)
        elif measure:
            values = self._graphs.eagerly(inputs, measure=True)
        else:
            values = self._graphs(inputs)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return StepValues(self._names, values)

    def _compute(self, inputs: StepInputs, measure: bool = False) -> Tensor:
        """What a CUDA graph captures: from the zeroed gradients to the new weights -> `StepValues.values`."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = inputs.split()
        total, norms = torch.zeros((), device=inputs.images.device), []
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            losses, part_norms = (self._shared_losses if last else self._losses)(part, measure)
            share = len(part.images) / len(inputs.images)
            values = torch.stack(list(losses.values())) * share
            if part_norms is not None:
                norms.append(part_norms * share)
            self._add_gradients(values.sum(), last)
            total = total + values.detach()
        self._names = list(losses)
        limit = math.inf if self.config.gradient_clip is None else self.config.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimizer.step()
        # of several parts the norms are added up, as if the parts' gradients pointed the same way
        return torch.cat([total, norm.detach().reshape(1), *([torch.stack(norms).sum(0)] if measure else [])]).float()

    def _add_gradients(self, loss: Tensor, last: bool) -> None:
        """Those of a part. Of several processes each keeps them to itself until the last part, which averages all.

        `DistributedDataParallel.no_sync` would do that, but not with a static graph: its first backward pass hands
        over all gradients, also those that it was to keep, and its second counts them wrongly. Gradients that are
        asked for by name pass it by.
        """
        if last or self.world.size == 1:
            loss.backward()
            return
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD over the parameters of `model` that are trained. For a CUDA graph the learning rate lives on the device."""
    rate: float | Tensor = config.learning_rate
    if config.cuda_graph and device.type == "cuda":
        rate = torch.tensor(rate, device=device)
    return torch.optim.SGD(
        [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad],
        lr=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take the momentum of a saved state. What the configuration says stays, and with it where the rate lives.

    Args:
        optimizer: of `make_optimizer`.
        state: the state_dict of one with the same parameters, as a checkpoint has it.

    Raises:
        ValueError: it is of other parameters, or a momentum is not finite; nothing was taken then.
    """
    both = (optimizer.param_groups, state["param_groups"])
    own, saved = ([len(group["params"]) for group in groups] for groups in both)
    if own != saved:
        raise ValueError(f"optimizer: expected groups of {own} parameters, as the model has them, got {saved}")
    momenta = {}
    for group, numbers in zip(*both, strict=True):
        for name, parameter, number in zip(group["param_names"], group["params"], numbers["params"], strict=True):
            momentum = state["state"].get(number, {}).get("momentum_buffer")
            if momentum is None:
                continue
            if momentum.shape != parameter.shape:
                raise ValueError(
                    f"optimizer: expected a momentum of shape {list(parameter.shape)} for {name}, "
                    f"got {list(momentum.shape)}"
                )
            if not momentum.float().isfinite().all():
                raise ValueError(f"optimizer: the momentum of {name} holds NaN or infinite numbers")
            momenta[parameter] = momentum
    for parameter, momentum in momenta.items():  # fused optimizers walk through memory: it lies as the weight does
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


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


def _data_parallel(losses: MeasuredLosses, device: torch.device) -> DistributedDataParallel:
    """Averages the gradients of all processes while they are computed."""
    return DistributedDataParallel(
        losses,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,  # statistics: frozen, or each process's own
        gradient_as_bucket_view=True,
        static_graph=True,
    )


def _compiled(losses: nn.Module) -> nn.Module:
    """One program for each padded size: no shape changes within it, and nothing in it is left to Python."""
    return torch.compile(losses, fullgraph=True, dynamic=False)
