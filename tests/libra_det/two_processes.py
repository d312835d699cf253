"""What test_distributed.py runs in two processes at once: torchrun two_processes.py FOLDER, which holds config.json."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from libra_det import cli, train, train_step
from libra_det.checkpoint import checkpoint_files
from libra_det.config import Config
from libra_det.data import make_loader
from libra_det.distributed import World, joined_world
from libra_det.evaluate import evaluate
from libra_det.files import NotWritten
from libra_det.interrupt import Interrupted
from libra_det.step import NonFiniteLoss
from libra_det.train import Trainer

CPU = torch.device("cpu")
VARIANTS = {
    "plain": {},
    "two parts": {"accumulate": 2},
    "compiled": {"compile": True},
    "measured": {"log_gradient_share_every": 1},
}


def without_samples(config: Config, **changes) -> Config:
    """A detector whose losses are the same function of an image in every process, and that takes large steps."""
    model = replace(config.model, norm="group_norm", detector="retinanet", pyramid="none", retina_convs=1)
    data = replace(config.data, batch_size=4)
    return replace(config, model=model, data=data, train=replace(config.train, learning_rate=0.1, **changes))


def steps(trainer: Trainer, count: int = 2) -> dict[str, torch.Tensor]:
    """Weights after some steps, and what the last one reports."""
    trainer.model.train()
    loader = make_loader(trainer.dataset, part=trainer.world.rank, parts=trainer.world.size)
    for _ in range(count):
        for batch in loader:
            values = trainer._train_step(batch).values
            trainer.step += 1
    return {"values": values, **trainer.model.state_dict()}


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


class Runs:
    """Runs of one configuration in FOLDER, stopped in several ways by the second process."""

    def __init__(self, folder: Path, config: Config, world: World) -> None:
        self.folder, self.config, self.world = folder, config, world

    def trainer(self, name: str) -> Trainer:
        run = self.folder / name
        run.mkdir(exist_ok=True)
        self.world.gather(None)
        return Trainer(self.config, run, CPU, world=self.world)

    def stopped(self, name: str, expected: type[Exception], disturb) -> dict:
        """What a run says and leaves that `disturb(trainer)` disturbs in the second process, and its log in the end."""
        trainer = self.trainer(name)
        if not self.world.is_main:
            disturb(trainer)
        try:
            trainer.train()
        except expected as error:
            report = {"error": str(error), "exit_code": getattr(error, "exit_code", None)}
        self.world.gather(None)
        report["step"] = trainer.epoch * 4 + trainer.step
        report["checkpoints"] = [file.name for file in checkpoint_files(trainer.run)]
        if expected is not NonFiniteLoss:
            train.resume(trainer.run, CPU, world=self.world).train()
            self.world.gather(None)  # the first process has written its log
            report["log"] = log_of(trainer.run)
        return report

    def deleted(self, name: str) -> list[str]:
        """What a run says whose folder the second process deletes, and the checkpoints of the one that is rescued."""
        trainer = self.trainer(name)
        if not self.world.is_main:
            at_step(trainer, 6, lambda: shutil.rmtree(trainer.run))
        try:
            trainer.train()
        except NotWritten as error:
            said = str(error)
        self.world.gather(None)
        rescued = self.folder / f"{name}-rescued"
        train.resume(rescued, CPU, world=self.world)  # which begins where the other has ended
        return [said, *(file.name for file in checkpoint_files(rescued))]


def at_step(trainer: Trainer, number: int, action) -> None:
    compute = trainer._train_step

    def compute_and_act(batch, **options):
        if trainer.epoch * 4 + trainer.step + 1 == number:
            action()
        return compute(batch, **options)

    trainer._train_step = compute_and_act


def damage_image(trainer: Trainer) -> None:
    """The second process's image of step 7."""
    sample, index = trainer.dataset.sample, trainer.dataset.batches(1)[2].share(1, 2).index[0]

    def sample_or_fail(position: int, epoch: int):
        if (position, epoch) == (index, 1):
            raise OSError("this image is damaged")
        return sample(position, epoch)

    trainer.dataset.sample = sample_or_fail


def poison(trainer: Trainer) -> None:
    weight = trainer.model.roi_head.bbox_head.fc_cls.weight
    at_step(trainer, 6, lambda: weight.register_hook(lambda gradient: gradient * torch.nan))


def main(folder: Path, world: World) -> None:
    config = Config.from_json((folder / "config.json").read_text())
    compiled = torch.compile
    train_step._compiled = lambda losses: compiled(losses, fullgraph=True, dynamic=False, backend="aot_eager")
    results = {}
    for name, changes in VARIANTS.items():
        trainer = Trainer(without_samples(config, **changes), folder, CPU, world=world)
        results[name] = steps(trainer)
        for value in results[name].values():
            others = world.gather(value)
            assert all(torch.equal(value, other) for other in others), f"{name}: processes differ"
    evaluation = evaluate(trainer.evaluated_model, trainer.eval_dataset, CPU, trainer.categories, world=world)
    results["averaged"] = trainer.average.module.state_dict()
    assert world.is_main == bool(evaluation.results)
    results["entries"], results["metrics"] = evaluation.results, world.gather(evaluation.metrics.to_dict())

    runs = Runs(folder, config, world)
    runs.trainer("whole").train()
    reports = {
        "signal": runs.stopped(
            "signal", Interrupted, lambda trainer: at_step(trainer, 5, lambda: signal.raise_signal(signal.SIGTERM))
        ),
        "image": runs.stopped("image", OSError, damage_image),
        "not finite": runs.stopped("poisoned", NonFiniteLoss, poison),
    }
    results["reports"] = world.gather(reports)
    results["deleted"] = world.gather(runs.deleted("deleted"))
    if world.is_main:
        results["log"] = log_of(folder / "whole")
        torch.save(results, folder / "results.pt")


def killed_once(marker: Path, arguments: list[str]) -> int:
    """Train and evaluate; when `marker` is not there, the second process is killed in the second epoch.

    Args:
        marker: a file that is made when the process is killed.
        arguments: of `libra train`, the run folder last.
    """
    if os.environ["RANK"] == "1" and not marker.exists():
        train_step_of = Trainer._train_step

        def compute_or_die(trainer: Trainer, batch, **options):
            if (trainer.epoch, trainer.step) == (1, 2):
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return train_step_of(trainer, batch, **options)

        Trainer._train_step = compute_or_die
    return cli.main(["train", *arguments]) or cli.main(["eval", *arguments[-1:], "--device", "cpu"])


if __name__ == "__main__":
    if sys.argv[1] == "--kill":
        sys.exit(killed_once(Path(sys.argv[2]), sys.argv[3:]))
    with joined_world("cpu") as (world, _):
        main(Path(sys.argv[1]), world)
