"""A run folder that is deleted or renamed while it is trained in: training ends, and goes on beside it from there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from libra_det import train
from libra_det.checkpoint import checkpoint_files, load_checkpoint
from libra_det.files import NotWritten
from libra_det.rescue import WatchedFolder
from libra_det.train import Trainer, resume

CPU = torch.device("cpu")


def delete(run):
    shutil.rmtree(run)


def rename(run):
    run.rename(run.with_name("elsewhere"))


def make_anew(run):
    """As someone who begins the run again while it runs."""
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
        whole = tmp_path / "whole"
        whole.mkdir()
        Trainer(config, whole, CPU).train()
        resume(rescued, CPU).train()
        expected, found = load_checkpoint(whole), load_checkpoint(rescued)
        assert all(torch.equal(expected.model[name], found.model[name]) for name in expected.model)


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
