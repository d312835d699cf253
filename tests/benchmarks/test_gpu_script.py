"""gpu.sh with stand-ins for Python and compute-sanitizer: its stages, its summary, and what it does when one fails."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
LIMIT_OF_FILES = 8  # that are easily fetched from a machine

# Answers as a Python with a GPU would; $FAIL names a word of the command that makes it fail.
PYTHON = """#!/usr/bin/env bash
[ -n "${LACKS:-}" ] && [ "$*" = "-c import $LACKS" ] && exit 1
case "$*" in
  *torch.cuda.is_available*) echo True; exit 0 ;;
esac
[ -n "${FAIL:-}" ] && [[ "$*" == *"$FAIL"* ]] && { echo "failed as told"; exit 3; }
[[ "$*" == *"-m benchmarks --device cuda --output"* ]] && {
  mkdir -p "$6"
  [[ "$*" == *"--label detectors"* ]] && echo '{}' >"$6/cuda-detectors.json" || echo '{}' >"$6/cuda.json"
}
echo "ran: $*"
"""
SANITIZER = '#!/usr/bin/env bash\n[ "$2" = "${FAIL_TOOL:-}" ] && exit 9\necho "$@"\n'


@pytest.fixture
def run(tmp_path):
    """Runs the script with these variables; returns its exit status, the stages of its summary, and OUT.

    Where it ended at once: what it said instead of OUT.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("python3", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def start(without_sanitizer: bool = False, **variables: str):
        if without_sanitizer:
            (tools / "compute-sanitizer").unlink()
        out = tmp_path / "out"
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(out), **variables}
        environment |= {"CUDA_HOME": str(tmp_path), "PYTHON": "python3"}
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode == 2:
            return 2, {}, done.stderr
        summary = json.loads((out / "summary.json").read_text())
        return done.returncode, {stage["stage"]: stage for stage in summary["stages"]}, out

    return start


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


def test_all_stages_pass_and_little_is_left_to_fetch(run, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").touch()
    status, stages, out = run(LIBRA_DATA=str(tmp_path), WHEELS=str(tmp_path / "wheels"))
    tools = ["memcheck", "racecheck", "synccheck", "initcheck"]
    assert list(stages) == ["packages", "build", "tests", *tools, "detectors", "benchmarks", "training"]
    assert status == 0 and all(stage["result"] == "passed" for stage in stages.values())
    files = [file.name for file in out.iterdir()]
    assert len(files) <= LIMIT_OF_FILES and {"summary.json", "cuda.json", "cuda-detectors.json", "more.tar.gz"} <= set(
        files
    )
    assert (out / "sanitizer.log").read_text().count("=== ") == 4
    assert f"--data {tmp_path}/bccd" in (out / "training.log").read_text()
    log = (out / "benchmarks.log").read_text()
    assert "--quick --budget 110 detectors" in log and "--budget 120 operations" in log


def test_the_benchmarks_get_what_time_is_left(run):
    _, _, out = run(SECONDS="400")  # bash counts on from there; 525 in all, of which 30 are kept back
    log = (out / "benchmarks.log").read_text()
    assert any(f"--budget {left} operations" in log for left in range(60, 96))
    assert any(f"--budget {left} detectors" in log for left in range(30, 48))


def test_without_data_there_is_no_training(run):
    status, stages, _ = run(LIBRA_DATA="")
    assert status == 0 and stages["training"]["result"] == "skipped"


def test_a_failed_stage_fails_the_whole_and_stops_nothing(run):
    status, stages, _ = run(FAIL="-m pytest")
    assert status == 1
    assert stages["tests"]["result"] == "failed" and stages["tests"]["why"] == "exit status 3"
    assert stages["benchmarks"]["result"] == "passed"


def test_a_failed_build_is_the_end(run):
    status, stages, out = run(FAIL="setup.py")
    assert status == 1 and list(stages) == ["build"]
    assert "failed as told" in (out / "build.log").read_text()


def test_a_finding_of_compute_sanitizer_fails(run):
    status, stages, _ = run(FAIL_TOOL="racecheck")
    assert status == 1 and stages["racecheck"]["why"] == "exit status 9" and stages["memcheck"]["result"] == "passed"


def test_without_compute_sanitizer_it_fails(run):
    if shutil.which("compute-sanitizer"):
        pytest.skip("compute-sanitizer is installed here")
    status, stages, _ = run(without_sanitizer=True)
    assert status == 1 and stages["initcheck"]["why"] == "compute-sanitizer is not there"


def test_a_module_that_is_not_there_is_named_before_anything_is_built(run):
    status, _, said = run(LACKS="hypothesis")
    assert status == 2 and "needs hypothesis" in said


def test_it_says_what_it_needs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "set OUT" in done.stderr
    if not torch.cuda.is_available():
        import sys

        environment |= {"OUT": str(tmp_path), "PYTHON": sys.executable}
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "needs an NVIDIA GPU" in done.stderr


@pytest.mark.cuda
def test_what_the_sanitizers_run_is_right():
    from benchmarks.sanitize import main

    assert main() == 0


def test_what_the_sanitizers_run_agrees_with_the_reference(monkeypatch):
    from benchmarks import sanitize
    from libra_ops import reference

    def match(boxes, targets, valid, **rules):
        return reference.match_boxes(boxes, targets, valid, **rules)

    def sample(matches, *, generator, positive_fraction, num_samples, **options):
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)  # as the operation draws it
        positives = int(num_samples * positive_fraction + 1e-6)
        return reference.sample_iou_balanced(*matches, seed, num_samples, positives, **options)

    def pool(features, boxes, valid, **options):
        wide = [x if x.dtype == torch.float64 else x.float() for x in features]
        return reference.multiscale_roi_align(wide, boxes, valid, **options).to(features[0].dtype)

    results = [(name, run("cpu")) for name, run in sanitize.cases()]
    monkeypatch.setattr(sanitize, "box_iou", reference.box_iou)
    monkeypatch.setattr(sanitize, "match_boxes", match)
    monkeypatch.setattr(sanitize, "sample_iou_balanced", sample)
    monkeypatch.setattr(sanitize, "nms_padded", reference.nms_padded)
    monkeypatch.setattr(sanitize, "balanced_l1_loss", reference.balanced_l1_loss)
    monkeypatch.setattr(sanitize, "multiscale_roi_align", pool)
    for (name, got), (_, run) in zip(results, sanitize.cases(), strict=True):
        for mine, other in zip(got, run("cpu"), strict=True):
            allowed = 1e-3 if mine.dtype.itemsize > 2 else 2e-2  # 16 bits: the last of them
            torch.testing.assert_close(
                mine, other, rtol=allowed, atol=allowed, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
