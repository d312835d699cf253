"""Writes RESULTS.md and its pictures from the JSON of runs; nothing in them is written by hand.

    python -m benchmarks.report                from benchmarks/results/*.json to benchmarks/RESULTS.md
    python -m benchmarks.report FOLDER         from FOLDER/*.json to FOLDER/RESULTS.md

Several runs of one device (cpu.json, cpu-2.json, ...) stand side by side in the table of goals; the other tables and
the pictures show each operation as the first run has it that measured it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.goals import COLUMNS, goal_rows
from benchmarks.plots import draw
from benchmarks.subjects import SUBJECTS
from benchmarks.tables import breakdowns_of, markdown, memory_of, remarks_of, times_of

FOLDER = Path(__file__).resolve().parent
KINDS = {"cpu": "CPU", "cuda": "GPU"}
COMMANDS = {
    "cpu": "To measure: `python -m benchmarks --output benchmarks/results`.",
    "cuda": "To measure on a machine with a GPU: `OUT=runs/gpu benchmarks/gpu.sh`, then "
    "`cp runs/gpu/cuda*.json benchmarks/results && python -m benchmarks.report`.",
}
INTRODUCTION = """\
# Results

Written by `python -m benchmarks.report` from the JSON in `results/`; not edited. All sides of a case run in one
process, in turns; given are the median and the quartiles of a call. Before they are timed, both sides of a comparison
have to give the same result; whole detectors the same sizes, proposals, samples and numbers of parameters. What the
tables say:

- *eager*: `libra_ops/reference.py` in plain PyTorch. *torch.compile*: the same with `dynamic=False`, warmed up. Its
  question whether any box is huge is answered beforehand: so it is one graph, and several times as fast.
- *(4.20x)*: that side takes 4.20 times as long as libra_ops.
- *ceiling*: bytes are counted from shapes, as the least any implementation could move. "% of copy": beside a copy that
  moves as many, timed in turns with the rest. "% of FMA": operations beside the fused multiply-adds of a loop over
  registers, measured in the same run. "nominal": operations of the formula for all pairs without culling, so no
  utilisation where pairs are left out; "visited": pairs that our kernel looks at, counted on the inputs.
- CPU: all threads stay on the cores named. GPU: events around one call with a cold L2, launches hidden behind a spin
  of a millisecond; "host not hidden": the host took longer than that, so its time is in it. "with launches" is the wall
  time of calls back to back. Goals against torch.compile on a GPU take the smaller of both ratios."""


def load_runs(folder: Path) -> dict[str, list[dict]]:
    """The runs of each kind of device, in the order of the files' names."""
    runs: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stem):
        document = json.loads(file.read_text())
        if isinstance(document, dict) and document.get("kind") in KINDS and "cases" in document:
            runs[document["kind"]].append(document)
    return runs


