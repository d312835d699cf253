"""Training runs of a second: what they leave behind, and that stopping them loses nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from libra_det.checkpoint import checkpoint_files, load_checkpoint
from libra_det.data import annotations
from libra_det.interrupt import Interrupted
from libra_det.run_folder import read_config
from libra_det.train import NonFiniteLoss, Trainer, resume

CPU = torch.device("cpu")


def new_trainer(config, run) -> Trainer:
    run.mkdir()
    return Trainer(config, run, CPU)


def log_of(run) -> list[dict]:
    """Lines of log.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def interrupt_at(trainer: Trainer, step: int, monkeypatch) -> None:
    """Ctrl-C arrives while `step` (from 1) is computed."""
    compute = trainer._train_step

    def compute_and_interrupt(batch, **options):
        done = compute(batch, **options)
        if done.step == step:
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(trainer, "_train_step", compute_and_interrupt)


def test_a_run_folder_holds_everything(tiny_config, tmp_path):
    config = tiny_config(epochs=2, log_gradient_share_every=4, eval_every=1)
    run = tmp_path / "run"
    evaluation = new_trainer(config, run).train()
    assert read_config(run) == config
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["coco"] == evaluation.metrics.coco and len(metrics["coco"]) == 12
    assert set(metrics["class_ap"]) == {"red box", "green box"}
    assert metrics["seconds_training"] > 0 and metrics["seconds_evaluation"] > 0 and metrics["epoch"] == 2
    assert {entry["category_id"] for entry in json.loads((run / "results.json").read_text())} <= {3, 7}
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    assert len(list((run / "pictures").glob("*.png"))) == 3
    assert list((run / "tensorboard").glob("events.*"))
    assert [file.name for file in checkpoint_files(run)] == ["epoch_0001.pt", "epoch_0002.pt"]


def test_the_log_tells_losses_shares_and_rates(tiny_config, tmp_path):
    run = tmp_path / "run"
    new_trainer(tiny_config(epochs=2, log_gradient_share_every=4, eval_every=1), run).train()
    lines = log_of(run)
    steps = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [line["epoch"] for line in steps] == [1] * 4 + [2] * 4
    names = ("rpn_class", "rpn_box", "roi_class", "roi_box")
    for line in steps:
        assert line["loss/total"] == pytest.approx(sum(line[f"loss/{name}"] for name in names))
        assert sum(line[f"loss_share/{name}"] for name in names) == pytest.approx(1.0)
        assert line["gradient_norm"] > 0 and line["learning_rate"] > 0
        assert ("gradient_share/rpn_class" in line) == (line["step"] % 4 == 0)
    assert sum(steps[3][f"gradient_share/{name}"] for name in names) == pytest.approx(1.0)
    assert [line["step"] for line in lines if "evaluation/AP" in line] == [4, 8]


def test_measuring_gradient_shares_changes_nothing(tiny_config, tmp_path):
    with_shares, without = tiny_config(epochs=1, log_gradient_share_every=1), tiny_config(epochs=1)
    for name, config in (("with", with_shares), ("without", without)):
        new_trainer(config, tmp_path / name).train()
    losses = [
        [line["loss/total"] for line in log_of(tmp_path / n) if "loss/total" in line] for n in ("with", "without")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tiny_config, tmp_path, monkeypatch, workers):
    config = tiny_config(epochs=3)
    config = replace(config, data=replace(config.data, workers=workers, color_jitter=0.3))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    new_trainer(config, whole).train()

    trainer = new_trainer(config, broken)
    interrupt_at(trainer, 6, monkeypatch)
    with pytest.raises(Interrupted) as interrupted:
        trainer.train()
    assert interrupted.value.exit_code == 130
    assert interrupted.value.checkpoint.name == "epoch_0001_step_000002.pt"
    # As after a crash: lines of steps that no checkpoint knows, the last one cut off.
    with open(broken / "log.jsonl", "a") as log:
        log.write('{"step": 7, "loss/total": 1.0}\n{"step": 8, "lo')
    resume(broken, CPU).train()

    assert log_of(broken) == log_of(whole)
    weights = [load_checkpoint(run) for run in (whole, broken)]
    for part in ("model", "ema"):
        first, second = getattr(weights[0], part), getattr(weights[1], part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), part
    assert [file.name for file in checkpoint_files(broken)] == ["epoch_0002.pt", "epoch_0003.pt"]
    assert (
        json.loads((broken / "metrics.json").read_text())["coco"]
        == json.loads((whole / "metrics.json").read_text())["coco"]
    )


