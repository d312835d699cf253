"""The subjects: each is a module of this package with a TITLE, an AXIS (what a size counts), a TEXT and `cases`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from benchmarks import (
    balanced_l1_loss,
    box_coding,
    box_iou,
    box_regression_loss,
    inference,
    loader,
    match_and_sample,
    match_boxes,
    multiscale_roi_align,
    nms_padded,
    pyramid,
    sample_iou_balanced,
    sigmoid_focal_loss,
    topk_per_level,
    train_step,
)
from benchmarks.case import Case, Plan

SUBJECTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        match_boxes,
        match_and_sample,
        balanced_l1_loss,
        box_iou,
        sample_iou_balanced,
        nms_padded,
        topk_per_level,
        box_coding,
        sigmoid_focal_loss,
        box_regression_loss,
        multiscale_roi_align,
        pyramid,
        train_step,
        inference,
        loader,
    )
}


DETECTORS = ("train_step", "inference", "loader")
GROUPS = {"detectors": DETECTORS, "operations": tuple(name for name in SUBJECTS if name not in DETECTORS)}


def of_groups(names: Sequence[str]) -> list[str]:
    """The names of subjects, groups spelled out."""
    return [subject for name in names for subject in GROUPS.get(name, (name,))]


def cases_of(subject: str, plan: Plan) -> list[Case]:
    """The cases of a subject; an unknown one is a ValueError that lists the known ones."""
    if subject not in SUBJECTS:
        raise ValueError(f"names: expected among {', '.join(SUBJECTS)}, got {subject!r}")
    cases = SUBJECTS[subject].cases(plan)
    assert len({case.name for case in cases}) == len(cases), f"{subject}: two cases of one name"
    return cases
