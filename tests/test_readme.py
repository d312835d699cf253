"""What the README shows works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from libra_det.cli import main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_loop_of_your_own_runs():
    """The ten lines of libra_ops alone, in which a gradient arrives."""
    (loop,) = (block for block in blocks("python") if "from libra_ops import" in block)
    names: dict = {}
    exec(loop, names)
    assert names["pred"].grad.abs().sum() > 0 or not names["samples"].positive.any()
    assert len(loop.strip().splitlines()) <= 15


def test_numpy_arrays_are_matched_and_sampled():
    (lines,) = (block for block in blocks("python") if "from libra_ops.numpy import" in block)
    names: dict = {}
    exec(lines, names)
    assert names["samples"].valid.all() and names["overlaps"].shape == (1, 2000, 8)


def test_the_detector_api_is_as_shown(monkeypatch):
    """Three lines: load a run, predict, look at boxes, scores and names."""
    import libra_det
    from libra_det.predict import Detector, ImageDetections

    (lines,) = (block for block in blocks("python") if 'libra_det.load("runs' in block)
    assert {"boxes", "scores", "names"} <= set(ImageDetections.__annotations__)
    shown: list = []
    detections = ImageDetections(**dict.fromkeys(ImageDetections.__annotations__))
    detector = object.__new__(Detector)
    monkeypatch.setattr(Detector, "predict", lambda self, image: detections)
    monkeypatch.setattr(libra_det, "load", lambda run: detector)
    exec(lines, {"print": lambda *values: shown.append(values)})
    assert len(shown[0]) == 3


@pytest.mark.parametrize(
    "command",
    [line.split("#")[0] for block in blocks("bash") for line in block.splitlines() if line.startswith("libra ")],
)
def test_the_flags_exist(command, capsys):
    """Every `libra ...` line is understood: it fails for its made-up folder at most."""
    code = main(shlex.split(command)[1:])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert "unrecognized" not in (said.out + said.err).lower()
    if code == 2:
        assert re.search(r"my_data|runs/mine|photos|data|\.pth", said.err), said.err
