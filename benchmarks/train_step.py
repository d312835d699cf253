"""A training step, batch on the device to changed weights, of our detectors and of torchvision's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks import photos
from benchmarks.case import OURS, Case, Plan, Side
from benchmarks.detectors import COCO, COCO_RETINA, SMALL, TINY, TINY_RETINA, Setting
from benchmarks.sides import Detector

TITLE = "A training step"
AXIS = "images"
OURS_IS = "libra_det"
TEXT = f"""\
Forward, losses, backward, clipping and SGD for a batch that lies on the device. *{OURS_IS}*: all of Libra
(IoU-balanced sampling, balanced pyramid, balanced L1), through `libra_det.train_step.TrainStep` as `libra train` takes
it; *plain pyramid*: the same without the balanced pyramid. *torchvision*: its `FasterRCNN` or `RetinaNet` of the
same backbone, pyramid, heads, anchors, proposals, samples, weights and optimizer, on images of the same size, which it
gets as float32 ready to be normalised; *FrozenBatchNorm2d*: with the norm that its own constructors take, which has no
parameters. Weights and images are in channels-last format where no other is named. Photos of BCCD where `LIBRA_DATA` is
set, else drawn shapes, brought to the size."""

PLAIN, TORCHVISION, OWN_NORM, GRAPH, COMPILED = (
    "plain pyramid",
    "torchvision",
    "torchvision, FrozenBatchNorm2d",
    "CUDA graph",
    "compiled, CUDA graph",
)
FEWEST = 12  # samples of a side: the machine's other work must not decide


def case_name(setting: Setting, amp: bool) -> str:
    return f"{setting.words}, {'bfloat16' if amp else 'float32'}"


def in_format(name: str, channels_last: bool) -> str:
    """The side's name: `name` alone in channels-last format."""
    return name if channels_last else f"{OURS_IS if name == OURS else name}, NCHW"


def cases(plan: Plan) -> list[Case]:
    if plan.cuda and plan.sizes != "tiny":
        settings = (COCO, COCO_RETINA)
        compiled = [_compiled(plan, setting) for setting in settings]
        return [_on_gpu(plan, setting) for setting in settings] + plan.choose(full=compiled, quick=[], tiny=[])
    small, retina = (TINY, TINY_RETINA) if plan.sizes == "tiny" else (SMALL, replace(SMALL, detector="retinanet"))
    full = [_on_cpu(plan, retina, amp=False)]
    found = [_on_cpu(plan, small, amp=False), _on_cpu(plan, small, amp=True)]
    return found + plan.choose(full=full, quick=[], tiny=full)


def _on_cpu(plan: Plan, setting: Setting, amp: bool) -> Case:
    """Both formats of every side, so that each side can be judged by its better one."""
    sides: dict[str, Side] = {}
    two_stages, goal = setting.detector == "faster_rcnn", setting.detector == "faster_rcnn" and not amp
    for channels_last in (True,) if plan.sizes == "tiny" else (True, False):

        def side(name: str, ours: bool, last: bool = channels_last, **more: object) -> None:
            detector = Detector(setting, plan.device, True, ours, last, amp, **more)
            breakdown = goal and (name == TORCHVISION or (last and name in (OURS, PLAIN)))
            note = "its norm trains no scale and shift" if name == OWN_NORM else ""
            sides[in_format(name, last)] = detector.side(breakdown=breakdown, note=note)

        side(OURS, True)
        side(PLAIN, True, changes={"pyramid": "none"})
        side(TORCHVISION, False)
        if two_stages and not amp:
            side(OWN_NORM, False, norm=FrozenBatchNorm2d)
    return _case(setting, amp, sides, goal=goal, fewest=plan.choose(full=[FEWEST], quick=[6], tiny=[1])[0])


def _on_gpu(plan: Plan, setting: Setting) -> Case:
    def side(ours: bool, breakdown: bool = False, **more: object) -> Side:
        return Detector(setting, plan.device, True, ours, True, True, **more).side(breakdown=breakdown)

    sides = {
        OURS: side(True, breakdown=True),
        GRAPH: side(True, cuda_graph=True),
        TORCHVISION: side(False, breakdown=True),
        OWN_NORM: side(False, norm=FrozenBatchNorm2d),
    }
    if plan.sizes == "full":
        sides[PLAIN] = side(True, changes={"pyramid": "none"})
    return _case(setting, True, sides, goal=True, fewest=6)


def _compiled(plan: Plan, setting: Setting) -> Case:
    """A case of its own, since compiling takes minutes: a run with little time leaves it out."""
    sides = {
        OURS: Detector(setting, plan.device, True, True, True, True).side(),
        COMPILED: Detector(setting, plan.device, True, True, True, True, compile=True, cuda_graph=True).side(),
    }
    case = _case(setting, True, sides, goal=False, fewest=6)
    return replace(case, name=f"{case.name}, compiled")


def _case(setting: Setting, amp: bool, sides: dict[str, Side], goal: bool, fewest: int) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        return photos.batch_tensors(generator, setting)

    return Case(
        "train_step",
        case_name(setting, amp),
        setting.batch,
        make,
        sides,
        training=True,
        goal=goal,
        memory=sides[OURS].call.device.type == "cuda",
        whole=True,
        fewest=fewest,
        images=setting.batch,
        extra={"plot": False},
    )
