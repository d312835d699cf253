"""A few of the attacks, the same in every run; in processes of their own, which are forked before any thread runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are limited and watched as Linux does it")


def attack(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.attack", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("what", "count"), [("operations", ("--calls", 4000)), ("files", ("--files", 100))])
def test_nothing_fails(what, count, tmp_path):
    ended = attack(what, *count, "--seed", 7, "--failures", tmp_path / "failures", "--json", tmp_path / "counts.json")
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    counts = json.loads((tmp_path / "counts.json").read_text())["counts"]
    assert sum(sum(verdicts.values()) for verdicts in counts.values()) == count[1]
    assert sum(verdicts.get("handled", 0) for verdicts in counts.values()) > 0


def test_planted_faults_are_found():
    ended = attack("planted")
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
