"""How good a list of detections is: COCO's twelve numbers, AP per class, and Pascal VOC's AP at IoU 0.5.

Ground truth and results are in COCO's JSON form: boxes [x, y, width, height] in pixels of the original images.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NOT_APPLICABLE = -1.0  # COCO's value where there is no ground truth to be found


@dataclass(frozen=True)
class Metrics:
    """Numbers in 0..1; -1 where there is no ground truth for them."""

    coco: dict[str, float]
    """COCO's twelve, by the names of `COCO_NAMES`; AP is the mean over IoU 0.50:0.95 and classes."""
    class_ap: dict[str, float]
    """AP (IoU 0.50:0.95) of each class."""
    class_ap50: dict[str, float]
    """AP at IoU 0.50 of each class, by COCO's rules."""
    voc_ap50: float
    """Mean over the classes of `class_voc_ap50`."""
    class_voc_ap50: dict[str, float]
    """Area under the interpolated precision-recall curve at IoU 0.50 (all points, Pascal VOC 2010 and later)."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_results(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Metrics:
    """Compare detections with the ground truth.

    Args:
        ground_truth: COCO JSON as a dict: images, categories, annotations. `iscrowd` and `area` may be
            missing. Annotations with `iscrowd` set need not be found; for the VOC numbers neither those with `ignore`
            or `difficult`, which COCO's twelve do not look at. It is not changed.
        results: COCO result entries: image_id, category_id, bbox [x, y, w, h], score. It is not changed.

    Raises:
        ValueError: a result names an image or a category that the ground truth does not have.
    """
    ground_truth = _completed(ground_truth)
    _check_results(ground_truth, results)
    names = _class_names(ground_truth["categories"])
    evaluation = _coco_evaluation(ground_truth, results)
    precision = evaluation.eval["precision"]  # [T IoUs, R recalls, K classes, 4 area ranges, 3 detection limits]
    class_ap, class_ap50 = {}, {}
    for position, category_id in enumerate(evaluation.params.catIds):
        class_ap[names[category_id]] = _mean(precision[:, :, position, 0, -1])
        class_ap50[names[category_id]] = _mean(precision[0, :, position, 0, -1])
    voc = {names[category_id]: ap for category_id, ap in voc_average_precision(ground_truth, results).items()}
    return Metrics(
        coco=dict(zip(COCO_NAMES, map(float, evaluation.stats), strict=True)),
        class_ap=class_ap,
        class_ap50=class_ap50,
        voc_ap50=_mean(np.array(list(voc.values()))),
        class_voc_ap50=voc,
    )


def voc_average_precision(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_threshold: float = 0.5
) -> dict[int, float]:
    """Pascal VOC's average precision of each category id (all points; -1 without ground truth).

    Best scores first, each detection goes to the object of its class that it overlaps most. It is correct when the IoU
    reaches the threshold and no better-scored detection took the object; it does not count, neither as right nor as
    wrong, when the object is `difficult` (or `ignore`). Beyond VOC's rules, it does not count either when at least the
    threshold's share of it lies in a crowd region: `iscrowd` without `difficult`. Boxes are continuous (no +1 pixel).

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010 and 2015 (section 4.2).
    """
    objects: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))  # by category, image
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"]][annotation["image_id"]].append(annotation)
    detections: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        detections[result["category_id"]].append(result)

    average_precision = {}
    for category in sorted(ground_truth["categories"], key=lambda category: category["id"]):
        category_id = category["id"]
        ours = objects[category_id]
        wanted = sum(not _is_optional(annotation) for found in ours.values() for annotation in found)
        ranked = sorted(detections[category_id], key=lambda result: -result["score"])
        correct = _correct(ours, ranked, iou_threshold)
        average_precision[category_id] = _area_under_curve(correct, wanted)
    return average_precision


def _correct(ours: dict[int, list[dict[str, Any]]], ranked: list[dict[str, Any]], iou_threshold: float) -> np.ndarray:
    """[D] bool, best score first: True correct, False wrong; detections that do not count are left out."""
    from pycocotools import mask

    taken: dict[int, set[int]] = defaultdict(set)  # positions of found objects, by image
    correct = []
    for result in ranked:
        annotations = ours.get(result["image_id"], [])
        if not annotations:
            correct.append(False)
            continue
        crowd = np.array([bool(entry.get("iscrowd")) and not entry.get("difficult") for entry in annotations])
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
        # [G]: the IoU with objects; for crowd regions the share of the detection that lies inside
        overlap = mask.iou(np.array([result["bbox"]], dtype=np.float64), boxes, crowd.astype(np.uint8))[0]
        best = int(np.argmax(np.where(crowd, -1.0, overlap)))
        if not crowd[best] and overlap[best] >= iou_threshold:
            if _is_optional(annotations[best]):
                continue
            correct.append(best not in taken[result["image_id"]])
            taken[result["image_id"]].add(best)
        elif not (overlap[crowd] >= iou_threshold).any():
            correct.append(False)
    return np.array(correct, dtype=bool)


def _area_under_curve(correct: np.ndarray, wanted: int) -> float:
    """Area under precision over recall, where precision is the best at this recall or any higher one."""
    if wanted == 0:
        return NOT_APPLICABLE
    if correct.size == 0:
        return 0.0
    found = np.cumsum(correct)
    precision = found / np.arange(1, correct.size + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[correct].sum() / wanted)  # the recall grows by 1 / wanted at each correct detection


def _coco_evaluation(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """A pycocotools COCOeval that has run. What it prints on the way is dropped."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if results:
            found = truth.loadRes(copy.deepcopy(results))
        else:  # loadRes cannot read an empty list
            found.dataset = {**ground_truth, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _completed(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy with the fields that pycocotools needs. Ids start at 1, for COCOeval takes a matched id of 0 for none."""
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        width, height = annotation["bbox"][2:]
        annotations.append({"area": width * height, "iscrowd": 0, **annotation, "id": number})
    return {**ground_truth, "annotations": annotations}


def _check_results(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    for key, group in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[group]}
        for number, result in enumerate(results):
            if result[key] not in known:
                raise ValueError(
                    f"results[{number}]: {key} {result[key]!r} is not among the {len(known)} {group} of the "
                    "ground truth; evaluate on the data set that was predicted"
                )


def _class_names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """Names by id, made different from each other where the data set uses one twice."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for category in categories:
        name = category["name"]
        names[category["id"]] = f"{name} ({category['id']})" if name in taken else name
        taken.add(names[category["id"]])
    return names


def _is_optional(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("iscrowd") or annotation.get("ignore") or annotation.get("difficult"))


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that apply, or -1."""
    values = values[values > NOT_APPLICABLE]
    return float(values.mean()) if values.size else NOT_APPLICABLE
