"""The command line: flags replace fields, mistakes get one clear line, and nothing heavy is imported for either."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torchvision

from libra_det import cli
from libra_det.checkpoint import checkpoint_files, load_checkpoint
from libra_det.config import DataConfig, ModelConfig, TrainConfig
from libra_det.models import build_model
from libra_det.recipes import recipe
from libra_det.run_folder import is_free, new_run_folder, read_config
from libra_det.train import Trainer


def run_cli(*arguments) -> int:
    """Exit code of `libra ARGUMENTS`, also where the parser ends the process."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def test_train_alone_is_the_embedded_recipe():
    command = cli._parse(["train"])
    assert command.config == recipe("shapes")
    assert (command.output, command.resume, command.device) == (None, False, "auto")


def test_flags_replace_fields_of_the_recipe():
    arguments = (
        "train --recipe bccd --epochs 3 --pyramid none --box-loss smooth_l1 --gradient-clip none "
        "--no-class-specific-boxes --scale-jitter 0.8 1.2 --step-epochs 1 2 --amp --data /some/where "
        "--rpn-max-negatives-per-positive=none --output run"
    )
    command = cli._parse(arguments.split())
    expected = recipe("bccd")
    model = replace(
        expected.model,
        pyramid="none",
        box_loss="smooth_l1",
        class_specific_boxes=False,
        rpn_max_negatives_per_positive=None,
    )
    data = replace(expected.data, data="/some/where", scale_jitter=(0.8, 1.2))
    train = replace(expected.train, epochs=3, gradient_clip=None, step_epochs=(1, 2), amp=True)
    assert command.config == replace(expected, model=model, data=data, train=train)
    assert command.output == Path("run")


def test_every_field_is_a_flag_with_help(capsys):
    assert run_cli("train", "--help") == 0
    text = capsys.readouterr().out
    for cls in (ModelConfig, DataConfig, TrainConfig):
        for field in fields(cls):
            assert f"--{field.name.replace('_', '-')}" in text
    assert "Balanced feature pyramid" in text


