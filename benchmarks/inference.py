"""Detections of a batch that lies on the device, by our detectors and by torchvision's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import photos
from benchmarks.case import OURS, Case, Plan, Side
from benchmarks.detectors import COCO, COCO_RETINA, SMALL, TINY, Setting
from benchmarks.sides import Detector
from benchmarks.train_step import PLAIN, TORCHVISION, case_name, in_format

TITLE = "Inference"
AXIS = "images"
OURS_IS = "libra_det"
TEXT = """\
Images on the device to the detections of each, with the models and sides of the training step. The weights are random,
with a bias for the background, so that some of the candidates pass the threshold; both sides have the same. torchvision
gets images ready to be normalised, and its transform does not resize them."""


def cases(plan: Plan) -> list[Case]:
    if plan.sizes == "tiny":
        return [_case(plan, TINY, amp=False, fewest=1)]
    if plan.cuda:
        single = replace(COCO, batch=1)
        found = [_case(plan, single, amp=True, fewest=10, goal=True), _case(plan, COCO, amp=True, fewest=6, goal=True)]
        retina = [_case(plan, replace(COCO_RETINA, batch=batch), amp=True, fewest=6) for batch in (1, 16)]
        return found + plan.choose(full=retina, quick=[], tiny=[])
    # ResNet-50 with the classes of the data: 80 random ones would all stay below the score that is asked for
    large = replace(COCO, batch=1, classes=3)
    settings = [(replace(SMALL, batch=1), 10), (replace(SMALL, batch=16), 5)]
    found = [_case(plan, setting, amp=False, fewest=fewest, goal=True) for setting, fewest in settings]
    return found + plan.choose(full=[_case(plan, large, amp=False, fewest=3)], quick=[], tiny=[])


def _case(plan: Plan, setting: Setting, amp: bool, fewest: int, goal: bool = False) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        return photos.batch_tensors(generator, setting)

    sides: dict[str, Side] = {}
    for channels_last in (True, False):

        def side(name: str, ours: bool, last: bool = channels_last, **more: object) -> None:
            sides[in_format(name, last)] = Detector(setting, plan.device, False, ours, last, amp, **more).side()

        side(OURS, True)
        if not plan.cuda:
            side(PLAIN, True, changes={"pyramid": "none"})
        side(TORCHVISION, False)
        if plan.cuda or plan.sizes == "tiny":
            break
    return Case(
        "inference",
        case_name(setting, amp),
        setting.batch,
        make,
        sides,
        goal=goal,
        whole=True,
        fewest=fewest,
        images=setting.batch,
        extra={"plot": False},
    )
