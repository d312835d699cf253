"""Two processes compute what one would, stop together, and go on after one of them was killed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import two_processes as two

from libra_det.distributed import ALONE, World, device_of_process, joined_world
from libra_det.evaluate import evaluate
from libra_det.train import Trainer
from libra_det.train_step import TrainStep

CPU = torch.device("cpu")
WORKER = Path(two.__file__)
SECONDS = 400.0  # a hang is an error; a machine that is busy with other work is none


def torchrun(*arguments, processes: int = 2, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        command + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2]), **environment},
    )


def finished(process: subprocess.Popen, exit_code: int = 0) -> tuple[str, str]:
    """What it wrote to its standard output and error."""
    try:
        output, error = process.communicate(timeout=SECONDS)
    finally:
        process.terminate()  # torchrun ends its workers
    assert process.returncode == exit_code, output + error
    return output, error


def with_config(config, run: Path) -> Path:
    """A run folder that `--resume` begins."""
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    return run


@pytest.fixture
def config(tiny_config):
    """As both tests below train with it."""
    config = tiny_config(epochs=2, eval_every=1)
    return replace(config, data=replace(config.data, workers=1, color_jitter=0.3))


def test_two_processes_compute_and_stop_as_one(config, tmp_path):
    folder = with_config(config, tmp_path / "both")
    broken = with_config(config, tmp_path / "broken")
    marker = tmp_path / "killed"
    killed = torchrun(
        "--max-restarts", "1", WORKER, "--kill", marker, "--resume", "--device", "cpu", "--output", broken
    )
    finished(torchrun(WORKER, folder))
    output, _ = finished(killed)
    results = torch.load(folder / "results.pt", weights_only=True)

    # A step's numbers and the weights after it are those of one process that takes as many parts one by one.
    for name, changes in two.VARIANTS.items():
        parts = 2 * changes.get("accumulate", 1)
        one = two.without_samples(config, **{**changes, "compile": False, "accumulate": parts})
        alone = Trainer(one, folder, CPU)
        expected = two.steps(alone)
        assert results[name].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(results[name][key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")
    before = Trainer(one, folder, CPU).model.state_dict()
    assert not torch.allclose(before["bbox_head.retina_cls.weight"], expected["bbox_head.retina_cls.weight"], atol=1e-3)

    alone.average.module.load_state_dict(results["averaged"])
    data = alone.eval_dataset.config
    alone.eval_dataset.config = replace(data, batch_size=data.batch_size // 2)  # as many as each of the two had
    evaluation = evaluate(alone.evaluated_model, alone.eval_dataset, CPU, alone.categories)
    assert results["entries"] == evaluation.results  # in the data set's order, none twice
    assert results["metrics"] == [evaluation.metrics.to_dict()] * 2

    # The second process is interrupted, cannot read an image, computes NaN: both stop after the same step.
    first, second = results["reports"]
    assert first == second
    assert first["signal"]["exit_code"] == 143
    assert first["image"]["error"] == "this image is damaged"
    for stop, step in (("signal", 7), ("image", 6)):
        assert first[stop]["step"] == step
        assert first[stop]["checkpoints"] == ["epoch_0001.pt", f"epoch_0001_step_{step - 4:06d}.pt"]
        assert first[stop]["log"] == results["log"]
    assert "step 6: the gradient became NaN" in first["not finite"]["error"]
    assert first["not finite"]["checkpoints"] == ["epoch_0001.pt"]
    names = json.loads((folder / "poisoned" / "non_finite.json").read_text())["file_names"]
    assert len(set(names)) == 2  # those of both processes

    # The run folder was deleted: both say where all that was learned is.
    (said, *checkpoints), other = results["deleted"]
    assert [said, *checkpoints] == other
    assert said.endswith(f"continue with: libra train --output {folder / 'deleted-rescued'} --resume")
    assert re.fullmatch(r"epoch_0001_step_00000[234]\.pt|epoch_0002\.pt", *checkpoints)

    # The second process was killed; torchrun has started both again, from the checkpoint of the first epoch.
    assert output.count("(cpu, 2 processes)") == 2  # of one process, twice
    assert two.log_of(broken) == results["log"]
    assert [line["step"] for line in results["log"] if "loss/total" in line] == list(range(1, 9))
    assert marker.exists()
    assert output.count("3 images at") == 1
    measured = json.loads((broken / "evaluation" / "data-val" / "metrics.json").read_text())
    assert measured["coco"] == json.loads((folder / "whole" / "metrics.json").read_text())["coco"]


def test_a_batch_is_that_of_all_processes(tiny_config, tmp_path):
    world = World(0, 2)
    config = tiny_config()
    config = replace(config, data=replace(config.data, batch_size=3))
    with pytest.raises(
        ValueError, match=r"--batch-size 3: expected a multiple of 2 \(2 processes with --accumulate 1\)"
    ):
        Trainer(config, tmp_path, CPU, world=world)
    config = replace(config, data=replace(config.data, batch_size=10))
    with pytest.raises(ValueError, match=r"--batch-size 10: expected at most the 8 images of train"):
        Trainer(config, tmp_path, CPU, world=world)


def test_several_processes_refuse_a_cuda_graph(tiny_config):
    with pytest.raises(ValueError, match="--cuda-graph: expected one process, got 2"):
        TrainStep(torch.nn.Linear(1, 1), None, tiny_config(cuda_graph=True).train, CPU, world=World(0, 2))


def test_each_process_takes_its_own_gpu():
    with pytest.raises(ValueError, match="--device cuda:1: expected auto, cpu or cuda with torchrun"):
        device_of_process("cuda:1", 0)
    assert device_of_process("cpu", 1) == CPU


def test_without_torchrun_there_is_one_process():
    with joined_world("cpu") as (world, device):
        assert (world, device) == (ALONE, CPU)
    assert world.gather(3) == world.gather_to_main(3) == [3] and world.from_main(lambda: 4) == 4


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_and_evaluate(tiny_config, tmp_path):
    run = with_config(tiny_config(epochs=2, accumulate=1), tmp_path / "run")
    output, _ = finished(torchrun("-m", "libra_det.cli", "train", "--resume", "--device", "cuda", "--output", run))
    assert "(cuda:0, 2 processes)" in output
    assert len([line for line in two.log_of(run) if "loss/total" in line]) == 8
