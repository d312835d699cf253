"""One run: ceilings, then every case, goals first. The JSON is written after each: a stopped run loses little."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.case import Plan
from benchmarks.ceilings import measure_ceilings
from benchmarks.clock import CpuClock, CudaClock
from benchmarks.goals import COLUMNS, goal_rows
from benchmarks.harness import left_out, run_case
from benchmarks.machine import facts
from benchmarks.subjects import SUBJECTS, cases_of
from benchmarks.tables import print_failures, print_results


def run(
    names: Sequence[str],
    plan: Plan,
    output: Path,
    cores: list[int],
    label: str = "",
    budget: float | None = None,
    console: Console | None = None,
    copied_bytes: int | None = None,
) -> tuple[Path, bool]:
    """Run the subjects of these names (none: all) and write OUTPUT/cpu.json or cuda.json.

    Returns the file, and whether all sides ran and agreed.

    label: of the file's name, cpu-LABEL.json: several runs lie side by side, and RESULTS.md shows each.
    budget: seconds after which no further case is begun; those left are in the results with that reason.
    copied_bytes: read by the copy that gives the ceiling; none: well beyond any cache.
    """
    console = console or Console()
    cases = [case for name in names or SUBJECTS for case in cases_of(name, plan)]
    cases.sort(key=lambda case: not case.goal)  # stable
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{plan.device.type}{'-' + label if label else ''}.json"
    start = time.perf_counter()
    clock = CudaClock(plan.device) if plan.cuda else CpuClock()
    document = {
        **facts(plan.device, cores),
        "sizes": plan.sizes,
        "kind": plan.device.type,
        "ceilings": measure_ceilings(plan.device, copied_bytes),
        "cases": [],
    }
    order = list(SUBJECTS)
    with tqdm(cases, unit="case", disable=None, dynamic_ncols=True) as bar:  # a bar on a terminal, else lines
        for case in bar:
            bar.set_description(f"{case.subject}, {case.name}")
            if budget is not None and time.perf_counter() - start > budget:
                result = left_out(case, f"the run's {budget:g} s were over")
            else:
                result = run_case(case, plan, clock, say=lambda text: bar.set_postfix_str(text))
            document["cases"].append(result)
            document["seconds"] = round(time.perf_counter() - start, 1)
            document["cases"].sort(key=lambda one: order.index(one["subject"]))
            file.write_text(json.dumps(document, indent=1) + "\n")
            if bar.disable:
                took = f"{result.get('seconds', 0):.1f} s"
                print(f"{document['seconds']:.0f} s: {case.subject}, {case.name}: {took}", file=sys.stderr, flush=True)
    print_results(document, console)
    table = Table(*COLUMNS, title="goals", title_justify="left")
    for row in goal_rows(document["kind"], [document]):
        if row[3] != "not measured":
            table.add_row(*row)
    console.print(table)
    return file, not print_failures(document, console)
