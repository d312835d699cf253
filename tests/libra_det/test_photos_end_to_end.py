"""The command line on real photos: COCO with sparse ids, crowds and empty images; Pascal VOC's XML; RGBA; grayscale."""

import json
from pathlib import Path

import pytest

from libra_det.cli import main

SMALL = (  # in float32: a processor without bfloat16 instructions would take minutes
    "--backbone resnet18 --norm batch_norm --frozen-stages -1 --fpn-channels 32 --fc-channels 64 "
    "--proposals-per-level 100 --proposals-per-level-test 100 --proposals-train 100 --proposals-test 100 "
    "--rpn-samples 64 --roi-samples 32 --roi-sampling-ratio 2 --short-side 96 --long-side 128 --batch-size 4 "
    "--workers 0 --log-every 1 --learning-rate 0.01 --schedule one_cycle --gradient-clip 10 --no-amp --device cpu"
).split()


def train(data: Path, run: Path, *flags: str) -> dict:
    """Trains the small model for two epochs through the command line; the run's metrics."""
    arguments = [
        "train",
        "--recipe",
        "bccd",
        "--data",
        str(data),
        "--output",
        str(run),
        "--epochs",
        "2",
        *SMALL,
        *flags,
    ]
    assert main(arguments) == 0
    return json.loads((run / "metrics.json").read_text())


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss/total"] for line in lines if "loss/total" in line]


@pytest.mark.parametrize("crowds_and_empty_images", ["--skip-empty", "--no-skip-empty"])
def test_two_epochs_of_coco(libra_data, tmp_path, crowds_and_empty_images, capsys):
    """Sparse category ids come back in the predictions; crowds and images without objects disturb nothing."""
    data, run = libra_data / "coco_free", tmp_path / "run"
    train(data, run, "--eval-split", "val", "--score-threshold", "0", crowds_and_empty_images)
    values = losses(run)
    assert len(values) >= 8
    assert sum(values[-3:]) < sum(values[:3])
    assert (
        main(["predict", str(run), str(data / "images"), "--output", str(tmp_path / "out"), "--score-threshold", "0"])
        == 0
    )
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    known = {category["id"] for category in json.loads((data / "val.json").read_text())["categories"]}
    assert {detection["category_id"] for detection in found} <= known
    assert max(known) == 90 and len(known) < 90
    assert {detection["file_name"] for detection in found} <= {file.name for file in (data / "images").iterdir()}


def test_two_epochs_of_voc(libra_data, tmp_path, capsys):
    """BCCD's XML: the loss falls, and the two boxes without area are dropped and counted."""
    run = tmp_path / "run"
    metrics = train(libra_data / "bccd" / "BCCD", run, "--eval-split", "val")
    values = losses(run)
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
    assert "AP50" in json.dumps(metrics)
    assert "area" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "images"), [("nuclei", 24), ("deeppcb", 20)])
def test_check_reads_every_photo(libra_data, capsys, name, images):
    assert main(["check", str(libra_data / name)]) == 0
    assert str(images) in capsys.readouterr().out
