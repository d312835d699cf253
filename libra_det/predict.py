"""Use a trained detector: on files, pictures and tensors from Python, and on folders from the command line.

K detections of an image. Boxes are xyxy in continuous pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from libra_det.checkpoint import load_checkpoint
from libra_det.config import Config
from libra_det.data.images import SUFFIXES, load_image, pil_to_tensor, resize_and_pad
from libra_det.draw import draw_boxes
from libra_det.models import FasterRCNN, build_model
from libra_det.run_folder import write_json
from libra_det.structures import Batch

DRAWN_BY = b"drawn by libra predict"
"""JPEG comment of the pictures, by which a later call tells them from photos."""


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
        config: of the run.
        categories: (id, name) of the labels 0..C-1; the ids are those of the data set that it was trained on.
        device: where it computes.
    """

    def __init__(
        self, model: FasterRCNN, config: Config, categories: list[tuple[int, str]], device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.config = config
        self.categories = categories
        self.device = device

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

    @torch.no_grad()
    def _predict_one(self, image: Tensor, score_threshold: float) -> ImageDetections:
        padded, sizes = resize_and_pad([image], self.config.data)
        original = torch.tensor([image.shape[1:]], dtype=torch.float32)  # [1, 2] height, width
        batch = Batch(padded, sizes, original, None, [0], [""]).to(self.device)
        boxes, scores, labels, valid = (tensor[0].cpu() for tensor in self.model.detect(batch))
        keep = valid & (scores >= score_threshold)
        labels = labels[keep]
        names = [self.categories[label][1] for label in labels.tolist()]
        return ImageDetections(boxes[keep].float(), scores[keep].float(), labels, names)


def load_detector(run: Path | str, device: torch.device) -> Detector:
    """The detector of a run folder's newest checkpoint, or of a checkpoint file; averaged weights if there are any.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(run)
    # The weights come from the checkpoint, not from where training began.
    model = build_model(replace(checkpoint.config.model, backbone_weights=None), len(checkpoint.categories))
    model.load_state_dict(checkpoint.model if checkpoint.ema is None else checkpoint.ema)
    return Detector(model, checkpoint.config, checkpoint.categories, device)


def predict_files(
    detector: Detector, inputs: Sequence[Path], output: Path, score_threshold: float
) -> tuple[int, list[str]]:
    """Draw the detections of image files, and write them to OUTPUT/predictions.json.

    The JSON lists entries {image_id, file_name, bbox [x, y, w, h] in pixels of the original image, category_id,
    category, score}: image_id is the position of the image in `find_images`, from 1, and file_name its name there. It
    is written also when the work is stopped half-way. Of what is in the output folder, only pictures of an earlier call
    and predictions.json are written over.

    Args:
        inputs: image files, and folders that are searched for images, with their sub-folders.
        output: folder for the pictures and the JSON; it is created.

    Returns:
        The number of images that were read, and a message for each one that could not be.
    """
    files = find_images(inputs)
    output.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    failures: list[str] = []
    taken = {source.file.resolve() for source in files}
    progress = tqdm(files, desc="predicting", unit="image", disable=None, dynamic_ncols=True)
    try:
        for image_id, (file, file_name, picture) in enumerate(progress, start=1):
            try:
                image = load_image(file)
            except (OSError, ValueError) as error:
                failures.append(str(error) if str(file) in str(error) else f"{file}: {error}")
                tqdm.write(f"libra: warning: {failures[-1]}")
                continue
            found = detector.predict(image, score_threshold)
            boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
            target = _free_name(output / picture, taken)
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn = draw_boxes(to_picture(image), boxes, labels, found.names, scores)
            drawn.save(target, quality=92, comment=DRAWN_BY)
            for box, score, label in zip(boxes, scores, labels, strict=True):
                category_id, category = detector.categories[label]
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                entry = {"image_id": image_id, "file_name": file_name, "bbox": bbox, "category_id": category_id}
                entries.append({**entry, "category": category, "score": score})
    finally:
        write_json(output / "predictions.json", entries)
    return len(files) - len(failures), failures


class Source(NamedTuple):
    """An image to predict."""

    file: Path
    file_name: str  # relative to the folder that was searched, or the file as it was given
    picture: Path  # under the output folder


def find_images(inputs: Sequence[Path]) -> list[Source]:
    """The given files and, sorted, all images in the given folders but those that `predict_files` has drawn.

    Raises:
        FileNotFoundError: a folder or file is missing, or a folder holds no images.
    """
    files = []
    for path in inputs:
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found = [file for file in images if not _is_drawing(file)]
            if not found:
                besides = " but pictures that libra predict has drawn" if images else ""
                raise FileNotFoundError(
                    f"{path}: no images in this folder{besides}; expected files ending in {', '.join(SUFFIXES)}"
                )
            names = [file.relative_to(path) for file in found]
            files += [
                Source(file, name.as_posix(), name.with_suffix(".jpg")) for file, name in zip(found, names, strict=True)
            ]
        elif path.exists():
            files.append(Source(path, str(path), Path(path.with_suffix(".jpg").name)))
        else:
            raise FileNotFoundError(f"{path}: no such image file or folder")
    return files


def to_picture(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> PIL."""
    return transforms.to_pil_image(image)


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
    while free.resolve() in taken or (free.exists() and not _is_drawing(free)):
        free = file.with_name(f"{file.stem}-{number}{file.suffix}")
        number += 1
    taken.add(free.resolve())
    return free


def _is_drawing(file: Path) -> bool:
    """True for a picture that `predict_files` has drawn."""
    if file.suffix != ".jpg":
        return False
    try:
        with Image.open(file) as image:
            return image.info.get("comment") == DRAWN_BY
    except Exception:  # whatever Pillow raises for a damaged file, which is not ours then
        return False
