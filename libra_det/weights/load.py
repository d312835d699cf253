"""From a file of any kind to a configuration, classes and a filled model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from libra_det.checkpoint import checkpoint_of, load_checkpoint
from libra_det.checkpoint_values import checked_categories
from libra_det.config import Config
from libra_det.plain_json import parse_json
from libra_det.recipes import recipe as recipe_of
from libra_det.weights.classes import Categories, categories_of
from libra_det.weights.files import TensorFile, read_tensor_file, state_of
from libra_det.weights.fit import CLASS_LAYERS, compare, load_fitting
from libra_det.weights.published_config import settings_of
from libra_det.weights.recognise import adapted, is_backbone, model_fit, num_classes_of, recognised
from libra_det.weights.spelling import VERSION_1, spelled_today

FORMAT = "1"
"""Under "libra_det" in a safetensors file's metadata; raised when an older libra_det could not read a newer file."""
_MOST_CLASSES = 100_000


@dataclass
class Weights:
    """What was read, by the parameter names of today."""

    path: Path
    state: dict[str, Tensor]
    config: Config | None = None  # where the file brings its own, as runs and converted files do
    categories: Categories | None = None  # likewise: (id, name) of the labels
    meta: dict[str, Any] = field(default_factory=dict)  # what a published file says about itself
    notes: list[str] = field(default_factory=list)  # what was done to read it, for the user
    version_1: bool = False  # of mmdetection 1.x

    @property
    def is_backbone(self) -> bool:
        return is_backbone(self.state)

    @property
    def num_classes(self) -> int:
        """C, by the shapes of the class layers.

        Raises:
            ValueError: there are none, so that this is no detector that could be built here.
        """
        found = num_classes_of(self.state)
        if self.is_backbone:
            raise ValueError(
                f"{self.path}: holds the weights of a backbone alone; expected those of a detector. To train from it: "
                "libra train --backbone-weights FILE"
            )
        if found is None or found < 1:
            some = ", ".join(list(self.state)[:3])
            raise ValueError(
                f"{self.path}: holds {len(self.state)} tensors ({some}, ...) but no class layer of a Faster R-CNN, "
                "Fast R-CNN or RetinaNet (roi_head.bbox_head.fc_cls, bbox_head.retina_cls)"
            )
        if found > _MOST_CLASSES:  # a tensor of any number of rows without columns takes no room in a file
            raise ValueError(f"{self.path}: has class layers for {found} classes; expected at most {_MOST_CLASSES}")
        return found


def read_weights(path: Path | str) -> Weights:
    """Read weights of any kind.

    Args:
        path: a run folder (its newest checkpoint, with the averaged weights if there are any), a checkpoint of a run, a
            file of `libra convert`, a detector of mmdetection, or a backbone of torchvision.

    Raises:
        FileNotFoundError: there is no such file, or no checkpoint in the folder.
        ValueError: the file is damaged, holds something else, or needs code to be run.
    """
    path = Path(path)
    if path.is_dir():
        return _of_run(path, load_checkpoint(path))
    file = read_tensor_file(path)
    checkpoint = checkpoint_of(file.values, path)
    if checkpoint is not None:
        return _of_run(path, checkpoint)
    if "libra_det" in file.metadata:
        return _of_converted(file)
    state, meta = state_of(file)
    if is_backbone(state):
        return Weights(path, state)
    state, changes, version_1 = spelled_today(state)
    return Weights(path, state, meta=meta, notes=changes, version_1=version_1)


def configuration(weights: Weights, recipe: str | None = None, *, partial: bool = False) -> tuple[Config, Categories]:
    """Which model the weights are of, and what its labels stand for.

    Args:
        weights: what `read_weights` gave; what is found out is added to its notes.
        recipe: name of the recipe; None: the file's own configuration, or the recipe that its tensors fit.
        partial: take a recipe also if not all tensors fit.

    Raises:
        ValueError: the tensors do not fit the recipe, or any, with a table of those that do not.
    """
    _check_version(weights, partial)
    num_classes = weights.num_classes
    if weights.config is not None and recipe is None:
        config = weights.config
        fit = model_fit(config.model, num_classes, weights.state)  # before the model takes memory
        if not fit.exact and not partial:
            raise ValueError(_misfit(weights, "its own configuration", fit.table()))
    else:
        if recipe is not None:
            config, what = adapted(recipe_of(recipe), weights.state), f"--recipe {recipe}"
            fit = model_fit(config.model, num_classes, weights.state)
        else:
            config, fit = recognised(weights.state, num_classes)
            what = f"any recipe, of which {config.recipe} comes nearest"
        if not fit.exact and not partial:
            if recipe is not None:
                nearest, near = recognised(weights.state, num_classes)
                what += f", but {nearest.recipe}" if near.exact else ""
            raise ValueError(_misfit(weights, what, fit.table()))
        config = _with_own_settings(weights, config, apply=recipe is None, partial=partial)
    config = replace(config, model=replace(config.model, backbone_weights=None))
    categories, notes = _categories(weights)
    weights.notes += notes
    return config, categories


