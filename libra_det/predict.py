"""Use a trained detector: on files, pictures and tensors from Python, and on folders from the command line.

K detections of an image. Boxes are xyxy in continuous pixels of the original image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from libra_det.config import Config
from libra_det.data.images import load_image, pil_to_tensor, resize_and_pad
from libra_det.draw import draw_boxes, save_picture
from libra_det.files import NotWritten, make_folder, write_json
from libra_det.inference import Inference
from libra_det.models import DetectionModel, build_model
from libra_det.photos import DRAWN_BY, Source, find_images, is_drawing, read_photos
from libra_det.structures import Batch, Detections
from libra_det.terminal import printable
from libra_det.weights.load import configuration, fill, read_weights

PICTURE_SCORE = 0.3
"""Weaker detections are not drawn, and not written beside the pictures, unless the user says otherwise."""


@dataclass(frozen=True)
class ImageDetections:
    """Objects found in one image, best first."""

    boxes: Tensor  # [K, 4] float32 xyxy, pixels of the original image
    scores: Tensor  # [K] float32 in 0..1
    labels: Tensor  # [K] int64 in 0..C-1: position in the detector's categories
    names: list[str]  # K class names

    def __len__(self) -> int:
        return len(self.names)


class Detector:
    """A trained model with its configuration and classes.

    Attributes:
        model: in evaluation mode, on `device`.
        config: of the run, or of the recipe that the weights fit.
        categories: (id, name) of the labels 0..C-1; the ids are those of the data set that it was trained on.
        device: where it computes.
        inference: whether with mirrored images, and in half precision.
        notes: what was done to the weights to load them, a sentence each.
    """

    def __init__(
        self,
        model: DetectionModel,
        config: Config,
        categories: list[tuple[int, str]],
        device: torch.device,
        inference: Inference | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model.to(device).eval()
        self.config = config
        self.categories = categories
        self.device = device
        self.inference = inference or Inference()
        self.notes = list(notes)

    def predict(self, images: Any, score_threshold: float = 0.0) -> ImageDetections | list[ImageDetections]:
        """Find objects.

        Args:
            images: a file (path or str), a PIL image, a uint8 RGB tensor [3, H, W], or a list of such. Files and
                PIL images are turned as their EXIF data says.
            score_threshold: detections with smaller scores are left out. (The model itself leaves out what is below its
                configuration's `score_threshold`.)

        Returns:
            The detections of the image, on the CPU; a list of them for a list. Each image is computed by itself, so
            that its detections do not depend on what else is in the list.

        Raises:
            FileNotFoundError, ValueError, TypeError: an image is missing, damaged or of another type, which is named.
        """
        if isinstance(images, (list, tuple)):
            return [self._predict_one(_as_tensor(image), score_threshold) for image in images]
        return self._predict_one(_as_tensor(images), score_threshold)

    def predict_batch(self, batch: Batch, score_threshold: float = 0.0) -> list[ImageDetections]:
        """The same for images that are resized and padded already, with as little padding as their sizes allow."""
        found = Detections(*(tensor.cpu() for tensor in self.inference(self.model, batch, self.device)))
        results = []
        for boxes, scores, labels, valid in zip(*found, strict=True):
            keep = valid & (scores >= score_threshold)
            names = [self.categories[label][1] for label in labels[keep].tolist()]
            results.append(ImageDetections(boxes[keep].float(), scores[keep].float(), labels[keep], names))
        return results

    def _predict_one(self, image: Tensor, score_threshold: float) -> ImageDetections:
        padded, sizes = resize_and_pad([image], self.config.data)
        original = torch.tensor([image.shape[1:]], dtype=torch.float32)  # [1, 2] height, width
        return self.predict_batch(Batch(padded, sizes, original, None, [0], [""]), score_threshold)[0]


def load_detector(
    source: Path | str,
    device: torch.device,
    *,
    recipe: str | None = None,
    partial: bool = False,
    inference: Inference | None = None,
) -> Detector:
    """The detector of a run or of a file of weights, which is recognised by its content.

    Args:
        source: a run folder (its newest checkpoint; averaged weights if there are any), a checkpoint, a file of
            `libra convert`, or a published file.
        recipe: the model's recipe, where it is not to be found out from the file.
        partial: load what fits, and leave the rest of the model at random.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`, `configuration` and `fill`.
    """
    weights = read_weights(source)
    config, categories = configuration(weights, recipe, partial=partial)
    model = build_model(config.model, len(categories))
    notes = fill(model, weights, partial=partial)
    return Detector(model, config, categories, device, inference, weights.notes + notes)


@dataclass
class Predictions:
    """What `predict_files` found, by the order of the images."""

    images: int = 0  # that were read
    failures: list[str] = field(default_factory=list)  # a message for each that could not be
    entries: list[dict[str, Any]] = field(default_factory=list)
    """{image_id, file_name, bbox [x, y, w, h] in pixels of the original image, category_id, category, score} each."""


def predict_files(
    detector: Detector,
    inputs: Sequence[Path],
    output: Path | None,
    score_threshold: float | None = None,
    *,
    json_file: Path | None = None,
    batch_size: int = 1,
    workers: int = 0,
) -> Predictions:
    """Find objects in image files; draw and list them in a folder, list them in a JSON file, or both.

    OUTPUT/predictions.json lists `Predictions.entries`: image_id is the position of the image in `find_images`, from 1,
    and file_name its name there. `json_file` lists {bbox, category_id, score, file_name} alone. Both are written also
    when something stops the work half-way. Of what is in the output folder, only pictures of an earlier call and
    predictions.json are written over.

    Args:
        inputs: image files, and folders that are searched for images, with their sub-folders.
        output: folder for the pictures and their JSON, which is created; None draws nothing.
        score_threshold: weaker detections are left out; None: the model's own limit in `json_file`, 0.3 in `output`.
        batch_size: images of one padded size that go through the model together.
        workers: processes that read images.

    Raises:
        NotWritten: there is no room for a picture or a list, or the system refuses otherwise.
    """
    sources = find_images(inputs)
    found = Predictions()
    entries: dict[int, list[dict[str, Any]]] = {}  # by position
    taken = {source.file.resolve() for source in sources}
    for folder in (output, None if json_file is None else json_file.parent):
        if folder is not None:
            make_folder(folder)
    limit = score_threshold if score_threshold is not None else (PICTURE_SCORE if json_file is None else 0.0)
    drawn_limit = PICTURE_SCORE if score_threshold is None else score_threshold

    def write_lists() -> None:
        found.entries = [entry for position in sorted(entries) for entry in entries[position]]
        if json_file is not None:
            names = ("bbox", "category_id", "score", "file_name")
            write_json(json_file, [{name: entry[name] for name in names} for entry in found.entries])
        if output is not None:
            write_json(output / "predictions.json", [e for e in found.entries if e["score"] >= drawn_limit])

    progress = tqdm(total=len(sources), desc="predicting", unit="image", disable=None, dynamic_ncols=True)
    photos = read_photos(
        sources,
        detector.config.data,
        batch_size=batch_size,
        workers=workers,
        pin_memory=detector.device.type == "cuda",
    )
    try:
        for index, batch, errors in photos:
            progress.update(len(index))
            if batch is None:
                found.failures += errors
                for error in errors:
                    tqdm.write(f"libra: warning: {printable(error)}")
                continue
            for position, result in zip(index, detector.predict_batch(batch, limit), strict=True):
                entries[position] = _entries(position, sources[position], result, detector.categories)
                if output is not None:
                    _draw(sources[position], result, drawn_limit, output, taken)
                found.images += 1
    except BaseException:
        with contextlib.suppress(NotWritten):  # what has stopped the work is told, not what follows from it
            write_lists()
        raise
    finally:
        progress.close()
    write_lists()
    return found


def to_picture(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> PIL."""
    return transforms.to_pil_image(image)


def _entries(
    position: int, source: Source, found: ImageDetections, categories: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    entries = []
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        category_id, category = categories[label]
        bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        entry = {"image_id": position + 1, "file_name": source.file_name, "bbox": bbox, "category_id": category_id}
        entries.append({**entry, "category": category, "score": score})
    return entries


def _draw(source: Source, found: ImageDetections, score_threshold: float, output: Path, taken: set[Path]) -> None:
    """The image with its detections, as a JPEG under `output`."""
    target = _free_name(output / source.picture, taken)
    make_folder(target.parent)
    kept = int((found.scores >= score_threshold).sum())  # best first
    boxes, labels, scores = (values[:kept].tolist() for values in (found.boxes, found.labels, found.scores))
    drawn = draw_boxes(to_picture(load_image(source.file)), boxes, labels, found.names[:kept], scores)
    save_picture(drawn, target, "JPEG", quality=92, comment=DRAWN_BY)


def _as_tensor(image: Any) -> Tensor:
    """uint8 [3, H, W] of what a user may pass."""
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return pil_to_tensor(image)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(f"images: expected uint8 RGB [3, H, W], got {image.dtype} {list(image.shape)}")
        return image.cpu()
    raise TypeError(
        f"images: expected a path, a PIL image, a uint8 tensor [3, H, W] or a list of those, "
        f"got {type(image).__name__}; a NumPy array [H, W, 3] becomes a PIL image by PIL.Image.fromarray"
    )


def _free_name(file: Path, taken: set[Path]) -> Path:
    """The name, or one with a number where it belongs to an input, another picture, or a file that is not ours."""
    free, number = file, 2
    while free.resolve() in taken or (free.exists() and not is_drawing(free)):
        free = file.with_name(f"{file.stem}-{number}{file.suffix}")
        number += 1
    taken.add(free.resolve())
    return free
