"""Run a detector over a data set and measure it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from tqdm import tqdm

from libra_det.data import Annotations, DetectionDataset, load_annotations, load_image, make_loader
from libra_det.distributed import ALONE, World
from libra_det.draw import beside, draw_boxes, save_picture
from libra_det.file_names import written_name
from libra_det.files import make_folder, write_json
from libra_det.inference import Inference
from libra_det.metrics import Metrics, evaluate_results
from libra_det.models import DetectionModel
from libra_det.photos import by_padded_size
from libra_det.predict import Detector, load_detector, to_picture
from libra_det.structures import Detections
from libra_det.terminal import few, printable

PICTURES = 8  # evaluation images that are drawn
PICTURE_SCORE = 0.3  # weaker detections are not drawn


@dataclass(frozen=True)
class Evaluation:
    metrics: Metrics
    results: list[dict[str, Any]]
    """COCO result entries: image_id, category_id (the data set's own), bbox [x, y, w, h] in original pixels, score.

    Of several processes only the first has them.
    """
    seconds: float
    """Wall-clock time of reading images, detecting and measuring."""
    images_per_second: float
    """Of reading images and detecting."""
    peak_memory: int
    """Bytes: on a GPU the most that tensors took, on the CPU the most that the whole process ever had."""


def evaluate(
    model: DetectionModel,
    dataset: DetectionDataset,
    device: torch.device,
    categories: Sequence[tuple[int, str]],
    inference: Inference | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Detect objects in all images of a data set and compare with its annotations.

    Several processes share the images out, each of them once, and all get the numbers that the first one computes.

    Args:
        model: on `device`; its mode (train or eval) is restored afterwards.
        dataset: not for training; images without objects count too.
        device: where the model is.
        categories: (id, name) of the model's labels 0..C-1. They are matched to the data set's categories by name.
        inference: with mirrored images or in half precision; None: neither.
        world: the processes, all of which call this with models of equal weights. Where their batch statistics
            differ, those of the first are taken, by all.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    ids = category_ids(categories, dataset.annotations)
    world.share_buffers(model)
    results = detect(model, dataset, device, ids, inference or Inference(), world)

    def measure() -> Evaluation:
        detected = time.perf_counter()
        metrics = evaluate_results(dataset.annotations.coco(), results)
        images_per_second = len(dataset) / (detected - start)
        return Evaluation(metrics, [], time.perf_counter() - start, images_per_second, _peak_memory(device))

    return replace(world.from_main(measure), results=results)


@torch.no_grad()
def detect(
    model: DetectionModel,
    dataset: DetectionDataset,
    device: torch.device,
    ids: Sequence[int | None],
    inference: Inference,
    world: World = ALONE,
) -> list[dict[str, Any]]:
    """COCO result entries of all images; `ids` gives each label's category id, or None to leave a class out.

    Images of a batch have the same padded size, so that what is found in one does not depend on the batch size. Of
    several processes each detects in some of the batches, and the first returns all entries, the others none.
    """
    sizes = [(record.width, record.height) for record in dataset.images]
    images = max(1, dataset.config.batch_size // world.size)  # of one process, as in training
    batches = by_padded_size(sizes, dataset.config, images)[world.rank :: world.size]
    loader = make_loader(dataset, device=device, batches=batches)
    was_training = model.training
    model.eval()
    results: dict[int, list[dict[str, Any]]] = {}  # by image id
    progress = tqdm(
        total=sum(map(len, batches)),
        desc="evaluating",
        unit="image",
        leave=False,
        disable=None if world.is_main else True,
        dynamic_ncols=True,
    )
    try:
        for batch in loader:
            detections = inference(model, batch, device)
            for entry in _entries(detections, batch.image_ids, ids):
                results.setdefault(entry["image_id"], []).append(entry)
            progress.update(len(batch.image_ids))
    finally:
        progress.close()
        model.train(was_training)
    found: dict[int, list[dict[str, Any]]] = {}
    for part in world.gather_to_main(results):  # no image is in two of them
        found.update(part)
    return [entry for record in dataset.images for entry in found.get(record.id, [])]


def category_ids(categories: Sequence[tuple[int, str]], annotations: Annotations) -> list[int | None]:
    """For each label of a model, the id of the data set's category with the same name; None where there is none.

    Raises:
        ValueError: no name is common to both.
    """
    known = {category.name: category.id for category in annotations.categories}
    if [tuple(category) for category in annotations.categories] == [tuple(category) for category in categories]:
        return [id for id, _ in categories]  # also right where two classes share a name
    ids = [known.get(name) for _, name in categories]
    if all(id is None for id in ids):
        raise ValueError(
            f"categories: the run knows {few([name for _, name in categories])}, "
            f"{printable(annotations.name)} has {few(list(known))}; expected at least one name in common"
        )
    return ids


def evaluation_data(
    detector: Detector,
    *,
    data: str | None = None,
    split: str | None = None,
    annotations: str | None = None,
    image_folder: str | None = None,
    allow_outside: bool = False,
    proposals: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> DetectionDataset:
    """The data set to evaluate a detector on, by default the one that it was trained to be evaluated on.

    The split's own categories are matched to those of the detector by name; the training split need not be there.

    Args:
        data, split, annotations, image_folder, proposals: another data set, as data, eval_split, eval_annotations,
            image_folder and eval_proposals of `DataConfig`.
        allow_outside: read images also where the annotations name files outside the data folder. What the detector's
            file says about it does not count: it may be anybody's.
        batch_size: images at once.
        workers: processes that read them.
    """
    config = detector.config.data
    if data is not None:  # what named files in the old data set does not hold for the new one
        named = ("train_annotations", "eval_annotations", "image_folder", "eval_proposals")
        config = replace(config, data=data, **dict.fromkeys(named))
    if split is not None and split != config.eval_split:
        config = replace(config, eval_split=split, eval_annotations=None, eval_proposals=None)
    changes = {
        "eval_annotations": annotations,
        "image_folder": image_folder,
        "eval_proposals": proposals,
        "batch_size": batch_size,
        "workers": workers,
    }
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    config = replace(config, allow_outside=allow_outside)
    # As if it were the training split, whose own categories decide: the annotations trained on may be elsewhere by now.
    alone = replace(config, train_split=config.eval_split, train_annotations=config.eval_annotations)
    return DetectionDataset(load_annotations(alone, alone.eval_split), config, training=False, seed=0)


def evaluate_run(run: Path, *, device: torch.device, **changes: Any) -> tuple[DetectionDataset, Evaluation]:
    """Evaluate a run folder or a file of weights, on its own data or with the `changes` of `evaluation_data`.

    Returns:
        The data set and the numbers.
    """
    detector = load_detector(run, device)
    dataset = evaluation_data(detector, **changes)
    return dataset, evaluate(detector.model, dataset, device, detector.categories, detector.inference)


def write_evaluation(evaluation: Evaluation, folder: Path, **more: Any) -> None:
    """metrics.json (the numbers, what they took, and `more`) and results.json (the detections) in `folder`.

    Raises:
        NotWritten: there is no room, or the system refuses otherwise.
    """
    make_folder(folder)
    cost = {
        "seconds_evaluation": round(evaluation.seconds, 3),
        "images_per_second": round(evaluation.images_per_second, 3),
        "peak_memory_mib": round(evaluation.peak_memory / 2**20),
    }
    numbers = {**evaluation.metrics.to_dict(), **cost, **more}
    write_json(folder / "metrics.json", numbers)
    write_json(folder / "results.json", evaluation.results)


def draw_pictures(annotations: Annotations, results: list[dict[str, Any]], folder: Path) -> list[Path]:
    """A few images of the data set, annotated beside detected, as PNG files in `folder`.

    Raises:
        NotWritten: there is no room, or the system refuses otherwise.
    """
    make_folder(folder)
    label_of = {category.id: label for label, category in enumerate(annotations.categories)}
    names = [category.name for category in annotations.categories]
    with_objects = [record for record in annotations.images if record.has_objects]
    files = []
    for record in with_objects[:: max(1, len(with_objects) // PICTURES)][:PICTURES]:
        picture = to_picture(load_image(record.file, annotated_size=(record.width, record.height)))
        true_labels = record.labels.tolist()
        found = [entry for entry in results if entry["image_id"] == record.id and entry["score"] >= PICTURE_SCORE]
        found.sort(key=lambda entry: -entry["score"])
        labels = [label_of[entry["category_id"]] for entry in found]
        left = draw_boxes(picture, record.boxes.tolist(), true_labels, [names[label] for label in true_labels])
        right = draw_boxes(
            picture,
            [_to_xyxy(entry["bbox"]) for entry in found],
            labels,
            [names[label] for label in labels],
            [entry["score"] for entry in found],
        )
        file = folder / f"{len(files):02d}_{written_name(PureWindowsPath(record.file_name).stem)}.png"
        titles = ("annotated", f"detected (score {PICTURE_SCORE:g} and more)")
        save_picture(beside(left, right, titles), file, "PNG")
        files.append(file)
    return files


def _peak_memory(device: torch.device) -> int:
    """Bytes; see `Evaluation.peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # it does not tell
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _to_xyxy(bbox: Sequence[float]) -> list[float]:
    return [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]


def _entries(detections: Detections, image_ids: Sequence[int], ids: Sequence[int | None]) -> list[dict[str, Any]]:
    boxes, scores, labels, valid = (tensor.cpu() for tensor in detections)
    entries = []
    for image, image_id in enumerate(image_ids):
        real = valid[image]
        found = zip(
            boxes[image][real].tolist(), scores[image][real].tolist(), labels[image][real].tolist(), strict=True
        )
        for box, score, label in found:
            if ids[label] is not None:
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                entries.append({"image_id": image_id, "category_id": ids[label], "bbox": bbox, "score": score})
    return entries
