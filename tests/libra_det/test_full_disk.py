"""`libra` where there is no room, where another process has the run, and after one that was killed."""

import errno
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from file_limit import files_of_at_most

from libra_det import cli, files, predict, progress
from libra_det.checkpoint import checkpoint_files, load_checkpoint
from libra_det.files import GrowingFile, NotWritten
from libra_det.run_lock import RunLock
from libra_det.train import Trainer, resume

CPU = torch.device("cpu")


def begun(config, run):
    """A run folder that --resume begins."""
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    return run


def train(run, *flags) -> int:
    return cli.main(["train", "--output", str(run), "--resume", "--device", "cpu", *flags])


def refuse(code: int):
    def raise_it(*_, **__):
        raise OSError(code, os.strerror(code))

    return raise_it


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_file_system_that_refuses_a_checkpoint(tiny_config, tmp_path, capsys):
    """A real limit, that the checkpoint's 140 MB meet and the other files do not."""
    run = begun(tiny_config(epochs=2), tmp_path / "run")
    with files_of_at_most(20_000_000):
        assert train(run) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    file = run / "checkpoints" / "epoch_0001.pt"
    error = told.splitlines()[-1]
    assert error.startswith(f"libra: error: {file}: could not be written (File too large): ")
    assert " MB are needed, " in error
    assert error.endswith(
        f"no checkpoint before it; when there is room, continue with: libra train --output {run} --resume"
    )
    assert not list(run.rglob("*.unfinished")) and not (run / "lock").exists()
    assert len((run / "log.jsonl").read_text().splitlines()) == 4


