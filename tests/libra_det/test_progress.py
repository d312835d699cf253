"""What a user sees while training, on a terminal and in a log file."""

import json
import re

from libra_det import progress
from libra_det.progress import Progress


def train(run, epochs=2, steps=3, first_step=0):
    shown = Progress(run, epochs, steps, first_step)
    for epoch in range(first_step // steps, epochs):
        shown.start_epoch(epoch, 0)
        for step in range(epoch * steps + 1, (epoch + 1) * steps + 1):
            shown.step(step, images=4, loss=0.5, learning_rate=0.02)
            shown.record(step, {"epoch": epoch + 1, "loss/total": 0.5})
        shown.end_epoch()
    shown.close()


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    train(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"epoch 1/2 step 3/3: loss 0\.5000, lr 0\.02, [\d.]+ images/s, 0:00 to go", lines[1])
    assert lines[-1].startswith("epoch 2/2 step 3/3")


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    train(tmp_path)
    text = capsys.readouterr().err
    assert re.search(r"epoch 2/2 100%\|.*\| 3/3, loss 0\.5000, lr 0\.02, [\d.]+ images/s, 0:00 to go", text)


def test_a_resumed_log_reads_as_one_run(tmp_path):
    train(tmp_path, epochs=1)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 4, "loss/total": 9}\n{"step": 5, "lo')
    train(tmp_path, epochs=2, first_step=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss/total"]) for line in lines] == [(step, 0.5) for step in range(1, 7)]


def test_the_log_knows_its_evaluations_up_to_where_a_run_resumes(tmp_path):
    shown = Progress(tmp_path, 2, 3, 0)
    shown.record(3, {"epoch": 1, "evaluation/AP": 0.5})
    shown.record(6, {"epoch": 2, "evaluation/AP": 0.6})
    assert shown.evaluated == {3, 6}
    shown.close()
    resumed = Progress(tmp_path, 2, 3, 5)
    assert resumed.evaluated == {3}
    resumed.close()


def test_times_are_readable():
    assert [progress._clock(seconds) for seconds in (5, 65, 3600, 100_000)] == ["0:05", "1:05", "1:00:00", "27:46:40"]
