"""Checkpoints: whole or not there, read without executing anything, and understood when they are not."""

import os

import pytest
import torch

from libra_det.checkpoint import Checkpoint, checkpoint_files, load_checkpoint, save_checkpoint
from libra_det.recipes import recipe


def make(epoch: int, step: int = 0, value: float = 0.0) -> Checkpoint:
    return Checkpoint(
        config=recipe("bccd"),
        categories=[(1, "red cell"), (5, "platelet")],
        model={"weight": torch.full((3,), value)},
        ema=None,
        optimizer={"state": {}, "param_groups": []},
        epoch=epoch,
        step=step,
        steps_per_epoch=40,
        seconds=1.5,
    )


def names(run):
    return [file.name for file in checkpoint_files(run)]


def test_what_is_written_is_read(tmp_path):
    file = save_checkpoint(make(3, value=0.25), tmp_path)
    for path in (file, tmp_path):
        loaded = load_checkpoint(path)
        assert (loaded.config, loaded.categories, loaded.epoch) == (
            recipe("bccd"),
            [(1, "red cell"), (5, "platelet")],
            3,
        )
        assert loaded.model["weight"].tolist() == [0.25] * 3


def test_the_newest_is_found_by_epoch_and_step_not_by_age(tmp_path):
    for epoch, step in ((10, 0), (9, 0), (9, 20)):
        save_checkpoint(make(epoch, step), tmp_path)
    assert (load_checkpoint(tmp_path).epoch, load_checkpoint(tmp_path).step) == (10, 0)


def test_only_the_newest_are_kept(tmp_path):
    for epoch, step in ((1, 0), (2, 0), (2, 7), (3, 0), (4, 0), (4, 3)):
        save_checkpoint(make(epoch, step), tmp_path, keep=2)
    assert names(tmp_path) == ["epoch_0003.pt", "epoch_0004.pt", "epoch_0004_step_000003.pt"]


def test_zero_keeps_all_epochs(tmp_path):
    for epoch in range(1, 5):
        save_checkpoint(make(epoch), tmp_path, keep=0)
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_one(tmp_path, monkeypatch, broken):
    save_checkpoint(make(1, value=1.0), tmp_path, keep=1)
    before = (tmp_path / "checkpoints" / "epoch_0001.pt").read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(make(1, value=2.0), tmp_path, keep=1)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(make(2, value=2.0), tmp_path, keep=1)
    assert names(tmp_path) == ["epoch_0001.pt"]
    assert (tmp_path / "checkpoints" / "epoch_0001.pt").read_bytes() == before
    save_checkpoint(make(2, value=2.0), tmp_path, keep=1)  # the leftovers are in nobody's way
    assert load_checkpoint(tmp_path).model["weight"].tolist() == [2.0] * 3


def test_a_truncated_file_is_named(tmp_path):
    file = save_checkpoint(make(1), tmp_path)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"epoch_0001\.pt: cannot be read"):
        load_checkpoint(tmp_path)


def test_foreign_files_are_named(tmp_path):
    file = tmp_path / "other.pt"
    torch.save({"state_dict": {}, "meta": {}}, file)
    with pytest.raises(ValueError, match=r"other\.pt: holds a dictionary with 'state_dict', 'meta'"):
        load_checkpoint(file)
    torch.save({"format": 99}, file)
    with pytest.raises(ValueError, match=r"other\.pt: has checkpoint format 99"):
        load_checkpoint(file)
    file.write_text("hello")
    with pytest.raises(ValueError, match=r"other\.pt: cannot be read"):
        load_checkpoint(file)


class Exploit:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (os.system, ("touch exploited",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Exploit()}, "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: cannot be read"):
        load_checkpoint("evil.pt")
    assert not (tmp_path / "exploited").exists()


def test_missing_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        load_checkpoint(tmp_path / "nowhere")
