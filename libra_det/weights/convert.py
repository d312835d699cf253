"""Weights of any kind -> one safetensors file that says by itself which model and classes it is of."""

from __future__ import annotations

from pathlib import Path

from libra_det.config import Config
from libra_det.files import make_folder, whole_file
from libra_det.models import build_model
from libra_det.weights.classes import Categories
from libra_det.weights.load import configuration, fill, metadata, read_weights


def convert(
    source: Path, output: Path, *, recipe: str | None = None, partial: bool = False
) -> tuple[Config, Categories, list[str]]:
    """Write the weights of a detector in the model's own names; a run's averaged ones, where it has them.

    Args:
        source: as `read_weights` takes it.
        output: the file, which ends in .safetensors; a file of that name is replaced in one step.
        recipe: the model's recipe, where it is not to be found out.
        partial: convert what fits, and leave the rest of the model at random.

    Returns:
        The configuration and classes written with them, and what was done to the weights, a sentence each.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`, `configuration` and `fill`; or the output is the source, or
            of another ending.
        NotWritten: there is no room for the file, or the system refuses otherwise.
    """
    from safetensors.torch import save_file

    if output.suffix != ".safetensors":
        raise ValueError(f"--output: expected a name ending in .safetensors, got {output}")
    if output.resolve() == Path(source).resolve():
        raise ValueError(f"--output: {output} is the file to convert, which would be lost; name another")
    weights = read_weights(source)
    config, categories = configuration(weights, recipe, partial=partial)
    model = build_model(config.model, len(categories))
    notes = weights.notes + fill(model, weights, partial=partial)
    make_folder(output.parent)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with whole_file(output, needed=sum(value.nbytes for value in state.values())) as unfinished:
        save_file(state, unfinished, metadata(config, categories, Path(source).name))
    return config, categories, notes