def test_help_and_package_import_no_torch():
    code = (
        "import sys, libra_det, libra_det.cli\n"
        "try: libra_det.cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("there", [False, True])
def test_data_that_is_not_there_is_told_at_once(tmp_path, there):
    """Neither torch nor numpy nor PIL is imported to say so."""
    folder = tmp_path / "data"
    if there:
        folder.mkdir()
    code = (
        "import sys, libra_det.cli\n"
        f"code = libra_det.cli.main(['check', {str(folder)!r}])\n"
        "heavy = {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} imported, exit code {code}' if heavy or code != 2 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("no annotations of split 'train'; looked for" if there else "which does not exist") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "nope"], "libra: error: recipe: expected one of shapes, bccd"),
        (["train", "--resume"], "libra: error: --resume: expected --output RUN beside it"),
        (["train", "--device", "tpu"], "libra: error: --device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["train", "--device", "cuda:99"], "libra: error: --device cuda:99: there is no such device"),
        (["train", "--epocs", "3"], "--epochs"),
        (["train", "--pyramid", "egyptian"], "egyptian"),
        (["eval", "nowhere"], "libra: error: nowhere: no such run folder or checkpoint file"),
        (["eval"], "libra: error: RUN: expected a run folder or a file of weights"),
        (["predict"], "libra: error: RUN: expected a run folder or a file of weights first"),
        (
            ["predict", "--weights", "nowhere.pth", "a.jpg"],
            "libra: error: nowhere.pth: no such run folder or checkpoint",
        ),
        (
            ["predict", "--batch-size", "0", "--weights", "W", "a.jpg"],
            "libra: error: --batch-size: expected at least 1",
        ),
        (["train", "--weights", "nowhere.pth"], "libra: error: nowhere.pth: no such run folder or checkpoint file"),
        (["predict", "nowhere"], "libra: error: IMAGE|DIR: expected at least one"),
        (["train", "--data", "nowhere", "--device", "cpu"], "libra: error: data: expected a folder"),
        (["check", "nowhere"], "libra: error: data: expected a folder"),
        (["fly"], "fly"),
    ],
)
def test_mistakes_end_with_2_and_a_clear_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("LIBRA_DEBUG", "1")
    with pytest.raises(ValueError, match="expected one of shapes"):
        cli.main(["train", "--recipe", "nope"])


def test_run_folders_are_numbered_and_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [new_run_folder(None, "shapes") for _ in range(3)] == [
        Path("runs/shapes"),
        Path("runs/shapes-2"),
        Path("runs/shapes-3"),
    ]
    mine = new_run_folder(Path("mine"), "shapes")
    assert new_run_folder(Path("mine"), "shapes") == mine  # still empty
    (mine / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a run; add --resume"):
        new_run_folder(Path("mine"), "shapes")


def test_one_command_begins_a_run_and_continues_it(tiny_config, tmp_path, capsys, monkeypatch):
    """As torchrun and job schedulers want it; without a recipe a mistyped folder is no new run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "recipe", lambda name: replace(tiny_config(epochs=1), recipe=name))
    command = ("train", "--recipe", "shapes", "--output", "run", "--device", "cpu", "--resume")
    assert run_cli(*command) == 0 and "trained in" in capsys.readouterr().out
    assert run_cli(*command, "--epochs", 2) == 0 and read_config(Path("run")).train.epochs == 2
    assert run_cli("train", "--output", "rum", "--resume", "--device", "cpu") == 2
    assert "rum: not a run folder" in capsys.readouterr().err and not Path("rum").exists()
    Path("notes").mkdir()
    Path("notes", "mine.txt").write_text("not a run")
    assert run_cli("train", "--recipe", "shapes", "--output", "notes", "--resume", "--device", "cpu") == 2


def test_a_day_of_a_user(tiny_config, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "recipe", lambda name: replace(tiny_config(epochs=1), recipe=name))
    run = tmp_path / "run"
    assert run_cli("train", "--output", run, "--device", "cpu", "--data", tiny_data, "--seed", 3) == 0
    output = capsys.readouterr().out
    assert "AP50" in output and "red box" in output and f"libra predict {run}" in output

    assert run_cli("train", "--output", run, "--device", "cpu") == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err

    assert run_cli("train", "--output", run, "--resume", "--epochs", 2, "--device", "cpu") == 0
    config = read_config(run)
    assert (config.train.epochs, config.train.seed, config.data.data) == (2, 3, str(tiny_data))
    assert run_cli("train", "--output", run, "--resume", "--recipe", "bccd") == 2
    assert "has recipe shapes" in capsys.readouterr().err

    assert run_cli("eval", run, "--split", "train", "--device", "cpu") == 0
    numbers = json.loads((run / "evaluation" / "data-train" / "metrics.json").read_text())
    assert numbers["split"] == "train" and len(numbers["coco"]) == 12
    annotations = ("--annotations", tiny_data / "train.json")
    assert run_cli("eval", run / "checkpoints" / "epoch_0002.pt", *annotations, "--device", "cpu") == 0
    assert {folder.name for folder in (run / "evaluation").iterdir()} == {"data-train", "data-val-train"}
    checkpoint = tmp_path / "some" / "where" / "weights.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes((run / "checkpoints" / "epoch_0002.pt").read_bytes())
    assert run_cli("eval", checkpoint, "--device", "cpu") == 0
    assert (tmp_path / "evaluation" / "data-val" / "metrics.json").exists()  # in the current folder
    assert list((tmp_path / "some").rglob("*")) == [checkpoint.parent, checkpoint]

    command = (
        "predict",
        run,
        tiny_data / "val_0.png",
        "--output",
        tmp_path / "out",
        "--score-threshold",
        0,
        "--device",
        "cpu",
    )
    assert run_cli(*command) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert run_cli("predict", run, tmp_path / "broken.png", "--device", "cpu") == 1

    assert run_cli("check", tiny_data) == 0
    assert "8 images" in capsys.readouterr().out


def test_commands_that_are_printed_can_be_pasted():
    assert cli.resume_command(Path("my runs/a")) == "libra train --output 'my runs/a' --resume"


def test_a_diverging_run_ends_with_1_and_names_the_images(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "recipe", lambda name: tiny_config(epochs=5, gradient_clip=None, schedule="step"))
    run = tmp_path / "run"
    flags = ("--learning-rate", "1e30", "--warmup-steps", 0, "--device", "cpu")
    assert run_cli("train", "--output", run, *flags) == 1
    assert f"{run / 'non_finite.json'} lists the images" in capsys.readouterr().err
    assert all(name.endswith(".png") for name in json.loads((run / "non_finite.json").read_text())["file_names"])
    assert not (run / "checkpoints").exists()


def test_fine_tuning_from_a_published_file(tiny_recipes, tiny_data, tmp_path, capsys):
    """Without --recipe it is the file's; other classes begin anew; what does not fit is an error before training."""
    torch.manual_seed(0)
    state = build_model(tiny_recipes["tiny_retina"].model, 5).state_dict()
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "W.pth")
    run, weights = tmp_path / "run", ("--weights", tmp_path / "W.pth")
    short = ("--epochs", 1, "--data", tiny_data, "--device", "cpu", "--learning-rate", 1e-9, "--ema-decay", 0)
    assert run_cli("train", *weights, "--output", run, *short) == 0
    assert "has 5 classes, the data 2: bbox_head.retina_cls start anew, all else is loaded" in capsys.readouterr().out
    trained = load_checkpoint(run)
    assert (trained.config.recipe, trained.config.model.backbone_weights) == ("tiny_retina", None)
    name = "neck.1.refine.g.conv.weight"
    torch.testing.assert_close(trained.model[name], state[name], atol=1e-5, rtol=0)
    assert trained.model["bbox_head.retina_cls.weight"].shape[0] == 2 * 9

    assert run_cli("train", "--recipe", "tiny_plain", *weights, "--output", tmp_path / "other", *short) == 2
    error = capsys.readouterr().err
    assert "does not fit the model of recipe tiny_plain" in error and "missing     rpn_head.rpn_conv.weight" in error
    assert not (tmp_path / "other").exists()
    assert run_cli("train", "--recipe", "tiny_plain", *weights, "--partial", "--output", tmp_path / "part", *short) == 0
    assert "loaded in part; not loaded:" in capsys.readouterr().out


def test_a_run_from_weights_that_is_stopped_at_once_is_resumed_from_them(
    tiny_recipes, tiny_data, tmp_path, capsys, monkeypatch
):
    """The command that resumes names no weights, and needs none: also before the first epoch is over."""
    torch.manual_seed(0)
    state = build_model(tiny_recipes["tiny_faster"].model, 2).state_dict()
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "W.pth")
    run = tmp_path / "run"
    short = ("--epochs", 1, "--data", tiny_data, "--device", "cpu", "--learning-rate", 1e-9, "--ema-decay", 0)

    def die(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("libra_det.train.write_text", die)  # of config.json, after the first checkpoint
        run_cli("train", "--weights", tmp_path / "W.pth", "--output", run, *short)
    assert [file.name for file in checkpoint_files(run)] == ["epoch_0000.pt"] and is_free(run)
    assert run_cli("train", "--output", run, "--resume", "--device", "cpu") == 2  # it would begin at random
    assert f"{run}: not a run folder" in capsys.readouterr().err
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "_train_epoch", die)
        run_cli("train", "--weights", tmp_path / "W.pth", "--output", run, *short)
    assert run_cli("train", "--output", run, "--resume", "--device", "cpu") == 0
    name = "neck.1.refine.g.conv.weight"
    torch.testing.assert_close(load_checkpoint(run).model[name], state[name], atol=1e-5, rtol=0)
    capsys.readouterr()
    assert run_cli("train", "--output", run, "--resume", "--weights", tmp_path / "W.pth", "--device", "cpu") == 0
    assert "W.pth: not read; the run continues from its own checkpoint" in capsys.readouterr().out


def test_training_from_a_backbone_by_weights(tiny_recipes, tiny_data, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    flags = ("--recipe", "tiny_faster", "--weights", tmp_path / "resnet18.pth", "--frozen-stages", 1)
    run = tmp_path / "run"
    assert run_cli("train", *flags, "--data", tiny_data, "--epochs", 1, "--output", run, "--device", "cpu") == 0
    assert torch.equal(load_checkpoint(run).model["backbone.conv1.weight"], state["conv1.weight"])
