"""The learning rate at the steps that a user can work out by hand."""

import pytest

from libra_det.config import TrainConfig
from libra_det.schedule import learning_rate, schedule_warning


def test_step_schedule_is_the_published_one():
    config = TrainConfig(epochs=12, learning_rate=0.02, step_epochs=(8, 11), warmup_steps=500, warmup_factor=0.001)
    rates = [learning_rate(config, step, steps_per_epoch=1000) for step in (0, 250, 500, 7999, 8000, 10999, 11000)]
    assert rates == pytest.approx([0.02 * 0.001, 0.02 * 0.5005, 0.02, 0.02, 0.002, 0.002, 0.0002])


def test_cosine_falls_from_the_peak_to_zero():
    config = TrainConfig(epochs=10, learning_rate=0.1, schedule="cosine", warmup_steps=0)
    assert [learning_rate(config, step, 10) for step in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0.0])


def test_cosine_is_warmed_up():
    config = TrainConfig(epochs=10, learning_rate=0.1, schedule="cosine", warmup_steps=10, warmup_factor=0.1)
    assert learning_rate(config, 0, 10) == pytest.approx(0.01)


def test_one_cycle_rises_to_the_peak_and_falls():
    config = TrainConfig(epochs=10, learning_rate=0.1, schedule="one_cycle", warmup_steps=1000)
    rates = [learning_rate(config, step, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.004)
    assert max(rates) == rates[30] == pytest.approx(0.1)
    assert rates == sorted(rates[:31]) + sorted(rates[31:], reverse=True)
    assert rates[100] == pytest.approx(1e-6)


def test_steps_that_a_longer_run_has_outgrown_are_named():
    warning = schedule_warning(TrainConfig(epochs=36, step_epochs=(8, 11)))
    assert "after epoch 11 of 36" in warning and "--step-epochs 24 33" in warning
    for config in (
        TrainConfig(epochs=12, step_epochs=(8, 11)),
        TrainConfig(epochs=36, step_epochs=(24, 33)),
        TrainConfig(epochs=36, step_epochs=()),
        TrainConfig(epochs=36, schedule="cosine"),
    ):
        assert schedule_warning(config) is None
