"""Converting: one safetensors file that needs no other argument, from a published file and from a run."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import libra_det
from libra_det import cli
from libra_det.config import Config
from libra_det.models import build_model
from libra_det.train import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def published(tiny_recipes, tmp_path):
    """A published file of a tiny plain detector, by an older name of the pyramid, and its class names."""
    torch.manual_seed(5)
    state = build_model(tiny_recipes["tiny_plain"].model, 2).state_dict()
    state = OrderedDict((key.replace("neck.0.", "neck."), value) for key, value in state.items())
    file = tmp_path / "W.pth"
    torch.save({"meta": {"CLASSES": ("red box", "green box")}, "state_dict": state}, file)
    return file


def test_a_published_file_becomes_one_that_says_what_it_is(published, tiny_recipes, tmp_path, tiny_data, capsys):
    output = tmp_path / "new" / "plain.safetensors"
    assert cli.main(["convert", str(published), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "older names, such as neck.lateral_convs" in text
    assert "is tiny_plain, 2 classes (red box, green box); written to" in text
    plain = tmp_path / "plain"
    plain.touch()
    assert output.stat().st_mode == plain.stat().st_mode  # others may read it as they may read any file of ours
    with safe_open(output, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["recipe"] == "tiny_plain" and metadata["source"] == "W.pth"
    assert Config.from_json(metadata["config"]).model == tiny_recipes["tiny_plain"].model
    assert json.loads(metadata["categories"]) == [[1, "red box"], [2, "green box"]]

    first, second = (libra_det.load(file, device="cpu") for file in (published, output))
    assert second.categories == first.categories and second.notes == []
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    photo = tiny_data / "val_1.png"
    assert torch.equal(first.predict(photo).boxes, second.predict(photo).boxes)


def test_a_converted_file_predicts_evaluates_and_trains_alone(published, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "--weights", "W.pth"]) == 0  # beside it, under its name
    file = tmp_path / "W.safetensors"
    photo = str(tiny_data / "val_1.png")
    assert cli.main(["predict", str(file), photo, "--json", "found.json", "--device", "cpu"]) == 0
    assert {entry["category_id"] for entry in json.loads((tmp_path / "found.json").read_text())} <= {1, 2}
    assert cli.main(["eval", "--weights", str(file), "--data", str(tiny_data), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "images/s (batches of 2), peak memory" in text
    numbers = json.loads((tmp_path / "evaluation" / "data-val" / "metrics.json").read_text())
    assert numbers["images_per_second"] > 0 and numbers["peak_memory_mib"] > 50
    train = ["train", "--weights", str(file), "--data", str(tiny_data), "--epochs", "1", "--device", "cpu"]
    assert cli.main([*train, "--output", "run"]) == 0
    assert "W.safetensors" not in capsys.readouterr().out  # nothing there is worth a word
    assert libra_det.load("run", device="cpu").config.recipe == "tiny_plain"


def test_a_run_is_converted_with_its_averaged_weights(tiny_config, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(tiny_config(), run, CPU)
    trainer.average.module.rpn_head.rpn_conv.bias.data.fill_(0.25)
    trainer._save()
    output = tmp_path / "run.safetensors"
    assert cli.main(["convert", str(run), "--output", str(output)]) == 0
    detector = libra_det.load(output, device="cpu")
    assert detector.categories == [(3, "red box"), (7, "green box")]
    assert (detector.model.rpn_head.rpn_conv.bias == 0.25).all()
    assert detector.config.data == trainer.config.data


def test_files_of_the_future_and_strange_metadata_are_errors(published, tmp_path):
    from safetensors.torch import load_file, save_file

    output = tmp_path / "W.safetensors"
    assert cli.main(["convert", str(published), "--output", str(output)]) == 0
    state = load_file(output)
    save_file(state, output, {"libra_det": "99"})
    with pytest.raises(ValueError, match="has format 99, this libra_det reads 1"):
        libra_det.load(output, device="cpu")
    save_file(state, output, {"libra_det": "1", "config": "{}", "categories": "[]"})
    with pytest.raises(ValueError, match="its metadata cannot be used"):
        libra_det.load(output, device="cpu")


def test_names_beside_runs_and_files(tmp_path, monkeypatch):
    from libra_det.commands.common import beside

    monkeypatch.chdir(tmp_path)
    assert beside(tmp_path / "W.pth", ".pt2") == tmp_path / "W.pt2"
    (tmp_path / "lr0.01").mkdir()  # lr0.02's file must be another one
    assert beside(tmp_path / "lr0.01", ".pt2") == tmp_path / "lr0.01.pt2"
    assert beside(Path(), ".pt2") == tmp_path.with_name(f"{tmp_path.name}.pt2")


def test_a_file_is_not_converted_onto_itself(published, tmp_path, capsys):
    file = tmp_path / "W.safetensors"
    file.write_bytes(published.read_bytes())
    assert cli.main(["convert", str(file)]) == 2
    assert "is the file to convert, which would be lost; name another" in capsys.readouterr().err
    assert file.read_bytes() == published.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "RUN: expected a run folder or a file of weights, as RUN or as --weights FILE; got neither"),
        (["convert", "W.pth", "--weights", "W.pth"], "got W.pth and --weights W.pth"),
        (["convert", "W.pth", "--output", "W.pt"], "--output: expected a name ending in .safetensors, got W.pt"),
        (
            ["convert", "W.pth", "--recipe", "tiny_retina"],
            "W.pth: does not fit --recipe tiny_retina, but tiny_plain (2 classes)",
        ),
        (["convert", "nowhere.pth"], "nowhere.pth: no such run folder or checkpoint file"),
    ],
)
def test_mistakes_are_explained(published, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"W.pth", "data"}
