"""Names that a terminal would obey, and that no encoding can print, go through all commands and hurt none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from libra_det import cli
from libra_det.draw import draw_boxes
from libra_det.evaluate import draw_pictures
from libra_det.metrics import evaluate_results
from libra_det.report import print_metrics

NAMES = {3: "\x1b[2Jcat", 7: "a\nb", 8: "\u202egnp", 9: "\ud800"}
SHOWN = (r"\x1b[2Jcat", r"a\nb", r"\u202egnp", r"\ud800")
ESCAPED = "train_0\x1b[31m.png"


@pytest.fixture
def hostile_data(tiny_data: Path) -> Path:
    """The tiny data set with other names for its classes and its first training image, and two classes more."""
    for split in ("train", "val"):
        content = json.loads((tiny_data / f"{split}.json").read_text())
        content["categories"] = [{"id": id, "name": name} for id, name in NAMES.items()]
        first = content["annotations"][0]
        for id in (8, 9):
            content["annotations"].append({**first, "id": 100 + id, "category_id": id})
        if split == "train":
            (tiny_data / "train_0.png").rename(tiny_data / ESCAPED)
            content["images"][0]["file_name"] = ESCAPED
        (tiny_data / f"{split}.json").write_text(json.dumps(content))
    return tiny_data


def test_names_from_files_do_not_reach_a_terminal_raw(tiny_config, hostile_data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "recipe", lambda name: replace(tiny_config(epochs=1), recipe=name))

    def output_of(*arguments, code=0) -> str:
        assert cli.main([str(argument) for argument in arguments]) == code
        printed = "".join(capfd.readouterr())
        assert all(char.isprintable() or char == "\n" for char in printed), ascii(printed)
        return printed

    cpu = ("--device", "cpu")
    gray = Image.open(hostile_data / ESCAPED).convert("L")
    gray.save(hostile_data / ESCAPED)
    checked = output_of("check", hostile_data)
    assert all(f"  {name} " in checked for name in SHOWN) and r"such as train_0\x1b[31m.png" in checked

    trained = output_of("train", "--output", "run", "--data", hostile_data, *cpu)
    assert all(f"{name} " in trained for name in SHOWN) and r"such as train_0\x1b[31m.png" in trained
    evaluated = output_of("eval", "run", "--split", "train", *cpu)
    assert all(f"{name} " in evaluated for name in SHOWN)
    assert r"4 classes (\x1b[2Jcat, a\nb, \u202egnp, ...)" in evaluated
    for folder in ("run", "run/evaluation/data-train"):
        assert set(json.loads(Path(folder, "metrics.json").read_text())["class_ap"]) == set(NAMES.values())

    (hostile_data / "broken\x1b[2J.png").write_bytes(b"no image")
    predicted = output_of("predict", "run", hostile_data, "--score-threshold", 0, "--output", "found", *cpu)
    assert r"libra: warning: " in predicted and r"broken\x1b[2J.png: is no image" in predicted
    entries = json.loads(Path("found", "predictions.json").read_text())
    assert {entry["category"] for entry in entries} <= set(NAMES.values())  # data is not changed
    assert ESCAPED in {entry["file_name"] for entry in entries}

    (hostile_data / ESCAPED).unlink()
    assert r"train_0\x1b[31m.png: this image file is missing" in output_of("check", hostile_data, code=2)
    output_of("convert", "run", "--output", "w.safetensors")
    output_of("proposals", "run", "--split", "val", "--output", "p.safetensors", *cpu)


def test_a_name_that_no_file_can_have_is_a_sentence(hostile_data, capfd):
    file = hostile_data / "train.json"
    file.write_text(file.read_text().replace("train_1.png", r"\ud800\u001b.png"))
    assert cli.main(["check", str(hostile_data)]) == 2
    printed = capfd.readouterr().err
    assert r"expected a file_name that a file can have, got '\ud800\x1b.png'" in printed and "\x1b" not in printed


@pytest.mark.parametrize("char", ["\n", "\r", "\x1c", "\x85", "\u2028"])
def test_an_error_is_one_line_whatever_separates_lines_in_a_name(hostile_data, capfd, char):
    file = hostile_data / "train.json"
    content = json.loads(file.read_text())
    content["images"][1]["file_name"] = f"a{char}b.png"
    file.write_text(json.dumps(content))
    assert cli.main(["check", str(hostile_data)]) == 2
    name = f"a{char}b.png".encode("unicode_escape").decode()
    assert f"  {hostile_data / name}: this image file is missing (image 2)\n" in capfd.readouterr().err


@pytest.mark.parametrize("name", [*NAMES.values(), "x" * 10**6, "[red]", "\0"])
def test_pictures_and_tables_take_any_name(name, capsys):
    assert draw_boxes(Image.new("RGB", (60, 40)), [[1, 2, 30, 20]], [0], [name], [0.5]).size == (480, 320)
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": name}, {"id": 2, "name": name.strip("\x1b\n\u202e")}],
        "annotations": [{"image_id": 1, "category_id": id, "bbox": [10, 10, 20, 20]} for id in (1, 2)],
    }
    print_metrics(evaluate_results(truth, []), name)
    printed = capsys.readouterr().out
    assert len(printed) < 10_000 and all(char.isprintable() or char == "\n" for char in printed)


def test_pictures_are_written_into_their_folder_alone(tiny_config: Callable, hostile_data, tmp_path):
    """Their names are made from those of the images."""
    from libra_det.data import load_annotations

    annotations = load_annotations(tiny_config().data, "train")
    names = ("../../../x.png", "/etc/x.png", r"..\..\x.png", "\x1b.png", "\0.png", "é" * 500 + ".png", "..", "\ud800")
    annotations.images[:] = [
        replace(image, file_name=name) for image, name in zip(annotations.images, names, strict=True)
    ]
    before = set(tmp_path.rglob("*"))
    files = draw_pictures(annotations, [], tmp_path / "a" / "pictures")
    assert len(files) == 8 and {file.parent for file in files} == {tmp_path / "a" / "pictures"}
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "a", tmp_path / "a" / "pictures", *files}
    assert all(file.name.isprintable() and len(file.name.encode()) < 200 for file in files)