def test_more_epochs_continue_a_finished_run(tiny_config, tmp_path):
    run = tmp_path / "run"
    config = tiny_config(epochs=1, schedule="cosine")
    new_trainer(config, run).train()
    more = replace(config, train=replace(config.train, epochs=2, momentum=0.5))
    trainer = resume(run, CPU, more)
    trainer.train()
    assert [line["step"] for line in log_of(run) if "loss/total" in line] == list(range(1, 9))
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    assert read_config(run).train.epochs == 2


def test_resuming_refuses_what_would_not_be_the_same_run(tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = tiny_config()
    trainer = new_trainer(config, run)
    interrupt_at(trainer, 2, monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train()
    with pytest.raises(ValueError, match="pyramid was 'non_local' in this run, now it is 'none'"):
        resume(run, CPU, replace(config, model=replace(config.model, pyramid="none")))


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_epochs_of_another_length_are_refused(tiny_config, tmp_path, monkeypatch, stopped_at):
    """Within an epoch, and at the end of one."""
    run = tmp_path / "run"
    config = tiny_config(epochs=3)
    trainer = new_trainer(config, run)
    interrupt_at(trainer, stopped_at, monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train()
    before = (run / "log.jsonl").read_text()
    with pytest.raises(ValueError, match=r"--resume: the run has epochs of 4 steps, which now have 2; .*batch size"):
        resume(run, CPU, replace(config, data=replace(config.data, batch_size=4)))
    assert (run / "log.jsonl").read_text() == before


@pytest.mark.parametrize("stopped_after", ["the epoch", "the evaluation"])
def test_every_evaluation_is_made_once(tiny_config, tmp_path, monkeypatch, stopped_after):
    config = tiny_config(epochs=2, eval_every=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    new_trainer(config, whole).train()
    trainer = new_trainer(config, broken)
    interrupt_at(trainer, 4, monkeypatch)  # the last step of the first epoch
    with pytest.raises(Interrupted):
        trainer.train()
    if stopped_after == "the evaluation":
        trainer = resume(broken, CPU)

        def crash():
            raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "_train_epoch", crash)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    resume(broken, CPU).train()
    assert log_of(broken) == log_of(whole)
    resume(broken, CPU).train()  # a finished run is evaluated again, for its pictures, and not logged again
    assert log_of(broken) == log_of(whole)


def test_an_image_that_cannot_be_read_loses_nothing(tiny_config, tmp_path, capsys):
    config = tiny_config(epochs=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    new_trainer(config, whole).train()
    trainer = new_trainer(config, broken)
    position = trainer.dataset.order(1)[5]  # in the third step of the second epoch, which is not the image's first use
    image = trainer.dataset.images[position].file
    content = image.read_bytes()
    train_epoch = trainer._train_epoch

    def truncate_before_the_second_epoch():
        if trainer.epoch == 1:
            image.write_bytes(content[: len(content) // 2])
        train_epoch()

    trainer._train_epoch = truncate_before_the_second_epoch
    with pytest.raises((OSError, ValueError), match=image.name):
        trainer.train()
    image.write_bytes(content)
    newest = checkpoint_files(broken)[-1]
    assert newest.name == "epoch_0001_step_000002.pt"
    assert f"{newest} holds all that was learned" in capsys.readouterr().err
    resume(broken, CPU).train()
    assert log_of(broken) == log_of(whole)


def test_an_unreadable_first_image_leaves_no_checkpoint(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(), tmp_path / "run")
    image = trainer.dataset.images[trainer.dataset.order(0)[0]].file
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises((OSError, ValueError), match=image.name):
        trainer.train()
    assert checkpoint_files(tmp_path / "run") == []


def test_a_last_update_that_is_not_finite_is_not_saved(tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    trainer = new_trainer(tiny_config(epochs=2), run)
    update = trainer.optimizer.step

    def update_and_break():
        update()
        if trainer.epoch == 1 and trainer.step == 3:
            torch.nn.init.constant_(trainer.model.roi_head.bbox_head.fc_cls.bias, math.nan)

    monkeypatch.setattr(trainer.optimizer, "step", update_and_break)
    with pytest.raises(NonFiniteLoss, match=r"step 8: roi_head\.bbox_head\.fc_cls\.bias became NaN.*no weights"):
        trainer.train()
    assert [file.name for file in checkpoint_files(run)] == ["epoch_0001.pt"]


@pytest.mark.parametrize("changes", [{"norm": "frozen_batch_norm"}, {"frozen_stages": 0}])
def test_a_random_backbone_is_not_trained_around(tiny_config, tmp_path, changes):
    config = tiny_config()
    config = replace(config, model=replace(config.model, **changes))
    with pytest.raises(ValueError, match=r"--backbone-weights DEFAULT.*--norm group_norm --frozen-stages -1"):
        new_trainer(config, tmp_path / "run")


def test_a_frozen_backbone_from_a_file_trains_and_resumes_without_it(tiny_config, tmp_path):
    config = tiny_config(epochs=1)
    weights = tmp_path / "resnet18.pth"
    torch.save(new_trainer(config, tmp_path / "source").model.backbone.state_dict(), weights)
    model = replace(config.model, norm="frozen_batch_norm", frozen_stages=1, backbone_weights=str(weights))
    new_trainer(replace(config, model=model), tmp_path / "run").train()
    weights.unlink()
    assert resume(tmp_path / "run", CPU).epoch == 1


def test_the_training_annotations_are_read_once(tiny_config, tmp_path, monkeypatch):
    read, names = annotations.read_json, []
    monkeypatch.setattr(annotations, "read_json", lambda file: names.append(file.name) or read(file))
    new_trainer(tiny_config(), tmp_path / "run")
    assert sorted(names) == ["train.json", "val.json"]


def test_a_schedule_that_a_longer_run_has_outgrown_is_warned_of(tiny_config, tmp_path, capsys):
    new_trainer(tiny_config(epochs=36, schedule="step", step_epochs=(8, 11)), tmp_path / "run")
    error = capsys.readouterr().err
    assert error.count("libra: warning: ") == 1 and "--step-epochs 24 33" in error


def test_a_non_finite_loss_stops_without_saving(tiny_config, tmp_path):
    run = tmp_path / "run"
    trainer = new_trainer(tiny_config(epochs=2), run)
    compute, step, seen = trainer.model.losses_from_features, trainer._train_step, []

    def recorded(batch, **options):
        seen.append(batch.file_names)
        return step(batch, **options)

    def poisoned(*arguments):
        losses = compute(*arguments)
        if len(seen) == 6:
            losses["roi_box"] = losses["roi_box"] * math.nan
        return losses

    trainer._train_step, trainer.model.losses_from_features = recorded, poisoned
    with pytest.raises(NonFiniteLoss, match=r"step 6: roi_box became NaN.*non_finite\.json"):
        trainer.train()
    report = json.loads((run / "non_finite.json").read_text())
    assert (report["step"], report["file_names"], report["losses"]["roi_box"]) == (6, seen[5], "nan")
    assert [file.name for file in checkpoint_files(run)] == ["epoch_0001.pt"]
    assert all(value.isfinite().all() for value in load_checkpoint(run).model.values())


def test_a_non_finite_gradient_stops_too(tiny_config, tmp_path):
    run = tmp_path / "run"
    trainer = new_trainer(tiny_config(epochs=1), run)
    trainer.take_step.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss, match="step 1: the gradient became NaN or infinite"):
        trainer.train()
    assert checkpoint_files(run) == []


def test_evaluation_uses_the_averaged_weights(tiny_config, tmp_path):
    trainer = new_trainer(tiny_config(epochs=1, ema_decay=0.5), tmp_path / "with")
    assert trainer.evaluated_model is trainer.average.module
    trainer = new_trainer(tiny_config(epochs=1, ema_decay=0.0), tmp_path / "without")
    assert trainer.evaluated_model is trainer.model
    trainer.train()
    assert load_checkpoint(tmp_path / "without").ema is None


def test_tensorboard_shows_what_the_log_says(tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    new_trainer(tiny_config(epochs=1, log_gradient_share_every=2), run).train()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = log_of(run)
    for name in ("loss/total", "loss_share/roi_box", "gradient_share/roi_box", "learning_rate", "evaluation/AP"):
        wanted = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert wanted and [(event.step, event.value) for event in events.Scalars(name)] == wanted, name


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_the_process_with_a_checkpoint_and_130(tiny_config, tmp_path):
    config = tiny_config(epochs=1000)
    config = replace(config, data=replace(config.data, workers=2))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())  # --resume of a run without checkpoints starts it
    command = [sys.executable, "-m", "libra_det.cli", "train", "--output", str(run), "--resume", "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert f"libra train --output {run} --resume" in output
    checkpoint = load_checkpoint(run)
    assert 0 < checkpoint.epoch * 4 + checkpoint.step < 4000
