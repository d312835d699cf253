"""Checkpoints: whole or not there, read without executing anything, and understood when they are not."""

import errno
import math
import os
from pathlib import Path

import pytest
import torch

from libra_det import checkpoint as checkpoint_module
from libra_det.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    checkpoint_files,
    checkpoint_of,
    load_checkpoint,
    put_damaged_aside,
    save_checkpoint,
)
from libra_det.files import NotWritten
from libra_det.recipes import recipe
from libra_det.weights.files import DamagedFile


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


@pytest.mark.parametrize("keep", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "written",
    [[(0, 1), (0, 2), (0, 3)], [(0, 3), (1, 0)], [(1, 0), (1, 5), (2, 0)], [(1, 0), (2, 0), (3, 0)], [(0, 0), (0, 9)]],
)
def test_two_files_stay_whatever_they_are(tmp_path, keep, written):
    for count, (epoch, step) in enumerate(written, start=1):
        save_checkpoint(make(epoch, step), tmp_path, keep)
        found = [load_checkpoint(file) for file in checkpoint_files(tmp_path)]
        assert len(found) >= min(count, 2)
        assert (found[-1].epoch, found[-1].step) == (epoch, step)
    assert len(found) == 2 or keep in (0, 5)


def test_one_is_kept_as_two(tmp_path):
    for epoch, step in ((1, 0), (2, 0), (2, 7), (3, 0)):
        save_checkpoint(make(epoch, step), tmp_path, keep=1)
    assert names(tmp_path) == ["epoch_0002.pt", "epoch_0003.pt"]


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
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1  # nothing is left of the others
    save_checkpoint(make(2, value=2.0), tmp_path, keep=1)
    assert load_checkpoint(tmp_path).model["weight"].tolist() == [2.0] * 3