def load_compiled(folder: Path) -> list[dict]:
    """What `benchmarks.sass` counted in the machine code, for each architecture that lies there."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("sass_*.json"))]


def results_text(
    runs: dict[str, list[dict]], pictures: dict[str, dict[str, str]], compiled: Sequence[dict] = ()
) -> str:
    """RESULTS.md. `pictures`: for each kind of device, each subject's picture, relative to the file."""
    parts = [INTRODUCTION]
    for kind, title in KINDS.items():
        parts.append(f"## Goals on the {title}\n\n" + _goals(kind, runs[kind]))
    for kind, title in KINDS.items():
        if not runs[kind]:
            parts.append(f"## {title}\n\nNot measured. {COMMANDS[kind]}")
            continue
        parts.append(f"## {title}\n\n" + "\n".join(_facts(run) for run in runs[kind]))
        told: set[str] = set()
        for run in runs[kind]:  # each subject as the first run has it that measured it
            parts += _details(run, pictures.get(kind, {}), told)
    parts += map(_compiled, compiled)
    return "\n\n".join(parts) + "\n"


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Draws the pictures into the folder of the JSON and writes `target`, which lies in it or beside it.

    None: FOLDER/RESULTS.md, and benchmarks/RESULTS.md for the committed benchmarks/results.
    """
    if target is None:
        target = (FOLDER if folder.resolve() == FOLDER / "results" else folder) / "RESULTS.md"
    runs = load_runs(folder)
    pictures = {}
    for kind, documents in runs.items():
        for document in reversed(documents):  # the first that measured a subject is drawn
            drawn = draw(document, folder)
            pictures.setdefault(kind, {}).update(
                (subject, file.resolve().relative_to(target.resolve().parent).as_posix())
                for subject, file in drawn.items()
            )
    target.write_text(results_text(runs, pictures, load_compiled(folder)))
    return target


def _goals(kind: str, runs: list[dict]) -> str:
    text = markdown(COLUMNS, goal_rows(kind, runs))
    if not runs:
        return f"Not measured. {COMMANDS[kind]}\n\n{text}"
    return text + (f"\n\nMeasured in {len(runs)} runs, in the order of the list below." if len(runs) > 1 else "")


def _facts(run: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version != "none")
    driver = "" if run["driver"] == "none" else f", driver {run['driver']}; host {run['host']}"
    fma = f"{run['ceilings']['fma'] / 1e9:,.0f} G/s" if run["ceilings"]["fma"] else "not measured"
    return (
        f"- {run['device']}{driver}; {versions}; commit {run['commit']}; `{run['command']}`; {run['date']}; "
        f"copy {run['ceilings']['copy'] / 1e9:,.3g} GB/s, multiply-adds {fma}."
    )


def _details(run: dict, pictures: dict[str, str], told: set[str]) -> list[str]:
    parts = []
    for subject in dict.fromkeys(case["subject"] for case in run["cases"]):
        if subject in told:
            continue
        told.add(subject)
        module = SUBJECTS[subject]
        parts.append(f"### {module.TITLE}\n\n{module.TEXT}")
        parts.append(markdown(*times_of(run, subject)))
        if remarks := remarks_of(run, subject):
            parts.append("\n".join(f"- {remark}." for remark in remarks))
        columns, rows = memory_of(run, subject)
        if rows:
            parts.append("Peak memory beyond the inputs:\n\n" + markdown(columns, rows))
        for columns, rows in breakdowns_of(run, subject):
            parts.append("Where the time of a call goes, under the profiler:\n\n" + markdown(columns, rows))
        if subject in pictures:
            parts.append(f"![{module.TITLE}: cost against size]({pictures[subject]})")
    return parts


def _compiled(found: dict) -> str:
    """A table of the kernels, counted in the compiler's output."""
    rows = []
    for kernel in found["kernels"]:
        held, hot = kernel["occupancy"], kernel["hot_loop"]
        rows.append(
            [
                kernel["op"],
                f"`{kernel['kernel']}`",
                f"{kernel['registers']}",
                f"{kernel['shared_bytes']}",
                f"{kernel['spill_bytes']} / {kernel['local_accesses']}",
                f"{kernel['global_loads_128']} of {kernel['global_loads']}",
                f"{kernel['global_stores_128']} of {kernel['global_stores']}",
                f"{held['share_of_warps']:.0%}, by {held['limited_by']}" if held else "",
                f"{hot['instructions']} ({hot['fast_path']})" if hot else "none",
            ]
        )
    columns = ["operation", "kernel", "registers", "shared bytes", "spilled bytes / local accesses", "16-byte loads"]
    columns += ["16-byte stores", "occupancy", "instructions of the hot loop (fast path)"]
    return (
        f"## Compiled for {found['architecture']}\n\nCounted in the machine code of nvcc {found['nvcc']}, commit "
        f"{found['commit']}, `{found['command']}`; nothing here was measured. Occupancy is calculated from registers, "
        f"static shared memory and block size.\n\n{markdown(columns, rows)}"
    )


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else FOLDER / "results"
    if not folder.is_dir():
        print(f"benchmarks.report: there is no folder {folder}", file=sys.stderr)
        return 2
    print(write_report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