def check_fit(weights: Weights, config: Config, *, partial: bool = False) -> None:
    """Before training from weights: whether they fit its model, with as many classes as they have.

    Raises:
        ValueError: with a table of what does not fit, unless `partial`.
    """
    _check_version(weights, partial)
    fit = model_fit(config.model, weights.num_classes, weights.state)
    if not fit.exact and not partial:
        raise ValueError(_misfit(weights, f"the model of recipe {config.recipe} with these flags", fit.table()))


def fill(
    model: nn.Module, weights: Weights, *, categories: Categories | None = None, partial: bool = False
) -> list[str]:
    """Put the weights into a model.

    Args:
        model: any device.
        categories: of the data that the model is to be trained on. With another number of classes than the file's,
            the class layers (and no others) keep the model's own initial weights. None: every tensor has to fit.
        partial: load what fits, whatever else is missing, unexpected or of another shape.

    Returns:
        What was not loaded and why, a sentence each.

    Raises:
        ValueError: with a table of what does not fit.
    """
    fit = compare(weights.state, model.state_dict())
    anew = categories is not None and len(categories) != weights.num_classes
    judged = fit.without_class_layers() if anew else fit
    if not judged.exact and not partial:
        raise ValueError(_misfit(weights, "this model", judged.table()))
    left_out = fit.unexpected.keys() | fit.misshapen.keys()
    taken = {key: value for key, value in weights.state.items() if key not in left_out}
    broken = next((k for k, v in taken.items() if v.is_floating_point() and not v.float().isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{weights.path}: {broken} holds NaN or infinite numbers; the training that wrote it diverged")
    load_fitting(model, weights.state)
    notes = []
    if anew:
        layers = sorted({key.rpartition(".")[0] for key in fit.misshapen if key.startswith(CLASS_LAYERS)})
        notes.append(
            f"has {weights.num_classes} classes, the data {len(categories)}: {' and '.join(layers)} start anew, "
            "all else is loaded" + ("" if judged.exact else " but what is listed")
        )
    elif categories is not None:
        known, _ = _categories(weights)
        pairs = [(old, new) for (_, old), (_, new) in zip(known, categories, strict=True) if old != new]
        if pairs:
            notes.append(
                f"has as many classes as the data, and their layers are loaded, but {len(pairs)} names differ: "
                f"what was {pairs[0][0]!r} is now {pairs[0][1]!r}"
            )
    if not judged.exact:
        notes.append(f"loaded in part; not loaded:\n{judged.table()}")
    return notes


def metadata(config: Config, categories: Categories, source: str) -> dict[str, str]:
    """What `libra convert` writes beside the tensors, so that loading needs nothing else."""
    return {
        "format": "pt",
        "libra_det": FORMAT,
        "recipe": config.recipe,
        "config": config.to_json(),
        "categories": json.dumps(categories),
        "source": source,
    }


def averaged(checkpoint: Any) -> dict[str, Tensor]:
    """The weights of a run's checkpoint that are used: their moving average, where there is one."""
    return checkpoint.model if checkpoint.ema is None else checkpoint.ema


def _of_run(path: Path, checkpoint: Any) -> Weights:
    return Weights(path, averaged(checkpoint), checkpoint.config, checkpoint.categories)


def _of_converted(file: TensorFile) -> Weights:
    version = file.metadata["libra_det"]
    if version != FORMAT:
        raise ValueError(
            f"{file.path}: has format {version}, this libra_det reads {FORMAT}; use the version that wrote it"
        )
    try:
        config = Config.from_json(file.metadata["config"])
        categories = checked_categories(parse_json(file.metadata["categories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file.path}: its metadata cannot be used ({error}); convert the original again") from error
    return Weights(file.path, file.state, config, categories)


def _categories(weights: Weights) -> tuple[Categories, list[str]]:
    """The file's classes, and what the user should know about them."""
    if weights.categories is not None:
        return weights.categories, []
    return categories_of(weights.meta, weights.num_classes)


def _with_own_settings(weights: Weights, config: Config, *, apply: bool, partial: bool) -> Config:
    """The recipe with what a published file's own configuration says otherwise, if `apply`; told in its notes."""
    try:
        settings = settings_of(weights.meta)
        changed_config, changed = settings.applied(config)
    except (TypeError, ValueError) as error:
        weights.notes.append(f"its own configuration is not used: {error}")
        return config
    if settings.impossible and not partial:
        raise ValueError(
            f"{weights.path}: its own configuration has {'; '.join(settings.impossible)}, which this detector cannot "
            "do, so its detections would differ; --partial uses it all the same"
        )
    if changed and apply:
        weights.notes.append(f"as its own configuration says: {', '.join(changed)}")
        return changed_config
    if changed:
        weights.notes.append(f"--recipe decides, not its own configuration, which says {', '.join(changed)}")
    return config


def _check_version(weights: Weights, partial: bool) -> None:
    if not weights.version_1:
        return
    if not partial:
        raise ValueError(
            f"{weights.path}: {VERSION_1}. With --partial it is used all the same, its classes in today's order: to "
            "begin a training from it, or for boxes that are slightly off"
        )
    weights.notes.append(VERSION_1)


def _misfit(weights: Weights, what: str, table: str) -> str:
    return (
        f"{weights.path}: does not fit {what} ({weights.num_classes} classes); tensors and their shapes:\n{table}\n"
        "--recipe names another architecture, --partial loads what fits and leaves the rest at random"
    )