def test_without_room_the_message_says_what_there_is_and_how_to_go_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(NotWritten, match="There is no checkpoint before it; when there is room, start again"):
            save_checkpoint(make(0), tmp_path)  # of a run that has not even begun
    (tmp_path / "config.json").touch()
    for before, told in (
        ("", "There is no checkpoint before it"),
        ("1", "The checkpoint before it, epoch_0001.pt, is"),
    ):
        if before:
            save_checkpoint(make(1), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(NotWritten, match=r"epoch_0002\.pt: could not be written \(No space left") as caught:
                save_checkpoint(make(2), tmp_path)
        assert told in str(caught.value) and "kB are needed" in str(caught.value)
        assert f"continue with: libra train --output {tmp_path} --resume" in str(caught.value)
    assert names(tmp_path) == ["epoch_0001.pt"]


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(NotWritten):
        save_checkpoint(make(1), tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_known_before(tmp_path):
    state = {f"backbone.layer{number}.some.long.name.of.a.weight": torch.zeros(1000) for number in range(300)}
    checkpoint = make(1)
    checkpoint.model = checkpoint.ema = state
    momenta = {number: {"momentum_buffer": value.clone()} for number, value in enumerate(state.values())}
    checkpoint.ema = {name: value.clone() for name, value in state.items()}
    checkpoint.optimizer = {"state": momenta, "param_groups": [{"params": list(momenta)}]}
    size = save_checkpoint(checkpoint, tmp_path).stat().st_size
    assert size < checkpoint_bytes(checkpoint.tensors()) < 1.2 * size


def damage(file, kind: str) -> None:
    content = file.read_bytes()
    file.write_bytes({"cut off": content[:-300], "empty": b"", "zeros": bytes(len(content))}[kind])


@pytest.mark.parametrize("kind", ["cut off", "empty", "zeros"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, capsys, kind):
    for epoch in (1, 2, 3):
        save_checkpoint(make(epoch), tmp_path)
    files = checkpoint_files(tmp_path)
    for file in files[1:]:
        damage(file, kind)
    assert load_checkpoint(tmp_path).epoch == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, file in zip(lines, files[:0:-1], strict=True):
        assert line.startswith(f"libra: warning: {file} is damaged (")
        assert line.endswith(f"; {files[0]} is used instead")
    assert checkpoint_files(tmp_path) == files  # reading changes nothing

    found, checkpoint = put_damaged_aside(tmp_path)
    assert (found, checkpoint.epoch) == (files[0], 1)
    assert names(tmp_path) == ["epoch_0001.pt"]
    assert (tmp_path / "checkpoints" / "epoch_0003.pt.damaged").exists()
    save_checkpoint(make(3), tmp_path)
    damage(files[2], kind)
    put_damaged_aside(tmp_path)
    assert (tmp_path / "checkpoints" / "epoch_0003.pt.damaged2").exists()
    damage(files[0], kind)
    with pytest.raises(DamagedFile, match=r"epoch_0001\.pt: cannot be read .*; no other"):
        load_checkpoint(tmp_path)


def test_a_file_that_can_be_read_the_second_time_is_not_put_aside(tmp_path, capsys, monkeypatch):
    files = [save_checkpoint(make(epoch), tmp_path) for epoch in (1, 2)]
    read, calls = checkpoint_module.read_tensor_file, []

    def fail_once(path):
        calls.append(path)
        if len(calls) == 1:
            raise DamagedFile(f"{path}: cannot be read")
        return read(path)

    monkeypatch.setattr(checkpoint_module, "read_tensor_file", fail_once)
    found, checkpoint = put_damaged_aside(tmp_path)
    assert (found, checkpoint.epoch) == (files[1], 2) and checkpoint_files(tmp_path) == files
    assert capsys.readouterr().err.endswith(f"{files[1]}: could be read at the second attempt, and is used\n")


def test_an_old_one_that_cannot_be_removed_is_a_warning(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for epoch in (1, 2):
        save_checkpoint(make(epoch), tmp_path, keep=2)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert save_checkpoint(make(3), tmp_path, keep=2).exists()
    assert "epoch_0001.pt: could not be removed (Operation not permitted)" in capsys.readouterr().err


def test_when_all_are_damaged_the_newest_is_named(tmp_path):
    for epoch in (1, 2, 3):
        damage(save_checkpoint(make(epoch), tmp_path), "cut off")
    for read in (load_checkpoint, put_damaged_aside):
        with pytest.raises(
            DamagedFile, match=r"epoch_0003\.pt: cannot be read .*of the 3 checkpoints of the run.*none"
        ):
            read(tmp_path)
    assert len(names(tmp_path)) == 3


def test_of_several_processes_the_first_one_warns(tmp_path, capsys, monkeypatch):
    for epoch in (1, 2):
        file = save_checkpoint(make(epoch), tmp_path)
    damage(file, "cut off")
    monkeypatch.setenv("RANK", "1")
    assert load_checkpoint(tmp_path).epoch == 1
    assert capsys.readouterr().err == ""


def rewritten(file, **changes) -> None:
    torch.save({**torch.load(file, weights_only=True), **changes}, file)


@pytest.mark.parametrize("changes", [{"format": 2}, {"config": '{"recipe": "bccd", "invented": 1}'}, {"model": 3}])
def test_what_is_not_damaged_but_not_understood_is_an_error(tmp_path, changes):
    """A newer libra_det wrote it, perhaps: to go on from an older checkpoint would throw away what was learned."""
    for epoch in (1, 2):
        file = save_checkpoint(make(epoch), tmp_path)
    rewritten(file, **changes)
    for read in (load_checkpoint, put_damaged_aside):
        with pytest.raises(ValueError, match=r"epoch_0002\.pt: (has checkpoint format 2|is no complete)") as caught:
            read(tmp_path)
        assert not isinstance(caught.value, DamagedFile)
    assert len(names(tmp_path)) == 2


MOMENTUM = {"momentum_buffer": torch.zeros(3)}


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": -1},
        {"epoch": 1.0},
        {"epoch": True},
        {"epoch": 10**400},
        {"step": -1},
        {"step": "1"},
        {"step": 41},
        {"steps_per_epoch": 0},
        {"seconds": -1.0},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": 10**400},
        {"seconds": None},
        {"categories": [(math.inf, "a")]},
        {"categories": [(10**400, "a")]},
        {"categories": [(2**63, "a")]},
        {"categories": [(1, None)]},
        {"categories": [1]},
        {"categories": [(1, "a", "b")]},
        {"categories": {"a": 1}},
        {"categories": 5},
        {"model": {"a": 1}},
        {"ema": []},
        {"ema": 0},
        {"optimizer": None},
        {"optimizer": {"state": {}}},
        {"optimizer": {"state": [], "param_groups": []}},
        {"optimizer": {"state": {}, "param_groups": {}}},
        {"optimizer": {"state": {}, "param_groups": [{"params": ["a"]}]}},
        {"optimizer": {"state": {}, "param_groups": [{}]}},
        {"optimizer": {"state": {"0": MOMENTUM}, "param_groups": []}},
        {"optimizer": {"state": {0: torch.zeros(3)}, "param_groups": []}},
        {"optimizer": {"state": {0: {"momentum_buffer": 1.0}}, "param_groups": []}},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3).to_sparse()}}, "param_groups": []}},
        {"config": 5},
        {"config": "[" * 100_000},
    ],
)
def test_what_a_checkpoint_holds_is_checked(tmp_path, changes):
    file = save_checkpoint(make(1), tmp_path)
    rewritten(file, **changes)
    with pytest.raises(ValueError, match=rf"epoch_0001\.pt: is no complete checkpoint.*{name_in(changes)}"):
        load_checkpoint(file)


def name_in(changes) -> str:
    """What the message names: the field, but for an optimizer's tensors and a configuration."""
    (name,) = changes
    return "" if name == "config" else {"optimizer": "(optimizer|momentum)", "ema": "(ema|complete)"}.get(name, name)


@pytest.mark.parametrize("optimizer", [{"state": {0: {}}, "param_groups": [{"params": [0]}]}])
def test_what_an_optimizer_without_momentum_leaves_is_read(tmp_path, optimizer):
    checkpoint = make(1)
    checkpoint.optimizer = optimizer
    assert load_checkpoint(save_checkpoint(checkpoint, tmp_path)).optimizer == optimizer


def test_a_number_of_more_digits_than_python_prints_is_told(tmp_path):
    values = torch.load(save_checkpoint(make(1), tmp_path), weights_only=True)
    for name in ("epoch", "format"):
        with pytest.raises(ValueError, match=r"a\.pt: .*a int with a number of thousands of digits"):
            checkpoint_of({**values, name: 10**5000}, Path("a.pt"))


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
