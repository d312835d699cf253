"""The learning rate as a pure function of the step, so that a resumed run continues on the same curve."""

import math

from libra_det.config import TrainConfig

ONE_CYCLE_RISE = 0.3  # share of the run that the one-cycle schedule rises
ONE_CYCLE_START = 1 / 25  # where it starts, as a share of the peak
ONE_CYCLE_END = 1e-5  # where it ends, as a share of the peak
EARLY = 0.6  # a last step of the step schedule before this share of the run is unlikely to be meant


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of one optimizer step.

    `step`, `cosine`: a linear warm-up from `warmup_factor` of the rate over `warmup_steps`, then a division by ten
    after each of `step_epochs`, or half a cosine down to zero. `one_cycle` (Smith and Topin 2018, in cosine form)
    rises by itself over the first three tenths of the run; `warmup_steps` does not act on it.

    Args:
        config: `schedule`, `learning_rate`, `epochs` and the fields named above are read.
        step: 0 for the first step of the run.
        steps_per_epoch: steps of one epoch, at least 1.
    """
    total = max(config.epochs * steps_per_epoch, 1)
    if config.schedule == "one_cycle":
        return config.learning_rate * _one_cycle(step / total)
    if config.schedule == "step":
        factor = 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in config.step_epochs)
    else:
        factor = _cosine(1.0, 0.0, step / total)
    if step < config.warmup_steps:
        factor *= config.warmup_factor + (1 - config.warmup_factor) * step / config.warmup_steps
    return config.learning_rate * factor


def schedule_warning(config: TrainConfig) -> str | None:
    """What looks like a mistake: a run made longer whose learning rate still falls when the shorter one's would."""
    if config.schedule != "step" or not config.step_epochs or max(config.step_epochs) >= EARLY * config.epochs:
        return None
    steps = " ".join(map(str, config.step_epochs))
    return (
        f"the learning rate falls for the last time after epoch {max(config.step_epochs)} of {config.epochs} "
        f"(--step-epochs {steps}); for the published proportions "
        f"give --step-epochs {config.epochs * 2 // 3} {config.epochs * 11 // 12}"
    )


def _one_cycle(progress: float) -> float:
    if progress < ONE_CYCLE_RISE:
        return _cosine(ONE_CYCLE_START, 1.0, progress / ONE_CYCLE_RISE)
    return _cosine(1.0, ONE_CYCLE_END, (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
