"""The pictures of a run: for each subject, the cost of every side against the size, both logarithmic."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.case import COPY, OURS
from benchmarks.subjects import SUBJECTS

STYLE = {
    "svg.fonttype": "none",  # text as text: small files
    "svg.hashsalt": "libra_ops",  # the same picture from the same numbers
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(document: dict, folder: Path) -> dict[str, Path]:
    """An SVG for every subject that has two sizes at least, FOLDER/KIND_SUBJECT.svg."""
    pictures = {}
    for subject in dict.fromkeys(case["subject"] for case in document["cases"]):
        cases = [case for case in document["cases"] if case["subject"] == subject and case.get("plot", True)]
        if len({case["size"] for case in cases}) < 2:
            continue
        file = folder / f"{document['kind']}_{subject}.svg"
        with plt.rc_context(STYLE):
            _draw(document, subject, cases, file)
        pictures[subject] = file
    return pictures


def _draw(document: dict, subject: str, cases: list[dict], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name in dict.fromkeys(name for case in cases for name in case["sides"]):
        points = sorted(
            (case["size"], side["median"])
            for case in cases
            if "median" in (side := case["sides"].get(name, {"not run": ""}))
        )
        if not points:
            continue
        style = {"linewidth": 2, "zorder": 3} if name == OURS else {"linewidth": 1}
        if name == COPY:
            style |= {"linestyle": "--", "color": "grey", "marker": ""}
        axes.loglog(*zip(*points, strict=True), **{"marker": "o", "markersize": 3, "label": name} | style)
    axes.set_xlabel(SUBJECTS[subject].AXIS)
    axes.set_ylabel("seconds")
    axes.set_title(f"{SUBJECTS[subject].TITLE}, {document['device'].split(',')[0]}", fontsize=9)
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