def test_room_for_two_checkpoints_is_looked_at_first(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "recipe", lambda name: replace(tiny_config(epochs=3), recipe=name))
    run = tmp_path / "run"
    new = ["train", "--output", str(run), "--device", "cpu"]
    free = SimpleNamespace(free=0, total=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert cli.main(new) == 1
    error = capsys.readouterr().err
    assert "are needed for two checkpoints of this model, and 0 bytes are free on that disk" in error
    assert "Traceback" not in error and not run.exists()

    monkeypatch.setattr(Trainer, "_train", lambda trainer: trainer._save() and refuse(errno.EIO)())
    free.free = 10**12
    assert cli.main(new) == 2  # the error of the line before; there is one checkpoint now
    size = checkpoint_files(run)[0].stat().st_size
    free.free = size // 2
    assert train(run) == 1
    assert "are needed for another checkpoint of this model" in capsys.readouterr().err
    free.free = 2 * size  # of one without momentum, which no step has made yet
    assert train(run) == 2


@pytest.mark.parametrize("writer", ["log.jsonl", "tensorboard"])
def test_a_log_that_cannot_be_written_loses_nothing(tiny_config, tmp_path, capsys, monkeypatch, writer):
    """There is no room at the sixth step, and again at the end."""
    whole, broken = begun(tiny_config(epochs=2), tmp_path / "whole"), begun(tiny_config(epochs=2), tmp_path / "broken")
    assert train(whole) == 0
    capsys.readouterr()
    write, calls = GrowingFile.write, []

    def write_or_not(file, content):
        if writer in str(file.file):
            calls.append(file)
            with files.writing(file.file):
                if len(calls) == {"log.jsonl": 6, "tensorboard": 7}[writer]:  # which begins with its version
                    refuse(errno.ENOSPC)()
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(progress.GrowingFile, "write", write_or_not)
        assert train(broken) == 1
    lines = capsys.readouterr().err.splitlines()
    newest = checkpoint_files(broken)[-1]
    assert newest.name == "epoch_0001_step_000003.pt"
    assert f"libra: {newest} holds all that was learned" in lines[-2]
    assert lines[-1].startswith(f"libra: error: {broken}/{writer}")
    assert "could not be written (No space left on device)" in lines[-1]
    assert train(broken) == 0
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, broken)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    models = [load_checkpoint(run).model for run in (whole, broken)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_closing_that_fails_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def close_badly(file):
        raise NotWritten(f"{file.file}: at its end")

    monkeypatch.setattr(progress.GrowingFile, "close", close_badly)
    with pytest.raises(ZeroDivisionError), progress.Progress(tmp_path, 1, 1, 0):
        raise ZeroDivisionError
    with pytest.raises(NotWritten, match="at its end"), progress.Progress(tmp_path, 1, 1, 0):
        pass


def test_pictures_that_cannot_be_written(tiny_config, tiny_data, tmp_path, capsys, monkeypatch):
    """What was found until then is listed, if there is room for that."""
    run = begun(tiny_config(epochs=1), tmp_path / "run")
    Trainer(tiny_config(epochs=1), run, CPU)._save()
    save, output = predict.save_picture, tmp_path / "out"

    def save_or_not(picture, file, *arguments, **options):
        if file.stem == "val_1":
            with files.writing(file):
                refuse(errno.EDQUOT)()
        save(picture, file, *arguments, **options)

    monkeypatch.setattr(predict, "save_picture", save_or_not)
    (tmp_path / "images").mkdir()
    for image in tiny_data.glob("val_*.png"):
        shutil.copy(image, tmp_path / "images")
    assert cli.main(["predict", str(run), str(tmp_path / "images"), "--output", str(output), "--device", "cpu"]) == 1
    assert f"libra: error: {output / 'val_1.jpg'}: could not be written (" in capsys.readouterr().err
    assert sorted(file.name for file in output.iterdir()) == ["predictions.json", "val_0.jpg"]


def test_a_run_that_another_process_has_is_refused(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "recipe", lambda name: replace(tiny_config(epochs=1), recipe=name))
    run = begun(tiny_config(epochs=1), tmp_path / "run")
    new = tmp_path / "new"
    new.mkdir()
    for folder, command in ((run, ["--resume"]), (new, []), (new, ["--resume", "--recipe", "shapes"])):
        with RunLock(folder):
            assert cli.main(["train", "--output", str(folder), "--device", "cpu", *command]) == 2
            error = capsys.readouterr().err
            assert (
                f"libra: error: {folder}: another process trains in this run folder (process {os.getpid()} on" in error
            )
            assert "Traceback" not in error
    assert [file.name for file in run.iterdir()] == ["config.json"] and not list(new.iterdir())


def test_what_a_killed_process_leaves_is_in_nobodys_way(tiny_config, tmp_path, capsys, monkeypatch):
    """Killed before there was a run; and while it trained: its lock, parts of files, and a damaged checkpoint."""
    config = tiny_config(epochs=1)
    monkeypatch.setattr(cli, "recipe", lambda name: replace(config, recipe=name))
    run = tmp_path / "run"
    run.mkdir()
    dead = {"host": "h", "pid": 1, "process_start": 1, "boot_id": "b", "started": "long ago"}
    (run / "config.json.1-a.unfinished").touch()
    (run / "lock").write_text(json.dumps(dead))
    os.utime(run / "lock", (1, 1))
    assert train(run, "--recipe", "shapes") == 0
    assert not list(run.rglob("*.unfinished")) and not (run / "lock").exists()

    assert train(run, "--epochs", "2") == 0
    newest = checkpoint_files(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    for name in ("config.json.unfinished", "checkpoints/epoch_0003.unfinished", "checkpoints/epoch.7-b.unfinished"):
        (run / name).touch()
    capsys.readouterr()
    assert train(run) == 0
    error = capsys.readouterr().err
    assert f"libra: warning: {newest} is damaged" in error and "epoch_0001.pt" in error
    assert not list(run.rglob("*.unfinished"))
    folder = [file.name for file in (run / "checkpoints").iterdir()]
    assert sorted(folder) == ["epoch_0001.pt", "epoch_0002.pt", "epoch_0002.pt.damaged"]


def test_the_lock_goes_with_an_error_and_with_ctrl_c(tiny_config, tmp_path, monkeypatch):
    run = begun(tiny_config(epochs=1), tmp_path / "run")
    for error, code in ((KeyboardInterrupt(), 130), (ValueError("wrong"), 2)):

        def fail(*_, error=error):
            assert (run / "lock").exists()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_train", fail)
            assert train(run) == code
        assert not (run / "lock").exists()


@pytest.mark.parametrize("what", ["weights", "averaged weights", "momentum", "number", "not finite"])
def test_a_checkpoint_of_another_model_is_a_sentence(tiny_config, tmp_path, what):
    run = begun(tiny_config(epochs=1), tmp_path / "run")
    trainer = Trainer(tiny_config(epochs=1), run, CPU)
    trainer._train_step(trainer.dataset.collate([trainer.dataset[0], trainer.dataset[1]]))
    checkpoint = trainer._checkpoint()
    momenta = checkpoint.optimizer["state"]
    name = "roi_head.bbox_head.fc_cls.bias"
    number = [key for key, value in trainer.model.named_parameters() if value.requires_grad].index(name)
    told = {
        "weights": rf"the weights of the checkpoint do not fit the model of the run; .*\n +misshapen +{name}",
        "averaged weights": rf"the averaged weights of the checkpoint do not fit .*\n +missing +{name}",
        "momentum": rf"optimizer: expected a momentum of shape \[3\] for {name}, got \[1\]",
        "number": r"optimizer: expected groups of \[\d+\] parameters, as the model has them, got \[1\]",
        "not finite": rf"optimizer: the momentum of {name} holds NaN or infinite numbers",
    }[what]
    if what == "weights":
        checkpoint.model[name] = torch.zeros(7)
    elif what == "averaged weights":
        del checkpoint.ema[name]
    elif what == "momentum":
        momenta[number]["momentum_buffer"] = torch.zeros(1)  # which could be copied to all three
    elif what == "number":
        checkpoint.optimizer["param_groups"][0]["params"] = [0]
    else:
        momenta[number]["momentum_buffer"][1] = torch.inf
    trainer._checkpoint = lambda: checkpoint
    trainer._save()
    with pytest.raises(ValueError, match=told):
        resume(run, CPU)
