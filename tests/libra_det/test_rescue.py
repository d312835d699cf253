"""A run folder that is deleted or renamed while it is trained in: training ends, and goes on beside it from there.
And one that another process has taken over: training ends, and writes nothing more.
"""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from libra_det import rescue, train
from libra_det.checkpoint import checkpoint_files
from libra_det.files import NotWritten
from libra_det.rescue import WatchedFolder
from libra_det.run_lock import RunLock
from libra_det.train import Trainer, resume

CPU = torch.device("cpu")


def delete(run):
    shutil.rmtree(run)


def rename(run):
    run.rename(run.with_name("elsewhere"))


def make_anew(run):
    """Begins the run again while it runs."""
    shutil.rmtree(run)
    run.mkdir()


def delete_with_its_parent(run):
    shutil.rmtree(run.parent)


@pytest.mark.skipif(not hasattr(shutil.os, "O_DIRECTORY"), reason="an open folder cannot be deleted")
@pytest.mark.parametrize("lose", [delete, rename, make_anew, delete_with_its_parent])
def test_what_was_learned_is_saved_beside_it(tiny_config, tmp_path, monkeypatch, lose):
    config = tiny_config(epochs=2)
    monkeypatch.chdir(tmp_path)
    run = Path("runs", "a")
    run.mkdir(parents=True)
    trainer = Trainer(config, run, CPU)
    compute = trainer._train_step

    def compute_and_lose(batch, **options):
        if (trainer.epoch, trainer.step) == (1, 1):
            lose(run)
        return compute(batch, **options)

    trainer._train_step = compute_and_lose
    with pytest.raises(NotWritten) as caught:
        trainer.train()
    rescued = Path("runs", "a-rescued")
    told, command = str(caught.value).split("\n")
    shown = rescued.absolute() if lose is delete_with_its_parent else rescued
    assert told.startswith(f"{run}: the run folder was deleted or renamed during training, so all that was learned")
    assert command == f"continue with: libra train --output {shown} --resume"
    assert (trainer.epoch, trainer.step) == (1, 2)  # it did not go on for long
    assert run.exists() == (lose is make_anew) and (not run.exists() or not list(run.iterdir()))
    assert sorted(file.name for file in rescued.iterdir()) == ["checkpoints", "config.json"]

    if lose is delete:
        resumed = resume(rescued, CPU)
        assert (resumed.epoch, resumed.step) == (1, 2)
        expected, found = trainer.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("moment", ["the checkpoint", "the evaluation"])
def test_other_moments(tiny_config, tmp_path, monkeypatch, moment):
    """While a checkpoint is written, and after the last one."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "run-rescued").mkdir()  # of an earlier time
    trainer = Trainer(tiny_config(epochs=1), run, CPU)
    name = "save_or_rescue" if moment == "the checkpoint" else "evaluate"
    act = getattr(train, name)

    def delete_first(*arguments, **options):
        shutil.rmtree(run, ignore_errors=True)
        return act(*arguments, **options)

    monkeypatch.setattr(train, name, delete_first)
    with pytest.raises(NotWritten, match=r"continue with: libra train --output .*run-rescued-2 --resume"):
        trainer.train()
    assert not run.exists()
    assert [file.name for file in checkpoint_files(tmp_path / "run-rescued-2")] == ["epoch_0001.pt"]


def test_an_untouched_folder_is_there(tmp_path):
    watched = WatchedFolder(tmp_path)
    (tmp_path / "file").touch()
    assert watched.is_there()
    watched.check()
    watched.close()
    watched.close()


def test_a_file_server_that_does_not_answer_well_has_it_still(tmp_path, monkeypatch):
    watched = WatchedFolder(tmp_path)
    stat = os.stat
    for call in ("stat", "fstat"):
        for code, there in ((errno.ESTALE, True), (errno.EIO, True), (errno.ENOENT, False)):

            def refuse(path, *arguments, code=code, **options):
                if path not in (tmp_path, watched._descriptor):
                    return stat(path, *arguments, **options)
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as patch:
                patch.setattr(os, call, refuse)
                found = watched.is_there()
            assert found == there
    watched.close()


@pytest.mark.parametrize("moment", ["a step", "the checkpoint", "the evaluation"])
def test_a_run_that_was_taken_over_is_left_alone(tiny_config, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(rescue, "ASKED_EVERY", 0.0 if moment == "a step" else 1e9)
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(tiny_config(epochs=2), run, CPU)

    def look(folder) -> dict:
        return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and "log" not in file.name}

    before, compute, measure = {}, trainer._train_step, train.evaluate

    def take() -> None:
        (run / "lock").write_text("another's by now")
        before.update(look(run / "checkpoints"))

    def compute_and_lose(batch, **options):
        if moment != "the evaluation" and (trainer.epoch, trainer.step) == (1, 1):
            take()
        return compute(batch, **options)

    def measure_and_lose(*arguments, **options):
        take()
        return measure(*arguments, **options)

    trainer._train_step = compute_and_lose
    monkeypatch.setattr(train, "evaluate", measure_and_lose if moment == "the evaluation" else measure)
    with RunLock(run) as trainer.lock, pytest.raises(NotWritten, match="another process has taken this run over"):
        trainer.train()
    assert (trainer.epoch, trainer.step) == ((1, 2) if moment == "a step" else (2, 0))
    assert before and look(run / "checkpoints") == before and not (run / "metrics.json").exists()
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir()) == ["data", "run"]


def test_a_run_that_is_not_logged_each_step_notices_at_the_epochs_end(tiny_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_config(epochs=2)
    trainer = Trainer(replace(config, train=replace(config.train, log_every=0)), run, CPU)
    compute = trainer._train_step

    def compute_and_lose(batch, **options):
        if trainer.step == 2:
            shutil.rmtree(run, ignore_errors=True)
        return compute(batch, **options)

    trainer._train_step = compute_and_lose
    with pytest.raises(NotWritten, match="run-rescued"):
        trainer.train()
    assert [file.name for file in checkpoint_files(tmp_path / "run-rescued")] == ["epoch_0001.pt"]
